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


def test_the_probabilistic_rule_forces_a_third_of_all_samples_at_batch_size_2():
    generator = np.random.default_rng(1)
    batches = [forced_flags(2, foreground=0.33, rule="probabilistic", generator=generator) for _ in range(4000)]
    assert np.mean(batches) == pytest.approx(0.33, abs=0.02)
    assert {sum(flags) for flags in batches} == {0, 1, 2}


def test_cases_are_drawn_uniformly_with_replacement():
    cases = [case(organs(), case_id=name) for name in "abcd"]
    generator = np.random.default_rng(2)
    drawn = [place(cases, task=task(), forced=False, generator=generator).case.case_id for _ in range(2000)]
    assert all(drawn.count(name) == pytest.approx(500, abs=80) for name in "abcd")


def test_a_forced_patch_holds_its_voxel_at_the_centre_and_may_hang_over_the_upper_end_only():
    label = np.zeros((20, 20, 20), dtype=np.uint8)
    label[19, 1, 10] = 2
    placement = place([case(label)], task=task(), forced=True, generator=np.random.default_rng(0))
    assert placement.corner == (15, 0, 6)


def test_forced_classes_are_uniform_whatever_their_size():
    scan = case(organs())
    generator = np.random.default_rng(3)
    corners = [place([scan], task=task(), forced=True, generator=generator).corner for _ in range(1500)]
    assert corners.count((15, 15, 15)) == pytest.approx(500, abs=70)  # the one-voxel spleen: one class of three
    assert corners.count((0, 0, 0)) > 500  # every liver voxel lies near the lower border


def test_a_forced_patch_without_annotated_foreground_lies_anywhere():
    scan = case(organs(), annotated=(False, False, False))
    generator = np.random.default_rng(4)
    corners = {place([scan], task=task(), forced=True, generator=generator).corner for _ in range(300)}
    assert len(corners) > 200
    assert {axis for corner in corners for axis in corner} == set(range(13))


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


def test_ct_rules_are_left_alone():
    rules = (Normalisation(scheme="ct", low=-100, high=200, mean=40, deviation=30),)
    assert case(organs()).rules(rules) == rules
