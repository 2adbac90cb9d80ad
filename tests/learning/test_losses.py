import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import RecipeError
from segsweep.learning.losses import build_loss, dice_counts, focal, groups_of, tversky
from segsweep.learning.supervision import shrink, supervision_weights
from segsweep.learning.task import Normalisation, Task

LABELS = LabelSet(structures=("liver", "cancer", "spleen"))
TABLE = LabelTable(labels=LABELS, atoms=((), (0,), (2,), (0, 1)))
LOSSES = ("dice_ce", "dice_focal")


def task(head):
    rules = (Normalisation(scheme="ct"),)
    return Task(channels=("CT",), table=TABLE, head=head, patch_size=(8, 8, 8), spacing=(1, 1, 1), normalisation=rules)


def example(*, outputs, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((batch, outputs, 4, 5, 6), generator=generator, requires_grad=True)
    atoms = torch.randint(0, 4, (batch, 4, 5, 6), generator=generator)
    return logits, atoms


def gradient(logits):
    assert logits.grad is not None
    return logits.grad


def known(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def dice_by_hand(probabilities, true):
    sums = [(value.flatten(2)).sum(2) for value in (probabilities * true, probabilities, true)]
    return (2 * sums[0] + 1e-5) / (sums[1] + sums[2] + 1e-5)


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (1, (1.0,)),
        (4, (0.5714, 0.2857, 0.1429, 0)),
        (5, (0.5333, 0.2667, 0.1333, 0.0667, 0)),
        (6, (0.5161, 0.2581, 0.1290, 0.0645, 0.0323, 0)),
    ],
)
def test_supervision_weights_are_the_printed_ones(levels, expected):
    assert supervision_weights(levels) == pytest.approx(expected, abs=5e-5)


def test_shrink_equals_nearest_exact():
    atoms = torch.randint(0, 300, (2, 9, 8, 16))
    for shape in ((9, 8, 16), (5, 4, 8), (3, 2, 4), (9, 1, 1)):
        expected = F.interpolate(atoms[:, None].float(), size=shape, mode="nearest-exact")[:, 0].long()
        assert torch.equal(shrink(atoms, shape=shape), expected)


@pytest.mark.parametrize(("alpha", "beta", "expected"), [(0.5, 0.5, 2 / 3), (0.3, 0.7, 0.638298), (1, 1, 0.5)])
def test_tversky_values_are_the_printed_ones(alpha, beta, expected):
    volumes = (torch.tensor(30.0), torch.tensor(40.0), torch.tensor(50.0))
    score = tversky(volumes[0], predicted=volumes[1], true=volumes[2], alpha=alpha, beta=beta)
    assert float(score) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("probability", "expected"), [(0.9, 1.0536e-3), (0.5, 0.173287), (0.1, 1.865094)])
def test_focal_values_are_the_printed_ones(probability, expected):
    assert float(focal(torch.tensor(-math.log(probability)), gamma=2)) == pytest.approx(expected, rel=1e-4)


def test_softmax_dice_ce_is_cross_entropy_minus_foreground_dice():
    logits, atoms = example(outputs=4)
    hot = F.one_hot(atoms, 4).movedim(-1, 1).float()
    dice = dice_by_hand(logits.softmax(1), hot)[:, 1:].mean()
    loss = build_loss("dice_ce", task=task("softmax"), batch_dice=False)
    torch.testing.assert_close(
        loss([logits], atoms, known([1, 1, 1], [1, 1, 1])), F.cross_entropy(logits, atoms) - dice
    )


