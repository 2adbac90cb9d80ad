import math

import pytest
import torch
import torch.nn.functional as F

from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning import consistency as consistency_room
from segsweep.learning.consistency import consistency, ramp_up, semi_supervised
from segsweep.learning.losses import build_loss
from segsweep.learning.supervision import Supervision
from segsweep.learning.task import Normalisation, Task

# Luo 2021, one voxel of two classes: probabilities of the first class in the four heads, their mean and KL(mean || head).
HEADS, MEAN = (0.7, 0.6, 0.5, 0.8), 0.65
DIVERGENCES = (0.005783, 0.005292, 0.045701, 0.060900)
TASK = Task(
    channels=("CT",),
    table=LabelTable(labels=LabelSet(structures=("liver", "spleen")), atoms=((), (0,), (1,))),
    head="softmax",
    patch_size=(8, 8, 8),
    spacing=(1, 1, 1),
    normalisation=(Normalisation(scheme="ct"),),
)
SUPERVISED = build_loss("dice_ce", task=TASK, batch_dice=False, supervision=Supervision(heads=4, decay=1.0))
ATOMS = torch.randint(0, 3, (2, 4, 5, 6), generator=torch.Generator().manual_seed(0))


def one_voxel(probability):
    return torch.tensor([probability, 1 - probability]).log().view(1, 2, 1, 1, 1)


def heads():
    sizes = ((4, 5, 6), (2, 3, 3), (1, 2, 2), (1, 1, 1), (1, 1, 1))
    return [torch.randn(2, 3, *size, requires_grad=True) for size in sizes]


def known(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def gradient(logits):
    assert logits.grad is not None
    return logits.grad


def test_paper_is_the_mean_divergence_of_the_heads():
    value = consistency([one_voxel(p) for p in HEADS], variant="paper")
    assert float(value) == pytest.approx(sum(DIVERGENCES) / 4, abs=1e-6)


@pytest.mark.parametrize(("pair", "divergence"), list(zip(HEADS, DIVERGENCES, strict=True)))
def test_each_head_adds_its_own_divergence(pair, divergence):
    by_hand = sum(q * math.log(q / p) for q, p in ((MEAN, pair), (1 - MEAN, 1 - pair)))
    assert by_hand == pytest.approx(divergence, abs=1e-6)
    rest = [p for p in HEADS if p != pair]
    others = sum(d for p, d in zip(HEADS, DIVERGENCES, strict=True) if p in rest)
    value = consistency([one_voxel(p) for p in (pair, *rest)], variant="paper", divisor=1)
    assert float(value) - others == pytest.approx(divergence, abs=2e-6)


def test_urpc_adds_the_rectified_distance():
    # In one voxel the weights exp(-KL) cancel, and the distance of both classes is the same.
    expected = sum(d + (MEAN - p) ** 2 for p, d in zip(HEADS, DIVERGENCES, strict=True)) / 4
    levels = [one_voxel(p) for p in HEADS]
    assert float(consistency(levels, variant="urpc")) == pytest.approx(expected, abs=1e-6)
    assert float(consistency(levels, variant="urpc", divisor=3)) == pytest.approx(expected * 4 / 3, abs=1e-6)


def test_urpc_trusts_certain_voxels_more():
    levels = [level.detach() for level in heads()[:2]]
    first, second = levels[0].softmax(1), F.interpolate(levels[1], size=(4, 5, 6), mode="trilinear").softmax(1)
    mean, expected = (first + second) / 2, 0.0
    for probability in (first, second):
        divergence = (mean * (mean / probability).log()).sum(1, keepdim=True)
        weight = torch.exp(-divergence)
        distance = (mean - probability) ** 2
        expected += float((distance * weight).mean() / (weight.mean() + 1e-8) + divergence.mean()) / 2
    assert float(consistency(levels, variant="urpc")) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("variant", ["paper", "urpc"])
def test_heads_that_agree_cost_nothing(variant):
    level = torch.randn(1, 3, 4, 5, 6)
    assert float(consistency([level, level, level], variant=variant)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("variant", ["paper", "urpc"])
def test_sure_and_contrary_heads_have_finite_gradients(variant):
    logits = torch.tensor([1e4, -1e4]).view(1, 2, 1, 1, 1)
    levels = [logits.requires_grad_(), (-logits.detach()).requires_grad_()]
    consistency(levels, variant=variant).backward()
    assert all(torch.isfinite(gradient(level)).all() for level in levels)


@pytest.mark.parametrize(
    ("weight", "progress", "expected"),
    [
        *zip([0.1] * 5, (0, 0.25, 0.5, 0.75, 1), (0.00067, 0.00601, 0.02865, 0.07316, 0.1), strict=True),
        *zip([0.10086] * 4, (0, 0.5, 0.75, 1), (0.00068, 0.0289, 0.0738, 0.10086), strict=True),
    ],
)
def test_ramp_up_values_are_the_printed_ones(weight, progress, expected):
    assert ramp_up(progress, weight=weight) == pytest.approx(expected, rel=6e-3)


@pytest.mark.parametrize("variant", ["paper", "urpc"])
def test_each_sample_gets_the_loss_of_its_kind(variant):
    levels = heads()
    annotated, whole = known([1, 1], [0, 0]), known([1, 1])
    loss = semi_supervised(SUPERVISED, weight=0.1, variant=variant)
    value = loss(levels, ATOMS, annotated, progress=0.5)
    supervised = SUPERVISED([level[:1] for level in levels], ATOMS[:1], whole)
    unsupervised = consistency([level[1:] for level in levels[:4]], variant=variant)
    torch.testing.assert_close(value, supervised + ramp_up(0.5, weight=0.1) * unsupervised)
    value.backward()
    assert all(gradient(level)[1].any() for level in levels[:4])
    assert not gradient(levels[4]).any()


def test_a_batch_of_one_kind_has_the_loss_of_that_kind():
    levels = heads()
    loss = semi_supervised(SUPERVISED, weight=0.1, variant="paper")
    labelled, unlabelled = known([1, 1], [1, 0]), known([0, 0], [0, 0])
    torch.testing.assert_close(loss(levels, ATOMS, labelled, progress=1.0), SUPERVISED(levels, ATOMS, labelled))
    torch.testing.assert_close(
        loss(levels, torch.full_like(ATOMS, TASK.table.ignored), unlabelled, progress=1.0),
        0.1 * consistency(levels[:4], variant="paper"),
    )


def test_half_precision_heads_are_compared_in_single_precision():
    levels = [level.detach().bfloat16() for level in heads()[:4]]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = consistency(levels, variant="urpc")
    assert torch.equal(value, consistency([level.float() for level in levels], variant="urpc"))


def test_slabs_make_no_difference(monkeypatch):
    levels = heads()[:4]
    results = []
    for slab in (consistency_room.SLAB, 1):
        monkeypatch.setattr(consistency_room, "SLAB", slab)
        value = consistency(levels, variant="urpc")
        results.append((value.detach(), torch.autograd.grad(value, levels)))
    torch.testing.assert_close(results[0], results[1])
