import dataclasses
import math
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import RecipeError
from segsweep.learning import losses
from segsweep.learning.losses import RECIPES, build_loss, dice_counts, focal, groups_of, tversky
from segsweep.learning.params import LossName
from segsweep.learning.supervision import Supervision, shrink
from segsweep.learning.task import Head, Normalisation, Task

LABELS = LabelSet(structures=("liver", "cancer", "spleen"))
TABLE = LabelTable(labels=LABELS, atoms=((), (0,), (2,), (0, 1)))
LOSSES = get_args(LossName)


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


def test_every_name_has_a_recipe():
    assert set(RECIPES) == set(LOSSES)


@pytest.mark.parametrize("name", ["ce", "focal", "dice", "tversky", "dice_topk"])
def test_each_loss_is_its_definition(name):
    logits, atoms = example(outputs=4)
    probabilities, hot = logits.softmax(1), F.one_hot(atoms, 4).movedim(-1, 1).float()
    cross_entropy = F.cross_entropy(logits, atoms, reduction="none")
    hardest = cross_entropy.flatten().topk(24).values  # a tenth of 2 x 120 voxels
    hits, predicted, true = (v.flatten(2).sum(2) for v in (probabilities * hot, probabilities, hot))
    expected = {
        "ce": cross_entropy.mean(),
        "focal": ((1 - torch.exp(-cross_entropy)) ** 2 * cross_entropy).mean(),
        "dice": 1 - dice_by_hand(probabilities, hot).mean(),
        "tversky": 1 - (hits / (0.3 * predicted + 0.7 * true)).mean(),
        "dice_topk": hardest.mean() - dice_by_hand(probabilities, hot)[:, 1:].mean(),
    }
    value = build_loss(name, task=task("softmax"), batch_dice=False)([logits], atoms, known([1, 1, 1], [1, 1, 1]))
    torch.testing.assert_close(value, expected[name])


def test_top_k_takes_the_hardest_voxels_of_each_output():
    logits, atoms = example(outputs=3)
    true = torch.as_tensor(TABLE.membership)[atoms].movedim(-1, 1).float()
    rows = F.binary_cross_entropy_with_logits(logits, true, reduction="none").transpose(0, 1).flatten(1)
    expected = rows.topk(24, dim=1).values.mean() - dice_by_hand(logits.sigmoid(), true).mean()
    loss = build_loss("dice_topk", task=task("sigmoid"), batch_dice=False)
    torch.testing.assert_close(loss([logits], atoms, known([1, 1, 1], [1, 1, 1])), expected)


def test_a_recipe_of_its_own_sets_alpha_and_beta():
    logits, atoms = example(outputs=4)
    recipe = dataclasses.replace(RECIPES["dice_focal"], alpha=0.3, beta=0.7)
    full = known([1, 1, 1], [1, 1, 1])
    parts = [build_loss(name, task=task("softmax"), batch_dice=False) for name in ("focal", "tversky")]
    value = build_loss(recipe, task=task("softmax"), batch_dice=False)([logits], atoms, full)
    torch.testing.assert_close(value, parts[0]([logits], atoms, full) + parts[1]([logits], atoms, full))


def test_multitalent_adds_voxel_means_and_batch_dice():
    logits, atoms = example(outputs=3)
    true = torch.as_tensor(TABLE.membership)[atoms].movedim(-1, 1).float()
    annotated = known([1, 1, 0], [1, 0, 0])
    cross_entropy = F.binary_cross_entropy_with_logits(logits, true, reduction="none").mean((2, 3, 4))
    scores, seen = logits.sigmoid(), annotated[:, :, None, None, None]
    hits, predicted, volume = ((v * seen).sum((0, 2, 3, 4))[:2] for v in (scores * true, scores, true))
    expected = (cross_entropy * annotated).sum() - (2 * hits / (predicted + volume)).sum()
    loss = build_loss("multitalent", task=task("sigmoid"), batch_dice=False)
    torch.testing.assert_close(loss([logits], atoms, annotated), expected)


def test_a_second_class_adds_its_multitalent_loss():
    loss = build_loss("multitalent", task=task("sigmoid"), batch_dice=True)
    rows = (known([1, 0, 0], [1, 0, 0]), known([0, 0, 1], [0, 0, 1]), known([1, 0, 1], [1, 0, 1]))
    values, gradients = [], []
    for annotated in rows:
        logits, atoms = example(outputs=3)
        value = loss([logits], atoms, annotated)
        value.backward()
        values.append(value.detach())
        gradients.append(gradient(logits))
    torch.testing.assert_close(values[2], values[0] + values[1])
    torch.testing.assert_close(gradients[2], gradients[0] + gradients[1])


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