def test_softmax_dice_focal_counts_background_and_lies_above_zero():
    logits, atoms = example(outputs=4)
    hot = F.one_hot(atoms, 4).movedim(-1, 1).float()
    dice = dice_by_hand(logits.softmax(1), hot).mean()
    cross_entropy = F.cross_entropy(logits, atoms, reduction="none")
    expected = 1 - dice + ((1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy).mean()
    loss = build_loss("dice_focal", task=task("softmax"), batch_dice=False)
    torch.testing.assert_close(loss([logits], atoms, known([1, 1, 1], [1, 1, 1])), expected)


def test_sigmoid_dice_ce_is_binary_cross_entropy_minus_dice():
    logits, atoms = example(outputs=3)
    true = torch.as_tensor(TABLE.membership)[atoms].movedim(-1, 1).float()
    expected = F.binary_cross_entropy_with_logits(logits, true) - dice_by_hand(logits.sigmoid(), true).mean()
    loss = build_loss("dice_ce", task=task("sigmoid"), batch_dice=False)
    torch.testing.assert_close(loss([logits], atoms, known([1, 1, 1], [1, 1, 1])), expected)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_batch_dice_is_the_dice_of_the_whole_batch_as_one_sample(head):
    logits, atoms = example(outputs=task(head).outputs)
    joined = torch.cat(list(logits.detach()), dim=1)[None]
    together = build_loss("dice_ce", task=task(head), batch_dice=True)([logits], atoms, known([1, 1, 1], [1, 1, 1]))
    single = build_loss("dice_ce", task=task(head), batch_dice=False)
    torch.testing.assert_close(together.detach(), single([joined], torch.cat(list(atoms))[None], known([1, 1, 1])))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_dice", [False, True])
def test_a_structure_not_annotated_gets_exactly_zero_gradient(name, batch_dice):
    logits, atoms = example(outputs=3)
    loss = build_loss(name, task=task("sigmoid"), batch_dice=batch_dice)
    loss([logits], atoms, known([1, 0, 1], [0, 0, 1])).backward()
    touched = gradient(logits).flatten(2).abs().sum(2) > 0
    assert torch.equal(touched, known([1, 0, 1], [0, 0, 1]))


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_dice", [False, True])
def test_an_unlabelled_sample_adds_neither_loss_nor_gradient(head, name, batch_dice):
    logits, atoms = example(outputs=task(head).outputs)
    loss = build_loss(name, task=task(head), batch_dice=batch_dice)
    value = loss([logits], atoms, known([1, 1, 1], [0, 0, 0]))
    value.backward()
    torch.testing.assert_close(value, loss([logits[:1]], atoms[:1], known([1, 1, 1])))
    assert gradient(logits)[0].abs().sum() > 0
    assert not gradient(logits)[1].any()


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_without_annotation_is_worth_zero(head, name):
    logits, atoms = example(outputs=task(head).outputs)
    value = build_loss(name, task=task(head), batch_dice=True)([logits], atoms, known([0, 0, 0], [0, 0, 0]))
    value.backward()
    assert value.item() == 0
    assert not gradient(logits).any()


def test_atoms_that_the_annotation_cannot_tell_apart_are_grouped():
    groups = groups_of(known([1, 1, 1], [1, 0, 1], [0, 0, 1], [0, 0, 0]), table=TABLE)
    assert groups.tolist() == [[0, 1, 2, 3], [0, 1, 2, 1], [0, 0, 2, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("name", LOSSES)
def test_a_partly_annotated_sample_is_a_softmax_over_merged_atoms(name):
    logits, atoms = example(outputs=4)
    merged = torch.stack((logits[:, 0], torch.logsumexp(logits[:, [1, 3]], 1), logits[:, 2]), 1)
    labels = LabelSet(structures=("liver", "spleen"))
    small = Task(
        channels=("CT",),
        table=LabelTable(labels=labels, atoms=((), (0,), (1,))),
        head="softmax",
        patch_size=(8, 8, 8),
        spacing=(1, 1, 1),
        normalisation=(Normalisation(scheme="ct"),),
    )
    partial = build_loss(name, task=task("softmax"), batch_dice=False)
    whole = build_loss(name, task=small, batch_dice=False)
    value = partial([logits], atoms, known([1, 0, 1], [1, 0, 1]))
    torch.testing.assert_close(value, whole([merged], torch.tensor([0, 1, 2, 1])[atoms], known([1, 1], [1, 1])))
    value.backward()
    assert torch.isfinite(gradient(logits)).all()


def test_samples_of_different_annotation_share_a_batch():
    logits, atoms = example(outputs=4)
    loss = build_loss("dice_ce", task=task("softmax"), batch_dice=False)
    both = loss([logits], atoms, known([1, 1, 1], [0, 0, 1]))
    ones = [loss([logits[i : i + 1]], atoms[i : i + 1], known(row)) for i, row in enumerate(([1, 1, 1], [0, 0, 1]))]
    swapped = loss([logits.flip(0)], atoms.flip(0), known([0, 0, 1], [1, 1, 1]))
    torch.testing.assert_close(both, swapped)
    assert min(ones) < both < max(ones)


def test_deep_supervision_weighs_levels_and_keeps_the_last_in_the_graph():
    loss = build_loss("dice_ce", task=task("softmax"), batch_dice=False)
    logits, atoms = example(outputs=4)
    middle = torch.randn(2, 4, 2, 3, 3, requires_grad=True)
    last = torch.randn(2, 4, 1, 1, 1, requires_grad=True)
    full = known([1, 1, 1], [1, 1, 1])
    value = loss([logits, middle, last], atoms, full)
    expected = 2 / 3 * loss([logits], atoms, full) + 1 / 3 * loss([middle], shrink(atoms, shape=(2, 3, 3)), full)
    torch.testing.assert_close(value, expected)
    value.backward()
    assert last.grad is not None
    assert not last.grad.any()


def test_half_precision_logits_are_scored_in_single_precision():
    logits, atoms = example(outputs=4)
    loss = build_loss("dice_ce", task=task("softmax"), batch_dice=False)
    half = logits.detach().half()
    assert torch.equal(loss([half], atoms, known([1, 1, 1])), loss([half.float()], atoms, known([1, 1, 1])))


def test_an_unknown_loss_names_the_known_ones():
    with pytest.raises(RecipeError, match="dice_ce, dice_focal"):
        build_loss("dice", task=task("softmax"), batch_dice=False)  # pyright: ignore[reportArgumentType]


RANK = """
import sys, torch
from torch import distributed
sys.path.insert(0, sys.argv[3])
import test_losses as t
rank = int(sys.argv[1])
distributed.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
logits, atoms = t.example(outputs=4)
mine = logits.detach()[rank : rank + 1].requires_grad_()
loss = t.build_loss("dice_ce", task=t.task("softmax"), batch_dice=True)
value = loss([mine], atoms[rank : rank + 1], t.known([1, 1, 1]))
value.backward()
torch.save(mine.grad, sys.argv[2] + f".{rank}")
distributed.destroy_process_group()
"""


def test_two_ranks_give_the_batch_dice_gradient_of_one(tmp_path):
    meeting, here = tmp_path / "meeting", str(Path(__file__).parent)
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(r), str(meeting), here]) for r in range(2)]
    assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    logits, atoms = example(outputs=4)
    build_loss("dice_ce", task=task("softmax"), batch_dice=True)(
        [logits], atoms, known([1, 1, 1], [1, 1, 1])
    ).backward()
    # DDP averages the ranks' gradients of shared parameters; here each rank holds its own logits.
    grads = [torch.load(f"{meeting}.{rank}", weights_only=True) for rank in range(2)]
    torch.testing.assert_close(torch.cat(grads) / 2, logits.grad)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_dice_counts_are_voxel_counts_over_annotated_samples(head):
    logits, atoms = example(outputs=task(head).outputs)
    table = TABLE.membership
    true = table[atoms.numpy()]
    hard = table[logits.detach().argmax(1).numpy()] if head == "softmax" else logits.detach().movedim(1, -1).numpy() > 0
    annotated = np.array([[1, 1, 0], [1, 0, 0]], dtype=bool)
    mask = annotated[:, None, None, None]
    pairs = (true & hard & mask, ~true & hard & mask, true & ~hard & mask)
    expected = np.stack([voxels.sum((0, 1, 2, 3)) for voxels in pairs], axis=1)
    counts = dice_counts(logits, atoms=atoms, annotated=torch.as_tensor(annotated), task=task(head))
    assert counts.tolist() == expected.tolist()
    assert counts[2].tolist() == [0, 0, 0]


