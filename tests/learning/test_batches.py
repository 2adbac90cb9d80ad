from dataclasses import replace

import numpy as np
import pytest
import torch

from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import InputError
from segsweep.learning.batches import draw
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import TrainingCase
from segsweep.learning.sampling import Turn
from segsweep.learning.task import Normalisation, Task, normalise

SIDES = LabelSet(structures=("left", "right"), pairs=(("left", "right"),))
TASK = Task(
    channels=("CT",),
    table=LabelTable(labels=SIDES, atoms=((), (0,), (1,))),
    head="softmax",
    patch_size=(8, 8, 8),
    spacing=(1.0, 1.0, 1.0),
    normalisation=(Normalisation(scheme="ct", low=-100, high=300, mean=50, deviation=80),),
)
PARAMS = TrainingParams(batch_size=2, patch_size=(8, 8, 8))
PLAIN = replace(PARAMS, augmentation="none", mirror="none")


class ArrayGrid:
    def __init__(self, image, label):
        self.image, self.label = image, label
        self.shape = label.shape
        self.foreground = {int(v): np.argwhere(label == v) for v in np.unique(label) if v}
        self.image_reads, self.label_reads = [], []

    def read_image(self, region):
        self.image_reads.append(region)
        return self.image[(slice(None), *region)]

    def read_label(self, region):
        self.label_reads.append(region)
        return self.label[region]


def grid_of(scan):
    assert isinstance(scan.grid, ArrayGrid)
    return scan.grid


def case(*, shape=(12, 14, 16), annotated=(True, True), source=0):
    label = np.zeros(shape, dtype=np.uint8)
    label[2:5, 2:5, 1:4], label[2:5, 2:5, -4:-1] = 2, 1
    image = np.random.default_rng(0).integers(-300, 500, (1, *shape)).astype(np.int16)
    return TrainingCase(case_id="a", grid=ArrayGrid(image, label), annotated=annotated, source=source)


def test_a_batch_has_the_agreed_shapes_and_types():
    batch = draw([case()], task=TASK, params=PARAMS, turn=Turn())
    assert (batch.image.shape, batch.image.dtype) == ((2, 1, 8, 8, 8), torch.float32)
    assert (batch.atoms.shape, batch.atoms.dtype) == ((2, 8, 8, 8), torch.int64)
    assert batch.annotated.tolist() == [[True, True], [True, True]]


def test_equal_turns_give_equal_batches_and_other_turns_others():
    drawn = [draw([case()], task=TASK, params=PARAMS, turn=Turn(seed=1, epoch=3, step=step)) for step in (7, 7, 8)]
    assert torch.equal(drawn[0].image, drawn[1].image)
    assert torch.equal(drawn[0].atoms, drawn[1].atoms)
    assert not torch.equal(drawn[0].image, drawn[2].image)


def test_without_augmentation_a_batch_holds_the_normalised_scan():
    scan = case(shape=(8, 8, 8))
    batch = draw([scan], task=TASK, params=replace(PLAIN, foreground=0.0), turn=Turn())
    expected = normalise(grid_of(scan).image, normalisation=TASK.normalisation)
    np.testing.assert_array_equal(batch.image[0].numpy(), expected)
    np.testing.assert_array_equal(batch.atoms[0].numpy(), grid_of(scan).label)


def test_forced_samples_hold_foreground():
    for step in range(30):
        batch = draw([case(shape=(40, 40, 40))], task=TASK, params=replace(PLAIN, batch_size=3), turn=Turn(step=step))
        assert batch.atoms[2].any()


def test_z_score_uses_the_whole_scan_and_reads_it_once():
    scan = case(shape=(20, 20, 20))
    scores = replace(TASK, normalisation=(Normalisation(scheme="z-score"),))
    batches = [
        draw([scan], task=scores, params=replace(PLAIN, foreground=0.0), turn=Turn(step=step)) for step in range(5)
    ]
    whole = (slice(0, 20),) * 3
    expected = normalise(grid_of(scan).image, normalisation=scores.normalisation)
    windows = np.lib.stride_tricks.sliding_window_view(expected[0], (8, 8, 8))
    assert grid_of(scan).image_reads.count(whole) == 1
    assert np.isclose(windows, batches[-1].image[0, 0].numpy(), atol=1e-5).all((3, 4, 5)).any()


def test_a_flipped_patch_names_the_other_side_and_its_annotation():
    scan = case(shape=(8, 8, 16), annotated=(True, False))
    wide = replace(TASK, patch_size=(8, 8, 16))
    params = replace(PARAMS, batch_size=1, augmentation="light", mirror="x", foreground=0.0)
    batches = [draw([scan], task=wide, params=params, turn=Turn(step=step)) for step in range(40)]
    annotations = {tuple(batch.annotated[0].tolist()) for batch in batches}
    assert annotations == {(True, False), (False, True)}
    for batch in batches:
        # The left structure (atom 1) stays at high x whether flipped or not.
        assert torch.nonzero(batch.atoms == 1)[:, 3].float().mean() > 8
        assert torch.nonzero(batch.atoms == 2)[:, 3].float().mean() < 7


