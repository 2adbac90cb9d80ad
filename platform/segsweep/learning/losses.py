"""The losses of both heads, with deep supervision, and what is not annotated left out (nnU-Net v2; HUST's SegRap2023 poster).

A sigmoid output whose structure is not annotated in a sample gets exactly zero gradient from that sample, and every output does from
an ignored voxel. For a softmax head, atoms that the sample's annotation cannot tell apart are merged (their probabilities added)
before the loss. Under DDP every sum runs over all ranks, so that the gradient is that of one big batch; only the hardest voxels of
top-k are chosen by each rank among its own, as nnU-Net does.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, distributed
from torch.utils.checkpoint import checkpoint

from segsweep.data.structures import LabelTable
from segsweep.errors import RecipeError, unknown
from segsweep.learning.params import LossName
from segsweep.learning.supervision import NNUNET, Supervision, shrink
from segsweep.learning.task import Head, Task

SMOOTH = 1e-5
# Below half a voxel of any real volume: where nothing is predicted and nothing true, 0 is divided by it.
LEAST_VOLUME = 5e-8
# Logits that are scored at a time; what they are scored with takes about ten times their memory.
SLAB = 1 << 22
VOXELS = (2, 3, 4)


class Loss(Protocol):
    """`levels` (B, outputs, z, y, x) logits, finest first; `atoms` (B, z, y, x), ignored voxels too; `annotated` (B, structures);
    `progress` the share of the stage's epochs that are over (0 to 1)."""

    def __call__(self, levels: list[Tensor], atoms: Tensor, annotated: Tensor, *, progress: float = 0.0) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What tells the losses apart: `voxelwise` times the cross-entropy plus `overlap` times the Tversky index, negated.

    `gamma` is focal's, and `hardest` the share of the voxels (of an output, over the batch) whose cross-entropy counts. `alpha` weighs
    false positives and `beta` false negatives: 0.5 both is Dice. `offset` 0 is nnU-Net's Dice in [-1, 0], 1 the printed 1 - Dice in
    [0, 1]; `background` (softmax only) is the background's part in it. `reduction` "mean" is over voxels, samples and outputs; with
    "sum" the voxels' means and the batch Dice are added over what is annotated.
    """

    voxelwise: float = 1.0
    overlap: float = 1.0
    gamma: float = 0.0
    hardest: float = 1.0
    alpha: float = 0.5
    beta: float = 0.5
    smooth: float = SMOOTH
    offset: float = 0.0
    background: bool = False
    reduction: Literal["mean", "sum"] = "mean"


# dice_ce, dice_topk: nnU-Net v2. dice_focal: HUST's poster. tversky: Salehi 2017. focal: Lin 2017, without class weights. dice: all
# classes, as FLARE24's phased ResUNet. multitalent: Ulrich 2023, where a class weighs the same however many share the batch.
RECIPES: dict[LossName, Recipe] = {
    "dice_ce": Recipe(),
    "dice_focal": Recipe(gamma=2.0, offset=1.0, background=True),
    "dice_topk": Recipe(hardest=0.1),
    "ce": Recipe(overlap=0.0),
    "focal": Recipe(overlap=0.0, gamma=2.0),
    "dice": Recipe(voxelwise=0.0, offset=1.0, background=True),
    "tversky": Recipe(voxelwise=0.0, offset=1.0, background=True, alpha=0.3, beta=0.7),
    "multitalent": Recipe(smooth=0.0, reduction="sum"),
}


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Sums over voxels.

    `losses` (B, n) is the loss of the voxels that count, and `counted` (B, n) their number. `volumes` (3, B, outputs) holds soft
    intersection, predicted and true volume.
    """

    losses: Tensor
    counted: Tensor
    volumes: Tensor


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What a level is compared with: `atoms` (B, z, y, x), and what of it is known.

    `kept` (B, n) says which rows of the voxelwise loss count and `compared` (B, outputs) which outputs are compared; `groups`
    (B, atoms) is what `groups_of` gives, and `merged` whether any atom is not its own.
    """

    atoms: Tensor
    kept: Tensor
    compared: Tensor
    groups: Tensor
    merged: bool
    table: LabelTable


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A slab of a level: voxelwise `losses` (B, n, z, y, x) and where they are `known` (B, 1, z, y, x); `predicted` and `true`
    (B, outputs, z, y, x), 0 where nothing is known."""

    losses: Tensor
    known: Tensor
    predicted: Tensor
    true: Tensor