def with_ignored(atoms, *, slices):
    """The atoms with the first slices (z) of each sample ignored."""
    changed = atoms.clone()
    for sample, count in zip(changed, slices, strict=True):
        sample[:count] = TABLE.ignored
    return changed


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("annotated", [([1, 1, 1], [1, 1, 1]), ([1, 0, 1], [0, 0, 1])])
def test_ignored_voxels_get_exactly_zero_gradient(head, name, batch_dice, annotated):
    logits, atoms = example(outputs=task(head).outputs)
    partly = with_ignored(atoms, slices=(1, 3))
    build_loss(name, task=task(head), batch_dice=batch_dice)([logits], partly, known(*annotated)).backward()
    touched = gradient(logits).abs().sum(1) > 0
    assert torch.equal(touched, partly != TABLE.ignored)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("annotated", [([1, 1, 1], [1, 1, 1]), ([1, 0, 1], [1, 1, 1])])
def test_the_loss_with_ignored_voxels_is_that_of_the_cropped_rest(head, name, batch_dice, annotated):
    logits, atoms = example(outputs=task(head).outputs)
    loss = build_loss(name, task=task(head), batch_dice=batch_dice)
    value = loss([logits], with_ignored(atoms, slices=(2, 2)), known(*annotated))
    torch.testing.assert_close(value, loss([logits[:, :, 2:]], atoms[:, 2:], known(*annotated)))


