"""Spatial augmentation: rotation, scaling and flips, composed into one resample that reads only the voxels it needs.

Angles and factors act in voxel space, as in nnU-Net (v2, data augmentation). Outside the scan the normalised image and the label are 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segsweep.data.geometry import Size
from segsweep.learning.intensity import is_flat
from segsweep.learning.patches import Region
from segsweep.learning.task import Task

Level = Literal["nnunet", "light", "none"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How far a level turns (degrees either way; `turn_flat` in the slices of flat patches) and scales, each by `probability`."""

    probability: float
    turn: float
    turn_flat: float
    scale: tuple[float, float]


LIMITS: dict[str, Limits] = {
    "nnunet": Limits(probability=0.2, turn=30, turn_flat=180, scale=(0.7, 1.4)),
    "light": Limits(probability=0.2, turn=10, turn_flat=10, scale=(0.9, 1.1)),
}


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Where a patch's voxels come from: flipped per axis, scaled (above 1 shows more of the scan), turned about its centre.

    `angles` (radians, about z, y, x), `scale` and `flips` are in axis order (z, y, x).
    """

    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def resamples(self) -> bool:
        """Whether voxels fall between voxels, so that flipping alone does not do."""
        return any(self.angles) or self.scale != (1.0, 1.0, 1.0)

    @property
    def matrix(self) -> NDArray[np.float64]:
        """3 x 3 (z, y, x): offset from the patch's centre, in voxels, to offset in the scan."""
        matrix = np.eye(3)
        for axis, angle in enumerate(self.angles):
            first, second = (other for other in range(3) if other != axis)
            turn = np.eye(3)
            turn[[first, second], [first, second]] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            matrix = matrix @ turn
        return matrix * np.asarray(self.scale) * np.where(self.flips, -1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A patch as read: `image` (c, z, y, x) float32, normalised; `atoms` (z, y, x) int64."""

    image: Tensor
    atoms: Tensor


@dataclass(frozen=True, kw_only=True)
class Source:
    """The volume that patches are cut from. `read` gives the normalised image and the atoms of a region within `shape`."""

    shape: Size
    read: Callable[[Region], Cut]


def draw_warp(*, level: Level, task: Task, mirror: str, generator: np.random.Generator) -> Warp:
    """Rotation and scaling by their chances, a flip of each axis in `mirror` by one half.

    Left/right flips are left out where the flipped label cannot be written in the task's atoms.
    """
    if level == "none":
        return Warp()
    limits, flat = LIMITS[level], is_flat(task.patch_size)
    angles, scale = (0.0, 0.0, 0.0), 1.0
    if generator.random() < limits.probability:
        reach = math.radians(limits.turn_flat if flat else limits.turn)
        turn = [generator.uniform(-reach, reach) for _ in range(3)]
        angles = (turn[0], 0.0, 0.0) if flat else (turn[0], turn[1], turn[2])
    if generator.random() < limits.probability:
        scale = generator.uniform(*limits.scale)
    axes = _flippable(mirror, task=task)
    flips = [axis in axes and bool(generator.random() < 0.5) for axis in "zyx"]
    return Warp(angles=angles, scale=(1.0 if flat else scale, scale, scale), flips=(flips[0], flips[1], flips[2]))


def cut(source: Source, *, corner: Size, patch_size: Size, warp: Warp) -> Cut:
    """The warped patch whose unwarped lower corner is `corner`; image linear, labels nearest, 0 beyond the scan."""
    if warp.resamples:
        return resampled(source, corner=corner, patch_size=patch_size, warp=warp)
    return _flipped(_padded(source, corner=corner, size=patch_size), flips=warp.flips)


def resampled(source: Source, *, corner: Size, patch_size: Size, warp: Warp) -> Cut:
    """The warped patch in a single resample that reads only the box which the turned patch covers."""
    matrix, extent = warp.matrix, np.asarray(patch_size, dtype=float)
    centre = np.asarray(corner) + (extent - 1) / 2
    half = np.abs(matrix) @ ((extent - 1) / 2)
    lowest, highest = np.floor(centre - half).astype(int), np.ceil(centre + half).astype(int) + 1
    bounds = zip(lowest.tolist(), highest.tolist(), source.shape, strict=True)
    spans = [_within(low, high, length=length) for low, high, length in bounds]
    box = source.read((spans[0], spans[1], spans[2]))
    # Sampling coordinates run from -1 to 1 over the outer faces of the box's voxels (align_corners=False), in order x, y, z.
    length = np.asarray(box.atoms.shape, dtype=float)
    start = np.asarray([span.start for span in spans])
    linear = matrix * extent / length[:, None]
    shift = (2 * (centre - start) + 1) / length - 1
    theta = np.concatenate((linear[::-1, ::-1], shift[::-1, None]), axis=1)
    where = F.affine_grid(torch.from_numpy(theta)[None].float(), [1, 1, *patch_size], align_corners=False)
    image = F.grid_sample(box.image[None], where, mode="bilinear", align_corners=False)[0]
    atoms = F.grid_sample(box.atoms[None, None].float(), where, mode="nearest", align_corners=False)[0, 0]
    return Cut(image=image, atoms=atoms.long())


def swap_sides(patch: Cut, *, task: Task) -> Cut:
    """The label of a left/right flipped patch: paired structures change names."""
    mirrored = task.table.mirrored_atoms
    if mirrored is None:
        return patch
    return Cut(image=patch.image, atoms=torch.tensor((*mirrored, task.table.ignored))[patch.atoms])


def _flippable(mirror: str, *, task: Task) -> str:
    if mirror == "none":
        return ""
    return mirror if task.table.mirrored_atoms is not None else mirror.replace("x", "")


def _flipped(patch: Cut, *, flips: tuple[bool, bool, bool]) -> Cut:
    axes = [axis - 3 for axis in range(3) if flips[axis]]
    return Cut(image=torch.flip(patch.image, axes), atoms=torch.flip(patch.atoms, axes)) if axes else patch


def _padded(source: Source, *, corner: Size, size: Size) -> Cut:
    spans = [_within(low, low + n, length=m) for low, n, m in zip(corner, size, source.shape, strict=True)]
    inside = source.read((spans[0], spans[1], spans[2]))
    gaps = zip(reversed(spans), reversed(corner), reversed(size), strict=True)
    margins = [gap for span, low, n in gaps for gap in (span.start - low, low + n - span.stop)]
    if not any(margins):
        return inside
    return Cut(image=F.pad(inside.image, margins), atoms=F.pad(inside.atoms, margins))


def _within(low: int, high: int, *, length: int) -> slice:
    start = min(max(low, 0), length - 1)
    return slice(start, max(min(high, length), start + 1))
