"""Consistency of the decoder's heads on samples without annotation (Luo et al., MICCAI 2021, URPC; the FLARE22 method of Huang et al.).

Every head is pulled towards the mean of all heads, with a weight that grows over the stage.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from segsweep.learning.losses import SLAB, Loss

Variant = Literal["paper", "urpc"]

EPSILON = 1e-8


def semi_supervised(
    supervised: Loss, *, weight: float, variant: Variant, heads: int = 4, divisor: int | None = None
) -> Loss:
    """`supervised` on what is annotated, plus the ramped-up consistency of the samples in which nothing is.

    The supervised loss must leave samples without annotation out, as every loss of this room does; a batch may hold either kind alone.
    """

    def loss(levels: list[Tensor], atoms: Tensor, annotated: Tensor, *, progress: float = 0.0) -> Tensor:
        value = supervised(levels, atoms, annotated, progress=progress)
        unlabelled = ~annotated.any(1)
        if bool(unlabelled.any()):
            term = consistency([level[unlabelled] for level in levels[:heads]], variant=variant, divisor=divisor)
            value = value + ramp_up(progress, weight=weight) * term
        return value

    return loss


def consistency(levels: list[Tensor], *, variant: Variant, divisor: int | None = None) -> Tensor:
    """How far the heads' softmax outputs lie from their mean, from logits (B, classes, z, y, x), finest first.

    "paper" is KL(mean || head), averaged over voxels and heads. "urpc" adds the squared distance, averaged over classes and over voxels
    weighted by exp(-KL), as the released code. The sum over heads is divided by their number or by `divisor` (FLARE22's code: 3).
    """
    size = levels[0].shape[2:]
    with torch.autocast(levels[0].device.type, enabled=False):
        heads = [_enlarge(level, size=size) for level in levels]
        thickness = max(1, SLAB * size[0] // sum(head.numel() for head in heads))
        slabs = zip(*(head.split(thickness, dim=2) for head in heads), strict=True)
        sums = [checkpoint(_compare, *slab, use_reentrant=False, preserve_rng_state=False) for slab in slabs]
        divergence, certainty, distance = torch.stack(sums).sum(0) / (size.numel() * len(levels[0]))
        terms = divergence if variant == "paper" else divergence + distance / (certainty + EPSILON)
    return terms.sum() / (divisor or len(levels))


def _compare(*heads: Tensor) -> Tensor:
    """(3, heads): KL(mean || head), exp(-KL) and the squared distance weighted by that, summed over the voxels of a slab."""
    scores = torch.stack([torch.log_softmax(head.float(), dim=1) for head in heads])
    probabilities = scores.exp()
    mean, mean_score = probabilities.mean(0), scores.logsumexp(0) - math.log(len(heads))
    divergence = (mean * (mean_score - scores)).sum(2)
    certainty = torch.exp(-divergence)
    distance = ((mean - probabilities) ** 2).mean(2) * certainty
    return torch.stack([voxels.flatten(1).sum(1) for voxels in (divergence, certainty, distance)])


def ramp_up(progress: float, *, weight: float) -> float:
    """The sigmoid-shaped rise to `weight` over the stage: weight exp(-5 (1 - progress)^2) (Laine 2017)."""
    return weight * math.exp(-5 * (1 - progress) ** 2)


def _enlarge(logits: Tensor, *, size: torch.Size) -> Tensor:
    return logits if logits.shape[2:] == size else F.interpolate(logits.float(), size=size, mode="trilinear")