def build_loss(name: LossName | Recipe, *, task: Task, batch_dice: bool, supervision: Supervision = NNUNET) -> Loss:
    """The named loss, or one of a recipe's own making, for the task's head.

    `batch_dice` pools the Dice sums over the batch ("sum" losses always do). Raises RecipeError for an unknown name.
    """
    if not isinstance(name, Recipe) and name not in RECIPES:
        raise RecipeError(unknown(name, kind="losses", known=RECIPES))
    recipe = name if isinstance(name, Recipe) else RECIPES[name]

    def loss(levels: list[Tensor], atoms: Tensor, annotated: Tensor, *, progress: float = 0.0) -> Tensor:  # noqa: ARG001
        total = torch.zeros((), device=atoms.device)
        # Half precision is left here: sums of a million voxels need the single one.
        with torch.autocast(atoms.device.type, enabled=False):
            for logits, weight in zip(levels, supervision.weights(len(levels)), strict=True):
                if weight > 0:
                    target = shrink(atoms, shape=logits.shape[2:])
                    annotation = _annotation(target, annotated=annotated, task=task, recipe=recipe)
                    terms = _level_terms(logits, annotation=annotation, head=task.head, recipe=recipe)
                    total = total + weight * _combine(
                        terms, annotation=annotation, recipe=recipe, batch_dice=batch_dice
                    )
                else:
                    # In the graph with zero gradient: DDP refuses parameters that the loss never saw.
                    total = total + logits.flatten()[0].float() * 0.0
        return total

    return loss


def tversky(
    intersection: Tensor,
    *,
    predicted: Tensor,
    true: Tensor,
    alpha: float = 0.5,
    beta: float = 0.5,
    smooth: float = SMOOTH,
) -> Tensor:
    """TP / (TP + alpha FP + beta FN) of soft volumes; alpha = beta = 0.5 is Dice with nnU-Net's smoothing 1e-5."""
    weighed = intersection + alpha * (predicted - intersection) + beta * (true - intersection)
    return (intersection + smooth / 2) / (weighed + smooth / 2).clamp(min=LEAST_VOLUME)


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


def _annotation(atoms: Tensor, *, annotated: Tensor, task: Task, recipe: Recipe) -> Annotation:
    seen = (atoms != task.table.ignored).flatten(1).any(1, keepdim=True)
    groups = groups_of(annotated, table=task.table)
    own = groups == torch.arange(groups.shape[1], device=groups.device)
    kept = compared = annotated & seen
    if task.head == "softmax":
        # One group only: the annotation tells nothing apart, so nothing can be learned from the sample.
        kept = seen & (own.sum(1, keepdim=True) > 1)
        compared = kept & own
        compared[:, 0] &= recipe.background
    return Annotation(
        atoms=atoms, kept=kept, compared=compared, groups=groups, merged=not bool(own.all()), table=task.table
    )