def test_labels_of_an_unlabelled_case_are_not_read():
    scan = case(annotated=(False, False))
    batch = draw([scan], task=TASK, params=PARAMS, turn=Turn())
    assert grid_of(scan).label_reads == []
    assert not batch.atoms.any()
    assert not batch.annotated.any()


def test_no_cases_and_no_batch_size_are_refused():
    with pytest.raises(InputError, match="0 cases"):
        draw([], task=TASK, params=PARAMS, turn=Turn())
    with pytest.raises(InputError, match="batch_size=None"):
        draw([case()], task=TASK, params=TrainingParams(), turn=Turn())


def test_ignored_voxels_stay_ignored_through_flips_and_turns():
    scan = case(shape=(8, 8, 16))
    wide = replace(TASK, patch_size=(8, 8, 16))
    ignored = TASK.table.ignored
    grid_of(scan).label[6:] = ignored
    params = replace(PARAMS, batch_size=1, augmentation="nnunet", mirror="zyx", foreground=0.0)
    for step in range(30):
        batch = draw([scan], task=wide, params=params, turn=Turn(step=step))
        assert set(batch.atoms.unique().tolist()) <= {0, 1, 2, ignored}
        assert (batch.atoms == ignored).any()


def test_a_patch_beside_the_ignored_part_of_a_scan_is_drawn_and_unlabelled_cases_need_no_label():
    scan = case(shape=(30, 10, 10))
    grid_of(scan).label[10:] = TASK.table.ignored
    grid_of(scan).foreground[TASK.table.ignored] = np.argwhere(grid_of(scan).label == TASK.table.ignored)
    params = replace(PLAIN, foreground=0.0)
    for step in range(30):
        batch = draw([scan], task=TASK, params=params, turn=Turn(step=step))
        assert (batch.atoms != TASK.table.ignored).flatten(1).any(1).all()
        assert (batch.atoms[:, 4, 4, 4] != TASK.table.ignored).all()


def test_read_only_scans_and_more_than_255_atoms_are_taken():
    scan = case(shape=(8, 8, 8))
    grid = grid_of(scan)
    grid.label = grid.label.astype(np.uint16)
    grid.label[0, 0, 0] = 300
    grid.image.flags.writeable = grid.label.flags.writeable = False
    atoms = draw([scan], task=TASK, params=replace(PLAIN, foreground=0.0), turn=Turn()).atoms
    np.testing.assert_array_equal(atoms[0].numpy(), grid.label)
    np.testing.assert_array_equal(grid.image, grid_of(case(shape=(8, 8, 8))).image)


def test_all_workers_force_foreground_as_their_batches_together_would():
    params = replace(PLAIN, batch_size=1)
    scan = case(shape=(40, 40, 40))
    held = [
        [
            bool(draw([scan], task=TASK, params=params, turn=Turn(step=step, rank=rank, ranks=3)).atoms.any())
            for step in range(20)
        ]
        for rank in range(3)
    ]
    assert all(held[2])
    assert not all(held[0])
    assert not all(held[1])


def test_a_batch_by_quota_has_one_source_and_the_same_for_all_workers():
    cases = [case(source=source) for source in (0, 0, 1)]
    params = replace(PLAIN, sampling="quota", iterations=6)
    drawn = [
        [draw(cases, task=TASK, params=params, turn=Turn(step=step, rank=rank, ranks=2)).source for step in range(6)]
        for rank in (0, 1)
    ]
    assert torch.equal(torch.stack(drawn[0]), torch.stack(drawn[1]))
    assert all(len(source.unique()) == 1 for source in drawn[0])
    assert torch.stack(drawn[0])[:, 0].sum() == 3


def test_as_many_unlabelled_patches_follow():
    batch = draw([case()], task=TASK, params=PARAMS, turn=Turn(), unlabelled=[case(annotated=(False, False), source=1)])
    assert batch.annotated.tolist() == [[True, True]] * 2 + [[False, False]] * 2
    assert batch.source.tolist() == [0, 0, 1, 1]
    assert not batch.atoms[2:].any()


@pytest.mark.parametrize("patch_size", [(8, 8, 8), (8, 32, 32)])
def test_all_of_a_patch_is_made_on_the_device_asked_for(patch_size):
    # The device "meta" computes shapes alone, and refuses voxels that lie elsewhere.
    task, device = replace(TASK, patch_size=patch_size), torch.device("meta")
    params = replace(PARAMS, augmentation="flare22")
    for step in range(30):
        batch = draw([case(shape=(20, 40, 40))], task=task, params=params, turn=Turn(step=step), device=device)
        assert batch.image.device == batch.atoms.device == device
        assert batch.image.shape == (2, 1, *patch_size)
