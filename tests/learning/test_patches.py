import numpy as np
import pytest

from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning.patches import TrainingCase, corner_bounds, forced_flags, foreground_classes, place
from segsweep.learning.task import Head, Normalisation, Task, normalise

LABELS = LabelSet(structures=("liver", "cancer", "spleen"))
TABLE = LabelTable(labels=LABELS, atoms=((), (0,), (2,), (0, 1)))


class ArrayGrid:
    def __init__(self, image, label):
        self.image, self.label = image, label
        self.shape = label.shape
        self.foreground = {int(v): np.argwhere(label == v) for v in np.unique(label) if v}

    def read_image(self, region):
        return self.image[(slice(None), *region)]

    def read_label(self, region):
        return self.label[region]


def task(*, head: Head = "softmax", patch_size=(8, 8, 8)):
    return Task(
        channels=("CT",),
        table=TABLE,
        head=head,
        patch_size=patch_size,
        spacing=(1.0, 1.0, 1.0),
        normalisation=(Normalisation(scheme="ct"),),
    )


def case(label, *, annotated=(True, True, True), case_id="a"):
    image = np.random.default_rng(0).normal(40, 9, (1, *label.shape)).astype(np.float32)
    return TrainingCase(case_id=case_id, grid=ArrayGrid(image, label), annotated=annotated)


def organs(shape=(20, 20, 20)):
    label = np.zeros(shape, dtype=np.uint8)
    label[2:8, 2:8, 2:8] = 1
    label[4, 4, 4] = 3
    label[19, 19, 19] = 2
    return label


@pytest.mark.parametrize(("batch_size", "expected"), [(2, 1), (3, 1), (4, 1), (5, 2), (8, 3), (12, 4)])
def test_the_deterministic_rule_forces_the_printed_numbers_of_samples(batch_size, expected):
    generator = np.random.default_rng(0)
    flags = forced_flags(batch_size, foreground=0.33, rule="deterministic", generator=generator)
    assert flags == (False,) * (batch_size - expected) + (True,) * expected


@pytest.mark.parametrize(("batch_size", "ranks"), [(1, 2), (1, 3), (2, 2), (2, 3), (4, 2), (3, 5)])
def test_several_workers_force_what_one_with_all_their_samples_would(batch_size, ranks):
    generator = np.random.default_rng(0)
    parts = [
        forced_flags(batch_size, foreground=0.33, rule="deterministic", generator=generator, rank=rank, ranks=ranks)
        for rank in range(ranks)
    ]
    whole = forced_flags(batch_size * ranks, foreground=0.33, rule="deterministic", generator=generator)
    assert sum(parts, ()) == whole


def test_the_probabilistic_rule_forces_a_third_of_all_samples_at_batch_size_2():
    generator = np.random.default_rng(1)
    batches = [forced_flags(2, foreground=0.33, rule="probabilistic", generator=generator) for _ in range(4000)]
    assert np.mean(batches) == pytest.approx(0.33, abs=0.02)
    assert {sum(flags) for flags in batches} == {0, 1, 2}


def test_a_forced_patch_holds_its_voxel_at_the_centre_and_may_hang_over_the_upper_end_only():
    label = np.zeros((20, 20, 20), dtype=np.uint8)
    label[19, 1, 10] = 2
    placement = place(case(label), task=task(), forced=True, generator=np.random.default_rng(0))
    assert placement.corner == (15, 0, 6)


def test_forced_classes_are_uniform_whatever_their_size():
    scan = case(organs())
    generator = np.random.default_rng(3)
    corners = [place(scan, task=task(), forced=True, generator=generator).corner for _ in range(1500)]
    assert corners.count((15, 15, 15)) == pytest.approx(500, abs=70)  # the one-voxel spleen: one class of three
    assert corners.count((0, 0, 0)) > 500  # every liver voxel lies near the lower border


def test_a_forced_patch_without_annotated_foreground_lies_anywhere():
    scan = case(organs(), annotated=(False, False, False))
    generator = np.random.default_rng(4)
    corners = {place(scan, task=task(), forced=True, generator=generator).corner for _ in range(300)}
    assert len(corners) > 200
    assert {axis for corner in corners for axis in corner} == set(range(13))


