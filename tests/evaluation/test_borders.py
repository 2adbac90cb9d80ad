import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from segsweep.evaluation.borders import symmetric_mm


def test_by_hand():
    """Slabs of a voxel 2 apart along z, of 3 mm: each border voxel is 6 mm from the other slab, or from a neighbour of it."""
    first, second = np.zeros((2, 6, 4, 4), dtype=bool)
    first[1], second[3] = True, True
    assert symmetric_mm(first, reference=second, spacing=(3.0, 1.0, 1.0)) == 6.0
    second[3, 1:] = False  # one row is left: 4 voxels of 6 mm; of the other slab rows 0, 1, 2 and 3 away
    expected = (4 * 6 + 4 * sum(np.hypot(6, row) for row in range(4))) / 20
    assert symmetric_mm(first, reference=second, spacing=(3.0, 1.0, 1.0)) == pytest.approx(expected)


def test_the_rim_of_the_scan_is_no_border():
    whole, half = np.ones((2, 4, 4, 4), dtype=bool)
    half[2:] = False
    assert np.isnan(symmetric_mm(half, reference=whole, spacing=(1.0, 1.0, 1.0)))
    assert symmetric_mm(half, reference=half, spacing=(1.0, 1.0, 1.0)) == 0.0
    assert np.isnan(symmetric_mm(half, reference=whole & False, spacing=(1.0, 1.0, 1.0)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spacing=st.tuples(*[st.sampled_from([0.7, 1.0, 2.5])] * 3))
def test_agrees_with_distance_transforms(seed, spacing):
    masks = ndimage.binary_opening(
        np.random.default_rng(seed).random((2, 7, 8, 9)) < 0.8, structure=np.ones((1, 2, 2, 2))
    )
    borders = [mask & (ndimage.binary_erosion(mask, border_value=1) == 0) for mask in masks]
    found = symmetric_mm(masks[0], reference=masks[1], spacing=spacing)
    if not all(border.any() for border in borders):
        assert np.isnan(found)
        return
    distances = [np.asarray(ndimage.distance_transform_edt(~border, sampling=spacing)) for border in borders]
    assert found == pytest.approx(np.concatenate([distances[1][borders[0]], distances[0][borders[1]]]).mean(), abs=1e-9)
