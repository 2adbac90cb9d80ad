"""Which components stay: worked out by hand on boxes."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from segsweep.data.structures import LabelSet, LabelTable
from segsweep.inference.postprocess import clean, components
from segsweep.learning.inference import CleanUp

ORGANS = LabelTable(labels=LabelSet(structures=("aorta", "vein", "liver")), atoms=((), (0,), (1,), (2,)))
SPACING = (3.0, 2.0, 1.0)


def body() -> NDArray[np.uint8]:
    """Aorta and vein side by side, a liver next to them, and false livers: far along x (in plane), and far along z."""
    label = np.zeros((40, 20, 200), dtype=np.uint8)
    label[5:15, 9:11, 20:22] = 1
    label[5:15, 9:11, 30:32] = 2
    label[6:12, 3:8, 20:40] = 3
    label[8:10, 9:11, 190:194] = 3
    label[36:38, 9:11, 26:28] = 3
    return label


def test_corners_connect_and_faces_need_not() -> None:
    mask = np.zeros((4, 4, 4), dtype=bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[3, 3, 3] = True
    found = components(mask, spacing=SPACING)
    assert found.sizes.tolist() == [2, 1]
    assert found.centroids.tolist() == [[1.5, 1.0, 0.5], [9.0, 6.0, 3.0]]


def test_without_rules_nothing_changes() -> None:
    label = body()
    assert clean(label, rules=CleanUp(), table=ORGANS, spacing=SPACING) is label


def test_the_largest_component_of_the_named_structures_stays() -> None:
    label = body()
    label[0, 0, 0] = 1
    expected = label.copy()
    expected[8:10, 9:11, 190:194] = expected[36:38, 9:11, 26:28] = 0
    found = clean(label, rules=CleanUp(largest=("liver",)), table=ORGANS, spacing=SPACING)
    assert np.array_equal(found, expected), "the aorta's crumb is not among the named"
    assert label[8, 9, 190] == 3, "the label map that came in is left alone"


# The midpoint of the vessels lies at z 9.5, y 9.5, x 25.5: the false livers are 166 mm (x) and 81 mm (z) away from it.
@pytest.mark.parametrize(("farthest_mm", "left"), [(180, 2), (100, 1), (80, 0)])
def test_what_is_too_far_from_the_midpoint_of_the_vessels_goes(farthest_mm: float, left: int) -> None:
    rules = CleanUp(anchors=("aorta", "vein"), farthest_mm=farthest_mm)
    found = clean(body(), rules=rules, table=ORGANS, spacing=SPACING)
    far = [bool(found[8, 9, 190]), bool(found[36, 9, 26])]
    assert sum(far) == left and far == sorted(far), "the farther one goes first"
    assert np.array_equal(found[:16, :, :60], body()[:16, :, :60])


def test_the_released_code_measures_from_the_liver_along_z_alone() -> None:
    rules = CleanUp(anchors=("liver",), farthest_mm=60, axes="z")
    found = clean(body(), rules=rules, table=ORGANS, spacing=SPACING)
    assert found[8, 9, 190] == 3 and found[36, 9, 26] == 0


def test_the_largest_is_chosen_among_what_is_near() -> None:
    label = body()
    label[8:10, 0:20, 100:200] = 3
    rules = CleanUp(largest=("liver",), anchors=("aorta", "vein"), farthest_mm=100)
    found = clean(label, rules=rules, table=ORGANS, spacing=SPACING)
    assert np.array_equal(
        found == 3, (body() == 3) & (np.indices(label.shape)[0] < 20) & (np.indices(label.shape)[2] < 60)
    )


@pytest.mark.parametrize("anchors", [("aorta", "spleen"), ("aorta", "vein")])
def test_without_its_anchors_the_rule_of_distance_is_skipped(anchors: tuple[str, ...]) -> None:
    label = body()
    label[label == 2] = 0
    rules = CleanUp(anchors=anchors, farthest_mm=1)
    assert np.array_equal(clean(label, rules=rules, table=ORGANS, spacing=SPACING), label)


def test_a_voxel_keeps_its_other_structures() -> None:
    table = LabelTable(labels=LabelSet(structures=("liver", "tumour", "cyst")), atoms=((), (0,), (0, 1), (1, 2)))
    label = np.zeros((3, 3, 9), dtype=np.uint8)
    label[:, :, 0:6], label[1, 1, 1:3], label[1, 1, 4], label[1, 1, 8] = 1, 2, 2, 3
    rules = CleanUp(largest=("liver", "tumour"), farthest_mm=math.inf)
    found = clean(label, rules=rules, table=table, spacing=SPACING)
    assert found[1, 1].tolist() == [1, 2, 2, 1, 1, 1, 0, 0, 3], "a cyst without tumour is no atom of this table"


def test_an_empty_map_stays_empty() -> None:
    rules = CleanUp(largest=("liver",), anchors=("aorta", "vein"), farthest_mm=10)
    assert not clean(np.zeros((4, 4, 4), np.uint8), rules=rules, table=ORGANS, spacing=SPACING).any()


def test_the_largest_component_of_the_whole_foreground_stays() -> None:
    label = body()
    label[5:15, 8:11, 22:30] = 3  # joins the vessels with the liver at their side
    expected = label.copy()
    expected[8:10, 9:11, 190:194] = expected[36:38, 9:11, 26:28] = 0
    found = clean(label, rules=CleanUp(foreground="largest"), table=ORGANS, spacing=SPACING)
    assert np.array_equal(found, expected), "whatever structures it is made of"
    assert not clean(np.zeros_like(label), rules=CleanUp(foreground="largest"), table=ORGANS, spacing=SPACING).any()


@pytest.mark.parametrize("rules", [CleanUp(largest=("liver",)), CleanUp(foreground="largest")])
def test_of_equal_components_the_first_stays(rules: CleanUp) -> None:
    label = np.zeros((9, 9, 9), dtype=np.uint8)
    label[4, 4, 6:8], label[4, 1, 7:9], label[6:8, 0, 0] = 3, 3, 3
    found = clean(label, rules=rules, table=ORGANS, spacing=SPACING)
    assert np.argwhere(found).tolist() == [[4, 1, 7], [4, 1, 8]]
