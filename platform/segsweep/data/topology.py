"""How often a U-Net halves each axis of a patch, and how much memory that takes: nnU-Net's rules (METHODS.md 1.6)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from segsweep.data.geometry import Size, Spacing

# An axis is halved while its size stays at or above this edge.
SMALLEST_EDGE = 4


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
    patch_size: Size, *, topology: Topology, outputs: int, base: int = 32, largest: int = 320
) -> int:
    """Elements of all feature maps of the plain U-Net for one patch: nnU-Net's measure of memory.

    Counts two convolutions a level in the encoder and in the decoder, the transposed convolutions, and a head with
    `outputs` channels at every decoder level (deep supervision). Input channels do not enter.
    """
    size, total = patch_size, 0
    channels = features(topology, base=base, largest=largest)
    bottleneck = len(channels) - 1
    for level, stride in enumerate(topology.strides):
        size = _size(n // s for n, s in zip(size, stride, strict=True))
        encoder = 2 * channels[level]
        decoder = 3 * channels[level] + outputs if level < bottleneck else 0
        total += (encoder + decoder) * math.prod(size)
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
