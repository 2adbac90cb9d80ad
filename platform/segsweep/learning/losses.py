"""The losses of both heads, with deep supervision, and what is not annotated left out (nnU-Net v2; HUST's SegRap2023 poster).

A sigmoid output whose structure is not annotated in a sample gets exactly zero gradient from that sample, and every output does from
an ignored voxel. For a softmax head, atoms that the sample's annotation cannot tell apart are merged (their probabilities added)
before the loss.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.distributed.nn.functional import all_reduce

from segsweep.data.structures import LabelTable
from segsweep.errors import RecipeError, unknown
from segsweep.learning.supervision import shrink, supervision_weights
from segsweep.learning.task import Task

LossName = Literal["dice_ce", "dice_focal"]

SMOOTH = 1e-5
# Below one voxel of the largest patch: where nothing counts, 0 is divided by it.
LEAST_SHARE = 1e-12


class Loss(Protocol):
    """`levels` (B, outputs, z, y, x) logits, finest first; `atoms` (B, z, y, x), ignored voxels too; `annotated` (B, structures);
    `progress` the share of the stage's epochs that are over (0 to 1)."""

    def __call__(self, levels: list[Tensor], atoms: Tensor, annotated: Tensor, *, progress: float = 0.0) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What tells the losses apart. `offset` 0 is nnU-Net's Dice in [-1, 0], 1 the printed 1 - Dice in [0, 1]."""

    gamma: float
    offset: float
    background: bool


RECIPES: dict[str, Recipe] = {
    "dice_ce": Recipe(gamma=0.0, offset=0.0, background=False),
    "dice_focal": Recipe(gamma=2.0, offset=1.0, background=True),
}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """One level before averaging.

    `voxelwise` (B, n) is the loss of the voxels that count over the number of all, and `counted` (B, n) the share of voxels that count.
    `sums` (3, B, outputs) holds soft intersection, predicted and true volume in voxels, and `compared` (B, outputs) whether they count.
    """

    voxelwise: Tensor
    counted: Tensor
    sums: Tensor
    compared: Tensor


def build_loss(name: LossName, *, task: Task, batch_dice: bool) -> Loss:
    """The named loss for the task's head. `batch_dice` pools the Dice sums over the batch, and over ranks under DDP."""
    if name not in RECIPES:
        raise RecipeError(unknown(name, kind="losses", known=RECIPES))
    recipe = RECIPES[name]
    terms_of = _softmax_terms if task.head == "softmax" else _sigmoid_terms

    def loss(levels: list[Tensor], atoms: Tensor, annotated: Tensor, *, progress: float = 0.0) -> Tensor:  # noqa: ARG001
        # A level of weight 0 stays in the graph with zero gradient: DDP refuses parameters that the loss never saw.
        total = sum((logits.flatten()[0].float() * 0.0 for logits in levels), torch.zeros((), device=atoms.device))
        for logits, weight in zip(levels, supervision_weights(len(levels)), strict=True):
            if weight > 0:
                target = shrink(atoms, shape=logits.shape[2:])
                terms = terms_of(logits.float(), atoms=target, annotated=annotated, table=task.table, recipe=recipe)
                total = total + weight * _combine(terms, offset=recipe.offset, batch_dice=batch_dice)
        return total

    return loss


