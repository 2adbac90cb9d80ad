"""Logits of a whole scan from overlapping patches, weighted towards each patch's centre, with optional flips (nnU-Net v2, inference).

They come slice by slice: patches go through the scan from its lowest slice to its highest, so that a slice which no later patch
touches is done. Only as many slices as a patch is deep are held at once, however tall the scan.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segsweep.data.geometry import Size
from segsweep.errors import InputError, ModelError
from segsweep.learning.precision import Precision, computing

AXES = "zyx"
# Patches per pass. Not 1: on a CPU torch convolves a batch of one 3 to 6 times slower per patch than a batch of two.
TOGETHER = 2


def predict_planes(
    model: nn.Module,
    image_CZYX: Tensor,
    *,
    patch_size: Size,
    overlap: float = 0.5,
    mirror: str = "none",
    mirrored_outputs: tuple[int, ...] | None = None,
    precision: Precision = "float32",
) -> Iterator[Tensor]:
    """Logits (k, y, x) of each slice z of the image's grid, float32, on the image's device; the model runs where its weights are.

    `overlap` is the share of a patch that the next one covers again. `mirror` names the axes ("zyx", "x", ... or "none") over
    whose flips logits are averaged; after a flip of x `mirrored_outputs` brings paired structures back, and without it x is left
    out. Sums are float32 in every precision. Raises ModelError when logits are not finite: labels made of them would mean nothing.
    """
    flips = flip_sets(mirror, mirrored_outputs=mirrored_outputs)
    if not 0.0 <= overlap < 1.0:
        raise InputError(f"overlap={overlap} cannot be used: expected a share from 0 to below 1")
    num_slices, *plane = image_CZYX.shape[1:]
    before = [max(0, patch - n) // 2 for patch, n in zip(patch_size, image_CZYX.shape[1:], strict=True)]
    y, x = (slice(low, low + n) for low, n in zip(before[1:], plane, strict=True))
    image_CZYX = _pad(image_CZYX, before=before, patch_size=patch_size)
    weight = importance(patch_size)
    corners = tiles(_size(image_CZYX), patch_size=patch_size, overlap=overlap)
    device = next((parameter.device for parameter in model.parameters()), image_CZYX.device)

    def apply(patch_BCZYX: Tensor) -> Tensor:
        # The mode is left before anything is handed over: a generator would leave it on for whoever asks.
        with torch.inference_mode(), computing(precision, device=device):
            return _mean_over_flips(model, patch_BCZYX.to(device), flips=flips, mirrored_outputs=mirrored_outputs)

    sums: deque[_Sum] = deque()
    where: torch.device | None = None
    # The image's slice that the lowest sum is of: below 0 where the image is less deep than a patch.
    first = -before[0]
    for corner, logits in _patches(image_CZYX, corners=corners, patch_size=patch_size, apply=apply):
        while first < corner[0] - before[0]:
            yield sums.popleft().mean(first)[:, y, x].to(image_CZYX.device)
            first += 1
        where = where or place_of_sums(logits, plane=_size(image_CZYX)[1:], beside=image_CZYX.device)
        weight = weight.to(where)
        outputs, missing = len(logits), patch_size[0] - len(sums)
        sums.extend(_Sum.empty(outputs, plane=_size(image_CZYX)[1:], device=where) for _ in range(missing))
        weighted = logits.to(where) * weight
        _, *at = _region(corner, patch_size=patch_size)
        for index, one in enumerate(sums):
            one.total[(slice(None), *at)] += weighted[:, index]
            one.weights[tuple(at)] += weight[index]
    for index in range(max(first, 0), num_slices):
        yield sums[index - first].mean(index)[:, y, x].to(image_CZYX.device)


def place_of_sums(logits_KZYX: Tensor, *, plane: tuple[int, int], beside: torch.device) -> torch.device:
    """Where slices (y, x) are added up: on the GPU that the logits of patches lie on, if a third of what is free there holds them.

    Else `beside` the image: a processor adds up slowly, and every patch has to go there first.
    """
    if not logits_KZYX.is_cuda:
        return beside
    needed = 4 * (len(logits_KZYX) + 1) * logits_KZYX.shape[1] * math.prod(plane)
    free, _ = torch.cuda.mem_get_info(logits_KZYX.device)
    return logits_KZYX.device if 3 * needed < free else beside


@dataclass(frozen=True, kw_only=True)
class _Sum:
    """Of one slice: weighted logits (k, y, x) and weights (y, x), summed over patches."""

    total: Tensor
    weights: Tensor

    @classmethod
    def empty(cls, outputs: int, *, plane: tuple[int, int], device: torch.device) -> "_Sum":
        return cls(total=torch.zeros((outputs, *plane), device=device), weights=torch.zeros(plane, device=device))

    def mean(self, index: int) -> Tensor:
        mean = self.total.div_(self.weights)
        if not math.isfinite(mean.sum()):
            raise ModelError(
                f"the model's logits are not all finite (slice {index} of its grid); expected finite numbers; "
                "compute in float32, or train the model again"
            )
        return mean


def _patches(
    image_CZYX: Tensor, *, corners: list[Size], patch_size: Size, apply: Callable[[Tensor], Tensor]
) -> Iterator[tuple[Size, Tensor]]:
    """Each corner with its patch's logits (k, z, y, x), in order, where the model left them."""
    for first in range(0, len(corners), TOGETHER):
        chosen = corners[first : first + TOGETHER]
        patches = [image_CZYX[(slice(None), *_region(corner, patch_size=patch_size))] for corner in chosen]
        patches += patches[:1] * (TOGETHER - len(patches))
        yield from zip(chosen, apply(torch.stack(patches)), strict=False)


