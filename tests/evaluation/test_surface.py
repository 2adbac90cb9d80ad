"""The surface-distance package is the oracle; our code shares none of its tables."""

from pathlib import Path

import numpy as np
import pytest
import surface_distance
from hypothesis import given, settings
from hypothesis import strategies as st
from surface_distance import lookup_tables

from segsweep.data.readers import read_labels
from segsweep.evaluation.surface import bounding_box, element_areas, surfaces

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SPACING = st.tuples(*[st.sampled_from([0.5, 0.98, 1.0, 2.5, 3.27])] * 3)
SHAPE = st.tuples(*[st.integers(1, 9)] * 3)
KINDS = ("empty", "voxel", "full", "box", "rim", "noise", "speckles")


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


def shape_of(kind, *, shape, seed):
    """A mask of the kind: "box" lies anywhere, "rim" touches the grid's end on every axis, "noise" is half full."""
    random, mask = np.random.default_rng(seed), np.zeros(shape, dtype=bool)
    if kind in ("noise", "speckles"):
        return random.random(shape) < (0.5 if kind == "noise" else 0.05)
    first = random.integers(shape)
    last = first + 1 if kind == "voxel" else random.integers(first, shape) + 1
    if kind != "empty":
        box = {"full": (0 * first, shape), "rim": (first, shape)}.get(kind, (first, last))
        mask[tuple(slice(low, high) for low, high in zip(*box, strict=True))] = True
    return mask


@settings(max_examples=500, deadline=None)
@given(kinds=st.tuples(*[st.sampled_from(KINDS)] * 2), shape=SHAPE, spacing=SPACING, seed=st.integers(0, 2**32 - 1))
def test_random_shapes(kinds, shape, spacing, seed):
    masks = [shape_of(kind, shape=shape, seed=(seed, place)) for place, kind in enumerate(kinds)]
    check(masks[0], reference=masks[1], spacing=spacing)


@pytest.mark.parametrize("thick", [1, 20])
def test_surfaces_that_lie_far_apart(thick):
    """One voxel is looked for in the tree, a thick slab's many in the transform of the box."""
    first, second = np.zeros((60, 24, 22), dtype=bool), np.zeros((60, 24, 22), dtype=bool)
    first[2, 3, 4], second[57, 20, 18] = True, True
    first[2 : 1 + thick, 2:20, 3:20] = True
    check(first, reference=second, spacing=(1.1, 0.7, 0.9))
    check(second, reference=first, spacing=(1.1, 0.7, 0.9))


def test_a_whole_number_of_voxels_is_within_a_tolerance_of_as_many():
    """Three steps of 0.1 mm are 0.30000000000000004 mm wherever they begin, so that all elements of a face agree."""
    first = np.zeros((12, 60, 4), dtype=bool)
    first[1:3] = True
    distances = surfaces(np.roll(first, 3, axis=0), reference=first, spacing=(0.1, 0.1, 0.1)).reference.distances
    assert len(distances) > 100
    assert set(distances) <= {np.sqrt((np.arange(4) * 0.1) ** 2)[step] for step in range(4)}


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