def partly_known(*, annotated=(True, True, True)):
    """Slices 0 to 3 are annotated, all others ignored; the one foreground voxel lies at the border."""
    label = np.full((40, 20, 20), TABLE.ignored, dtype=np.uint8)
    label[:4] = 0
    label[3, 19, 19] = 1
    return case(label, annotated=annotated)


def test_with_ignored_voxels_all_other_patches_are_centred_on_annotated_ones():
    generator = np.random.default_rng(6)
    placements = [place(partly_known(), task=task(), forced=False, generator=generator) for _ in range(200)]
    corners = np.array([placement.corner for placement in placements])
    assert set(corners[:, 0]) == {0}  # a voxel of slices 0 to 3 at the centre would need a corner below the scan
    assert set(corners[:, 1]) == set(range(16))
    assert not any(placement.forced for placement in placements)


def test_annotated_voxels_are_drawn_uniformly():
    label = np.full((20, 20, 20), TABLE.ignored, dtype=np.uint8)
    label[5, :10, 8], label[15, 12, :] = 0, 2
    scan, generator = case(label), np.random.default_rng(7)
    voxels = np.array([scan.known_voxel(ignored=TABLE.ignored, generator=generator) for _ in range(1500)])
    assert (label[tuple(voxels.T)] != TABLE.ignored).all()
    assert np.mean(voxels[:, 0] == 15) == pytest.approx(2 / 3, abs=0.04)
    assert len(np.unique(voxels, axis=0)) == 30


def test_a_forced_patch_aims_at_foreground_also_beside_ignored_voxels():
    generator = np.random.default_rng(8)
    corners = {place(partly_known(), task=task(), forced=True, generator=generator).corner for _ in range(20)}
    assert corners == {(0, 15, 15)}


def test_patches_lie_anywhere_where_all_is_ignored_or_nothing_annotated():
    label = np.full((20, 20, 20), TABLE.ignored, dtype=np.uint8)
    generator = np.random.default_rng(9)
    for scan in (case(label), partly_known(annotated=(False, False, False))):
        corners = {place(scan, task=task(), forced=True, generator=generator).corner for _ in range(200)}
        assert max(corner[0] for corner in corners) >= 12


def test_only_annotated_structures_are_aimed_at():
    scan = case(organs(), annotated=(False, True, False))
    assert set(foreground_classes(scan, task=task())) == {3}
    assert set(foreground_classes(scan, task=task(head="sigmoid"))) == {1}


def test_a_sigmoid_class_collects_the_voxels_of_all_its_atoms():
    classes = foreground_classes(case(organs()), task=task(head="sigmoid"))
    assert set(classes) == {0, 1, 2}
    assert sum(len(piece) for piece in classes[0]) == 6**3


def test_a_scan_smaller_than_the_patch_is_padded_on_both_sides():
    assert corner_bounds((5, 8, 20), patch_size=(8, 8, 8)) == ((-2, 0, 0), (-1, 0, 12))


def test_z_score_rules_equal_the_normalisation_of_the_whole_scan():
    scan = case(organs())
    rules = scan.rules((Normalisation(scheme="z-score"),))
    image = scan.grid.read_image((slice(0, 20), slice(0, 20), slice(0, 20)))
    whole = normalise(image, normalisation=(Normalisation(scheme="z-score"),))
    patch = normalise(image[:, 3:9], normalisation=rules)
    np.testing.assert_allclose(patch, whole[:, 3:9], atol=1e-5)


def test_a_window_cuts_a_z_score_before_its_mean_is_taken():
    windowed = (Normalisation(scheme="z-score", low=30, high=50),)
    scan = case(organs())
    assert isinstance(scan.grid, ArrayGrid)
    scan.grid.image[0, :4] = 3000
    rules = scan.rules(windowed)
    image = scan.grid.read_image((slice(0, 20), slice(0, 20), slice(0, 20)))
    whole = normalise(image, normalisation=windowed)
    cut = np.clip(image, 30, 50).astype(np.float64)
    np.testing.assert_allclose(whole, (cut - cut.mean()) / cut.std(), atol=1e-5)
    np.testing.assert_allclose(normalise(image[:, 3:9], normalisation=rules), whole[:, 3:9], atol=1e-5)


def test_ct_rules_are_left_alone():
    rules = (Normalisation(scheme="ct", low=-100, high=200, mean=40, deviation=30),)
    assert case(organs()).rules(rules) == rules
