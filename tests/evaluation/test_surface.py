"""The surface-distance package is the oracle; our code shares none of its tables."""

from pathlib import Path

import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from surface_distance import lookup_tables

from segsweep.data.readers import read_labels
from segsweep.evaluation.surface import bounding_box, element_areas, surfaces

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SPACING = st.tuples(*[st.sampled_from([0.5, 0.98, 1.0, 2.5, 3.27])] * 3)
SHAPE = st.tuples(*[st.integers(1, 7)] * 3)


def check(prediction, *, reference, spacing):
    if not (reference.any() and prediction.any()):
        check_empty(prediction, reference=reference, spacing=spacing)
        return
    expected = surface_distance.compute_surface_distances(reference, prediction, spacing)
    found = surfaces(prediction, reference=reference, spacing=spacing)
    assert found.reference.area == pytest.approx(expected["surfel_areas_gt"].sum(), abs=1e-6)
    assert found.prediction.area == pytest.approx(expected["surfel_areas_pred"].sum(), abs=1e-6)
    for tolerance in (0.0, 1.0, 2.5):
        nsd = surface_distance.compute_surface_dice_at_tolerance(expected, tolerance)
        assert found.normalised_dice(tolerance) == pytest.approx(nsd, abs=1e-6)
    for percent in (95, 100):
        robust = surface_distance.compute_robust_hausdorff(expected, percent)
        assert found.hausdorff(percent) == pytest.approx(robust, abs=1e-6)
    means = surface_distance.compute_average_surface_distance(expected)
    assert (found.reference.mean, found.prediction.mean) == pytest.approx(means, abs=1e-6)


def check_empty(prediction, *, reference, spacing):
    """The package itself stops at an empty mask under NumPy 2 (np.Inf); these are its documented values."""
    found = surfaces(prediction, reference=reference, spacing=spacing)
    assert found.hausdorff(95) == found.hausdorff(100) == np.inf
    for mask, surface in ((prediction, found.prediction), (reference, found.reference)):
        assert np.isinf(surface.distances).all()
        assert len(surface.areas) > 0 or not mask.any()
    nsd = found.normalised_dice(1.0)
    assert nsd == 0 if prediction.any() or reference.any() else np.isnan(nsd)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (3.0, 0.5, 0.8), (1.3, 0.7, 2.1)])
def test_areas_of_all_codes(spacing):
    expected = lookup_tables.create_table_neighbour_code_to_surface_area(spacing)
    np.testing.assert_allclose(element_areas(spacing), expected, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_random_masks(data):
    shape, spacing = data.draw(SHAPE), data.draw(SPACING)
    masks = [data.draw(arrays(bool, shape, elements=st.booleans(), fill=st.just(False))) for _ in range(2)]
    check(masks[0], reference=masks[1], spacing=spacing)


@pytest.mark.parametrize("name", ["empty", "one empty", "single voxels", "whole grid", "touching borders"])
def test_edge_cases(name):
    first, second = np.zeros((5, 6, 7), dtype=bool), np.zeros((5, 6, 7), dtype=bool)
    if name == "one empty":
        first[1:3, 2:4, 2:5] = True
    elif name == "single voxels":
        first[0, 0, 0], second[4, 5, 6] = True, True
    elif name == "whole grid":
        first[:], second[2, 3, 3] = True, True
    elif name == "touching borders":
        first[:3], second[2:, :, 3:] = True, True
    check(first, reference=second, spacing=(2.5, 0.98, 1.2))
    check(second, reference=first, spacing=(2.5, 0.98, 1.2))


def test_bounding_box_in_strided_view():
    mask = np.zeros((9, 8, 7), dtype=bool)
    mask[2:5, 3, 1:6] = True
    assert bounding_box(mask) == (slice(2, 5), slice(3, 4), slice(1, 6))
    assert bounding_box(mask.transpose(2, 0, 1)[::-1]) == (slice(1, 6), slice(2, 5), slice(3, 4))
    assert bounding_box(mask & False) is None


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize("organ", ["Cochlea-Lt", "Parotid-Lt", "Lens-Rt"])
def test_two_observers(organ):
    folder = DATA / "tcia_hn_two_observers" / "0522c0057"
    scans = [read_labels(folder / observer / f"{organ}.nrrd") for observer in ("oncologist", "radiographer")]
    check(scans[1].voxels > 0, reference=scans[0].voxels > 0, spacing=scans[0].geometry.spacing)