def test_levels_weigh_as_the_supervision_says():
    full, levels = known([1, 1, 1], [1, 1, 1]), [torch.randn(2, 4, size, size, size) for size in (4, 2, 1)]
    atoms = torch.randint(0, 4, (2, 4, 4, 4))
    single = build_loss("dice_ce", task=task("softmax"), batch_dice=False)
    equal = build_loss("dice_ce", task=task("softmax"), batch_dice=False, supervision=Supervision(heads=2, decay=1.0))
    ones = [single([level], shrink(atoms, shape=level.shape[2:]), full) for level in levels[:2]]
    torch.testing.assert_close(equal(levels, atoms, full), (ones[0] + ones[1]) / 2)


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
def test_slabs_make_no_difference(head, name, monkeypatch):
    loss, results = build_loss(name, task=task(head), batch_dice=False), []
    for slab in (losses.SLAB, 1):
        monkeypatch.setattr(losses, "SLAB", slab)
        logits, atoms = example(outputs=task(head).outputs)
        value = loss([logits], with_ignored(atoms, slices=(1, 0)), known([1, 1, 1], [1, 0, 1]))
        value.backward()
        results.append((value.detach(), gradient(logits)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("name", LOSSES)
def test_logits_and_target_alone_wait_for_the_backward_pass(head, name):
    logits, atoms = example(outputs=task(head).outputs)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda x: x):
        build_loss(name, task=task(head), batch_dice=False)([logits], atoms, known([1, 0, 1], [1, 1, 1]))
    # What the slabs are made from anew, and a few sums.
    assert sum(kept) < logits.numel() + 1.5 * atoms.numel()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
def test_autocast_does_not_reach_the_loss(head, name):
    logits, atoms = example(outputs=task(head).outputs)
    loss, full = build_loss(name, task=task(head), batch_dice=False), known([1, 1, 1], [1, 1, 1])
    level = logits.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss([level], atoms, full)
    assert value.dtype == torch.float32
    assert torch.equal(value, loss([level.float()], atoms, full))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("sign", [1, -1])
def test_empty_classes_and_sure_logits_are_finite(head, name, sign):
    logits, atoms = example(outputs=task(head).outputs)
    sure = (logits.detach() * sign * 1e4).requires_grad_()
    value = build_loss(name, task=task(head), batch_dice=False)([sure], atoms * 0, known([1, 1, 1], [1, 1, 1]))
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(gradient(sure)).all()


def test_half_precision_logits_are_scored_in_single_precision():
    logits, atoms = example(outputs=4)
    loss = build_loss("dice_ce", task=task("softmax"), batch_dice=False)
    half = logits.detach().half()
    assert torch.equal(loss([half], atoms, known([1, 1, 1])), loss([half.float()], atoms, known([1, 1, 1])))


def test_an_unknown_loss_names_the_known_ones():
    with pytest.raises(RecipeError, match="dice_ce, dice_focal"):
        build_loss("dise", task=task("softmax"), batch_dice=False)  # pyright: ignore[reportArgumentType]


RANKED: list[tuple[LossName, bool, Head]] = [
    ("dice_ce", True, "softmax"),
    ("dice_ce", False, "softmax"),
    ("dice_ce", False, "sigmoid"),
    ("multitalent", True, "sigmoid"),
]
ANNOTATED = ([1, 1, 1], [1, 0, 1])
# One process loads everything and becomes two.
RANKS = """
import os, sys, torch
from torch import distributed
sys.path.insert(0, sys.argv[2])
import test_losses as t
child = os.fork()
rank = 0 if child else 1
distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
t.save_gradients(sys.argv[1] + f".{rank}", samples=slice(rank, rank + 1))
distributed.destroy_process_group()
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def save_gradients(path, *, samples):
    """Logits' gradients of the losses of RANKED, for those samples of one and the same batch."""
    found = {}
    for name, batch_dice, head in RANKED:
        logits, atoms = example(outputs=task(head).outputs)
        mine = logits.detach()[samples].requires_grad_()
        loss = build_loss(name, task=task(head), batch_dice=batch_dice)
        loss([mine], with_ignored(atoms, slices=(2, 0))[samples], known(*ANNOTATED)[samples]).backward()
        found[f"{name} {batch_dice} {head}"] = gradient(mine)
    torch.save(found, path)


def test_two_ranks_give_the_gradient_of_one_batch(tmp_path):
    meeting, here = tmp_path / "meeting", str(Path(__file__).parent)
    python = (sys.executable, "-W", "error::FutureWarning", "-c", RANKS)
    subprocess.run([*python, str(meeting), here], check=True, timeout=200)
    save_gradients(tmp_path / "whole", samples=slice(None))
    paths = (f"{meeting}.0", f"{meeting}.1", tmp_path / "whole")
    first, second, whole = (torch.load(path, weights_only=True) for path in paths)
    for name, expected in whole.items():
        # DDP averages the ranks' gradients of shared parameters; here each rank holds its own logits.
        torch.testing.assert_close(torch.cat((first[name], second[name])) / 2, expected)


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
