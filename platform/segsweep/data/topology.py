"""How often a U-Net halves each axis of a patch, and how much memory that takes: nnU-Net v2's rules (its experiment planners)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from segsweep.data.geometry import Size, Spacing

# An axis is halved while its size stays at or above this edge.
SMALLEST_EDGE = 4
# Residual blocks of nnU-Net's residual encoder, level by level; deeper levels have as many as the last.
RESIDUAL_BLOCKS = (1, 3, 4, 6)


@dataclass(frozen=True, kw_only=True)
class Topology:
    """One entry a level, full resolution first, axes (z, y, x): stride on entering it, kernel of its convolutions."""

    strides: tuple[Size, ...]
    kernels: tuple[Size, ...]


def topology(patch_size: Size, *, spacing: Spacing, deepest: int = 7) -> Topology:
    """Levels for a patch (voxels z, y, x) at a spacing (mm), at most `deepest` of them.

    Axes with less than twice the finest remaining spacing are halved together. An axis has kernel 1 until its spacing
    comes within factor 2 of the finest, then 3. One axis alone is halved only from three times the smallest edge on.
    """
    size, mm = list(patch_size), list(spacing)
    strides: list[Size] = [(1, 1, 1)]
    kernels: list[Size] = []
    isotropic = [False, False, False]
    while len(strides) < deepest:
        halved = _axes_to_halve(size, mm=mm)
        if not halved:
            break
        isotropic = [done or axis < 2 * min(mm) for done, axis in zip(isotropic, mm, strict=True)]
        kernels.append(_size(3 if done else 1 for done in isotropic))
        strides.append(_size(2 if axis in halved else 1 for axis in range(3)))
        for axis in halved:
            size[axis] = math.ceil(size[axis] / 2)
            mm[axis] *= 2
    kernels.append((3, 3, 3))
    return Topology(strides=tuple(strides), kernels=tuple(kernels))


def divisor(topology: Topology) -> Size:
    """What a patch must be divisible by along (z, y, x)."""
    return _size(math.prod(stride[axis] for stride in topology.strides) for axis in range(3))


def divisible(patch_size: Size, *, topology: Topology) -> Size:
    """The patch (z, y, x), grown to the next size that the topology can halve without remainder."""
    return _size(math.ceil(n / d) * d for n, d in zip(patch_size, divisor(topology), strict=True))


def features(topology: Topology, *, base: int = 32, largest: int = 320) -> tuple[int, ...]:
    """Channels of each level: doubled from `base` on, at most `largest`."""
    return tuple(min(base * 2**level, largest) for level in range(len(topology.strides)))


def feature_map_elements(
    patch_size: Size, *, topology: Topology, outputs: int, residual: bool = False, base: int = 32, largest: int = 320
) -> int:
    """Elements of all feature maps of a U-Net for one patch: nnU-Net's measure of memory.

    Counts the convolutions of encoder and decoder, the transposed ones, and a head with `outputs` channels at every decoder level
    (deep supervision); input channels do not enter. The plain U-Net convolves twice a level on both sides; with a `residual` encoder
    there are a stem, two convolutions a block, and one on the way around a block that halves or widens, and one a decoder level.
    """
    size, total = patch_size, 0
    channels = features(topology, base=base, largest=largest)
    bottleneck = len(channels) - 1
    for level, stride in enumerate(topology.strides):
        size = _size(n // s for n, s in zip(size, stride, strict=True))
        if residual:
            around = level == 0 or stride != (1, 1, 1) or channels[level] != channels[level - 1]  # at level 0, the stem
            encoder = 2 * RESIDUAL_BLOCKS[min(level, len(RESIDUAL_BLOCKS) - 1)] + around
        else:
            encoder = 2
        decoder = (2 if residual else 3) * channels[level] + outputs if level < bottleneck else 0
        total += (encoder * channels[level] + decoder) * math.prod(size)
    return total


def _axes_to_halve(size: list[int], *, mm: list[float]) -> list[int]:
    large = [axis for axis in range(3) if size[axis] >= 2 * SMALLEST_EDGE]
    if not large:
        return []
    finest = min(mm[axis] for axis in large)
    fine = [axis for axis in large if mm[axis] < 2 * finest]
    return [] if len(fine) == 1 and size[fine[0]] < 3 * SMALLEST_EDGE else fine


def _size(values: Iterator[int]) -> Size:
    z, y, x = values
    return z, y, x