def test_cross_entropy_is_the_mean_over_all_known_voxels_of_the_batch():
    logits, atoms = example(outputs=4)
    partly = with_ignored(atoms, slices=(0, 3))
    hot = F.one_hot(partly, 5).movedim(-1, 1)[:, :4].float()
    inside = logits.softmax(1) * (partly != TABLE.ignored)[:, None]
    expected = F.cross_entropy(logits, partly, ignore_index=TABLE.ignored) - dice_by_hand(inside, hot)[:, 1:].mean()
    loss = build_loss("dice_ce", task=task("softmax"), batch_dice=False)
    torch.testing.assert_close(loss([logits], partly, known([1, 1, 1], [1, 1, 1])), expected)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch_dice", [False, True])
def test_a_sample_of_ignored_voxels_alone_counts_like_an_unlabelled_one(head, name, batch_dice):
    logits, atoms = example(outputs=task(head).outputs)
    loss = build_loss(name, task=task(head), batch_dice=batch_dice)
    value = loss([logits], with_ignored(atoms, slices=(0, 4)), known([1, 1, 1], [1, 1, 1]))
    value.backward()
    torch.testing.assert_close(value, loss([logits[:1]], atoms[:1], known([1, 1, 1])))
    assert not gradient(logits)[1].any()
    assert loss([logits], with_ignored(atoms, slices=(4, 4)), known([1, 1, 1], [1, 1, 1])).item() == 0


def test_shrinking_a_target_keeps_what_is_ignored():
    _, atoms = example(outputs=4)
    coarse = shrink(with_ignored(atoms, slices=(2, 0)), shape=(2, 5, 3))
    assert (coarse[0, 0] == TABLE.ignored).all()
    assert (coarse[0, 1] != TABLE.ignored).all()
    assert (coarse[1] != TABLE.ignored).all()


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_dice_counts_leave_ignored_voxels_out(head):
    logits, atoms = example(outputs=task(head).outputs)
    full = known([1, 1, 1], [1, 1, 1])
    counts = dice_counts(logits, atoms=with_ignored(atoms, slices=(1, 1)), annotated=full, task=task(head))
    assert torch.equal(counts, dice_counts(logits[:, :, 1:], atoms=atoms[:, 1:], annotated=full, task=task(head)))