def tversky(intersection: Tensor, *, predicted: Tensor, true: Tensor, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    """TP / (TP + alpha FP + beta FN) of soft volumes; alpha = beta = 0.5 is Dice with nnU-Net's smoothing 1e-5."""
    weighed = intersection + alpha * (predicted - intersection) + beta * (true - intersection)
    return (intersection + SMOOTH / 2) / (weighed + SMOOTH / 2)


def focal(cross_entropy: Tensor, *, gamma: float) -> Tensor:
    """(1 - p)^gamma (-log p) from -log p of the true class; gamma 0 is cross-entropy itself (Lin 2017, unweighted)."""
    return cross_entropy if gamma == 0 else (1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy


def dice_counts(logits: Tensor, *, atoms: Tensor, annotated: Tensor, task: Task) -> Tensor:
    """(structures, 3) int64: true positive, false positive, false negative voxels of the hard prediction.

    `logits` are those of full resolution. A sample counts only for the structures annotated in it, and without its ignored voxels. The
    counts of batches add up to those of the pseudo-Dice.
    """
    membership, known = _membership(task.table, like=logits), atoms != task.table.ignored
    chosen = logits.argmax(1) if task.head == "softmax" else None
    rows = []
    for structure in range(membership.shape[1]):
        inside = membership[:, structure]
        true = inside[atoms]
        predicted = known & (logits[:, structure] > 0 if chosen is None else inside[chosen])
        voxels = torch.stack((true & predicted, ~true & predicted, true & ~predicted))
        rows.append((voxels.flatten(2).sum(2) * annotated[:, structure]).sum(1))
    return torch.stack(rows)


def _combine(terms: Terms, *, offset: float, batch_dice: bool) -> Tensor:
    voxelwise = terms.voxelwise.sum() / terms.counted.sum().clamp(min=LEAST_SHARE)
    sums, compared = terms.sums * terms.compared, terms.compared
    if batch_dice:
        sums, compared = _over_ranks(sums.sum(1)), _over_ranks(compared.sum(0)).clamp(max=1)
    overlap = offset - tversky(sums[0], predicted=sums[1], true=sums[2])
    return voxelwise + (overlap * compared).sum() / compared.sum().clamp(min=1)


def _over_ranks(values: Tensor) -> Tensor:
    # Backward sums the gradients of all ranks, so that DDP's mean over ranks leaves the gradient of one big batch.
    return all_reduce(values) if distributed.is_available() and distributed.is_initialized() else values


def _sigmoid_terms(logits: Tensor, *, atoms: Tensor, annotated: Tensor, table: LabelTable, recipe: Recipe) -> Terms:
    membership = _membership(table, like=logits).T.to(logits.dtype)
    true = torch.stack([row[atoms] for row in membership], dim=1)
    losses = focal(F.binary_cross_entropy_with_logits(logits, true, reduction="none"), gamma=recipe.gamma)
    known = (atoms != table.ignored).unsqueeze(1)
    return _terms(losses, known=known, kept=annotated, probabilities=torch.sigmoid(logits), true=true)


def _softmax_terms(logits: Tensor, *, atoms: Tensor, annotated: Tensor, table: LabelTable, recipe: Recipe) -> Terms:
    groups = groups_of(annotated, table=table)
    leading = groups == torch.arange(groups.shape[1], device=groups.device)
    scores = torch.log_softmax(logits, dim=1)
    known = (atoms != table.ignored).unsqueeze(1)
    target = atoms.unsqueeze(1) * known  # an index is needed where nothing counts, too
    if not bool(leading.all()):
        scores = torch.stack([_merge(sample, groups=group) for sample, group in zip(scores, groups, strict=True)])
        target = groups.gather(1, target.flatten(1)).view_as(target)
    losses = focal(-scores.gather(1, target), gamma=recipe.gamma)
    hot = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, target, known)
    # One group only: the annotation tells nothing apart, so nothing can be learned from the sample.
    kept = leading.sum(1, keepdim=True) > 1
    terms = _terms(losses, known=known, kept=kept, probabilities=scores.exp(), true=hot)
    compared = terms.compared * leading
    if not recipe.background:
        compared[:, 0] = 0
    return dataclasses.replace(terms, compared=compared)


def _terms(losses: Tensor, *, known: Tensor, kept: Tensor, probabilities: Tensor, true: Tensor) -> Terms:
    """Terms over the voxels of `known` (B, 1, z, y, x), in the samples and outputs of `kept` (B, n); `true` holds no other voxel."""
    share = known.flatten(2).to(losses.dtype).mean(2)
    volumes = (probabilities * true, probabilities * known, true)
    return Terms(
        voxelwise=(losses * known).flatten(2).mean(2) * kept,
        counted=kept * share,
        sums=torch.stack([volume.flatten(2).sum(2).to(losses.dtype) for volume in volumes]),
        compared=(kept * (share > 0)).to(losses.dtype),
    )


def groups_of(annotated: Tensor, *, table: LabelTable) -> Tensor:
    """(B, atoms): for each atom the first that the sample's annotation cannot tell it from (often itself)."""
    rows = []
    for known in annotated.cpu().numpy():
        unique = np.unique(table.membership & known, axis=0, return_index=True, return_inverse=True)
        rows.append(unique[1][unique[2].ravel()])
    return torch.as_tensor(np.stack(rows), dtype=torch.int64, device=annotated.device)


def _merge(scores: Tensor, *, groups: Tensor) -> Tensor:
    """Log-probabilities (atoms, z, y, x) with each group's sum at its first atom, and minus infinity at the others."""
    leaders = groups.tolist()
    empty = torch.full_like(scores[0], -torch.inf)
    channels = []
    for atom in range(len(leaders)):
        members = [value for value, leader in enumerate(leaders) if leader == atom]
        channels.append(torch.logsumexp(scores[members], dim=0) if members else empty)
    return torch.stack(channels)


def _membership(table: LabelTable, *, like: Tensor) -> Tensor:
    """(atoms + 1, structures): what each value belongs to; the last one is that of ignored voxels, which belong to nothing."""
    return torch.as_tensor(np.pad(table.membership, ((0, 1), (0, 0))), device=like.device)