def _level_terms(logits: Tensor, *, annotation: Annotation, head: Head, recipe: Recipe) -> Terms:
    """A slab at a time, scored once more in the backward pass: no float of the whole level is kept but the logits' gradient."""
    score = _softmax_slab if head == "softmax" else _sigmoid_slab
    thickness = max(1, SLAB * logits.shape[2] // max(1, logits.numel()))
    slabs = list(zip(logits.split(thickness, dim=2), annotation.atoms.split(thickness, dim=1), strict=True))
    floor = None
    if recipe.hardest < 1:
        with torch.no_grad():
            scored = (score(part, atoms=atoms, annotation=annotation, recipe=recipe) for part, atoms in slabs)
            losses = torch.cat([slab.losses.where(slab.known, -1) for slab in scored], dim=2)
            floor = _floor(losses, kept=annotation.kept, share=recipe.hardest)

    def terms(part: Tensor, atoms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scored = score(part, atoms=atoms, annotation=annotation, recipe=recipe)
        return _sums(scored, kept=annotation.kept, floor=floor)

    parts = [checkpoint(terms, *slab, use_reentrant=False, preserve_rng_state=False) for slab in slabs]
    losses, counted, volumes = (torch.stack(sums).sum(0) for sums in zip(*parts, strict=True))
    return Terms(losses=losses, counted=counted, volumes=volumes)


def _sigmoid_slab(logits: Tensor, *, atoms: Tensor, annotation: Annotation, recipe: Recipe) -> Scored:
    logits = logits.float()
    # Floats, for a product with a mask of booleans takes ten times as long.
    membership = _membership(annotation.table, like=logits).T.to(logits.dtype)
    true = membership.index_select(1, atoms.flatten()).unflatten(1, atoms.shape).transpose(0, 1)
    losses = F.softplus(logits * (1 - 2 * true))
    known = (atoms != annotation.table.ignored).unsqueeze(1)
    return Scored(
        losses=focal(losses, gamma=recipe.gamma),
        known=known,
        predicted=torch.sigmoid(logits) * known,
        true=true,
    )


def _softmax_slab(logits: Tensor, *, atoms: Tensor, annotation: Annotation, recipe: Recipe) -> Scored:
    scores = torch.log_softmax(logits.float(), dim=1)
    known = (atoms != annotation.table.ignored).unsqueeze(1)
    target = atoms.unsqueeze(1) * known  # an index is needed where nothing counts, too
    if annotation.merged:
        groups = annotation.groups
        scores = torch.stack([_merge(sample, groups=group) for sample, group in zip(scores, groups, strict=True)])
        target = groups.gather(1, target.flatten(1)).view_as(target)
    return Scored(
        losses=focal(-scores.gather(1, target), gamma=recipe.gamma),
        known=known,
        predicted=scores.exp() * known,
        true=torch.zeros_like(scores).scatter_(1, target, known.to(scores.dtype)),
    )


def _sums(scored: Scored, *, kept: Tensor, floor: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """The three tensors of Terms, over one slab; `floor` (n) is the least loss that counts."""
    losses, counts = scored.losses, scored.known
    if floor is not None:
        counts = counts & (losses >= floor.view(1, -1, 1, 1, 1))
    volumes = (scored.predicted * scored.true, scored.predicted, scored.true)
    sums = [volume.sum(VOXELS) for volume in volumes]
    return (losses * counts).sum(VOXELS) * kept, counts.sum(VOXELS) * kept.to(losses.dtype), torch.stack(sums)


def _floor(losses: Tensor, *, kept: Tensor, share: float) -> Tensor:
    """(n): the least loss among the `share` of hardest voxels of the batch, from (B, n, z, y, x) with -1 where nothing is known."""
    rows = losses.where(kept[:, :, None, None, None], -1).transpose(0, 1).flatten(1)
    counted = (rows >= 0).sum(1).tolist()
    return torch.stack([row.topk(max(1, int(share * n))).values[-1] for row, n in zip(rows, counted, strict=True)])


def _combine(terms: Terms, *, annotation: Annotation, recipe: Recipe, batch_dice: bool) -> Tensor:
    if recipe.reduction == "sum":
        voxelwise = _over_ranks((terms.losses / terms.counted.clamp(min=1)).sum())
    else:
        voxelwise = _over_ranks(terms.losses.sum()) / _over_ranks(terms.counted.sum()).clamp(min=1)
    overlap = _overlap(terms.volumes, compared=annotation.compared, recipe=recipe, batch_dice=batch_dice)
    return recipe.voxelwise * voxelwise + recipe.overlap * overlap


def _overlap(volumes: Tensor, *, compared: Tensor, recipe: Recipe, batch_dice: bool) -> Tensor:
    volumes, weights = volumes * compared, compared.to(volumes.dtype)
    pooled = batch_dice or recipe.reduction == "sum"
    if pooled:
        volumes, weights = _over_ranks(volumes.sum(1)), _over_ranks(weights.sum(0)).clamp(max=1)
    index = tversky(
        volumes[0], predicted=volumes[1], true=volumes[2], alpha=recipe.alpha, beta=recipe.beta, smooth=recipe.smooth
    )
    added, number = ((recipe.offset - index) * weights).sum(), weights.sum()
    if not pooled:
        added, number = _over_ranks(added), _over_ranks(number)
    return added if recipe.reduction == "sum" else added / number.clamp(min=1)


class _RankSum(torch.autograd.Function):
    """The sum over all ranks. Backward sums the gradients too, so that DDP's mean over ranks leaves that of one big batch."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        total = values.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _RankSum.forward(ctx, gradients[0].contiguous())


def _over_ranks(values: Tensor) -> Tensor:
    return _RankSum.apply(values) if distributed.is_available() and distributed.is_initialized() else values


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