def tiles(size: Size, *, patch_size: Size, overlap: float) -> list[Size]:
    """Lowest corners of patches that cover a volume at least as large as one: evenly spaced along each axis, both ends included."""
    starts = []
    for n, patch in zip(size, patch_size, strict=True):
        # At least one voxel onward, so that tiny patches with much overlap still advance.
        count = math.ceil((n - patch) / max(1.0, patch * (1 - overlap))) + 1
        step = (n - patch) / (count - 1) if count > 1 else 0.0
        starts.append([round(index * step) for index in range(count)])
    return list(itertools.product(*starts))


def importance(patch_size: Size) -> Tensor:
    """Gaussian (z, y, x), sigma an eighth of the patch, highest value 1; zeros become the smallest value above zero."""
    axes = []
    for n in patch_size:
        distance = torch.arange(n, dtype=torch.float64) - (n - 1) / 2
        axes.append(torch.exp(-0.5 * (distance / (n / 8)) ** 2))
    weight = (axes[0][:, None, None] * axes[1][:, None] * axes[2]).float()
    weight /= weight.max()
    weight[weight == 0] = weight[weight > 0].min()
    return weight


def flip_sets(mirror: str, *, mirrored_outputs: tuple[int, ...] | None) -> list[tuple[int, ...]]:
    """Every combination of the named axes, the empty one first, as dimensions of a (b, c, z, y, x) array."""
    if mirror != "none" and (not mirror or set(mirror) - set(AXES) or len(set(mirror)) != len(mirror)):
        raise InputError(f"mirror={mirror!r} cannot be used: expected 'none' or axes out of 'zyx', such as 'zy'")
    allowed = [axis for axis in AXES if mirror != "none" and axis in mirror and (axis != "x" or mirrored_outputs)]
    dimensions = [2 + AXES.index(axis) for axis in allowed]
    return [chosen for count in range(len(dimensions) + 1) for chosen in itertools.combinations(dimensions, count)]


def _region(corner: Size, *, patch_size: Size) -> tuple[slice, ...]:
    return tuple(slice(low, low + patch) for low, patch in zip(corner, patch_size, strict=True))


def _mean_over_flips(
    model: nn.Module, patch_BCZYX: Tensor, *, flips: list[tuple[int, ...]], mirrored_outputs: tuple[int, ...] | None
) -> Tensor:
    total = None
    for chosen in flips:
        logits = model(patch_BCZYX.flip(chosen) if chosen else patch_BCZYX)[0].float()
        if chosen:
            logits = logits.flip(chosen)
        if 4 in chosen and mirrored_outputs is not None:
            logits = logits[:, list(mirrored_outputs)]
        total = logits if total is None else total + logits
    assert total is not None  # `flips` always holds the empty combination
    return total / len(flips)


def _pad(image_CZYX: Tensor, *, before: list[int], patch_size: Size) -> Tensor:
    """Zeros on both sides until every axis holds a patch; `before` counts those on the lower side."""
    margins: list[int] = []
    for low, n, patch in zip(before, image_CZYX.shape[1:], patch_size, strict=True):
        margins = [low, max(0, patch - n) - low, *margins]  # torch lists the last axis first
    return F.pad(image_CZYX.float(), margins) if any(margins) else image_CZYX.float()


def _size(image_CZYX: Tensor) -> Size:
    _, z, y, x = image_CZYX.shape
    return z, y, x
