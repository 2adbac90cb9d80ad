"""Spatial augmentation: rotation, scaling and flips, composed into one resample that reads only the voxels it needs.

Angles and factors act in voxel space, as in nnU-Net (v2, data augmentation). Outside the scan the normalised image and the label are 0.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from segsweep.data.geometry import Size
from segsweep.data.structures import LabelTable
from segsweep.learning.buffers import empty
from segsweep.learning.intensity import Level, is_flat
from segsweep.learning.patches import Region
from segsweep.learning.supervision import shrink
from segsweep.learning.task import Task


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
    # The printed range of scales; chances and angles, which are not printed, are nnU-Net's.
    "flare22": Limits(probability=0.2, turn=30, turn_flat=180, scale=(0.6, 1.8)),
    "flips": Limits(probability=0.0, turn=0, turn_flat=0, scale=(1.0, 1.0)),
}


@dataclass(frozen=True, kw_only=True)
class Warp:
    """Where a patch's voxels come from: scaled (above 1 shows more of the scan), turned about its centre, flipped at last.

    `angles` (radians, about z, y, x), `scale` and `flips` are in axis order (z, y, x).
    """

    angles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def keeps_slices(self) -> bool:
        """Whether each slice of the patch comes from one slice of the scan."""
        return not any(self.angles[1:]) and self.scale[0] == 1.0

    @property
    def matrix(self) -> NDArray[np.float64]:
        """3 x 3 (z, y, x): offset from the patch's centre before flips, in voxels, to offset in the scan; about z first, x last."""
        matrix = np.eye(3)
        for axis, angle in enumerate(self.angles):
            first, second = (other for other in range(3) if other != axis)
            turn = np.eye(3)
            turn[[first, second], [first, second]] = math.cos(angle)
            turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
            matrix = turn @ matrix
        return matrix * np.asarray(self.scale)


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A patch as read: `image` (c, z, y, x) float32, normalised; `atoms` (z, y, x) uint8 or int32."""

    image: Tensor
    atoms: Tensor


@dataclass(frozen=True, kw_only=True)
class Source:
    """The volume that patches are cut from. `read` gives the normalised image and the atoms of a region within `shape`."""

    shape: Size
    read: Callable[[Region], Cut]


def draw_warp(*, level: Level, task: Task, mirror: str, generator: np.random.Generator) -> Warp:
    """Rotation and scaling by their chances, a flip of each axis in `mirror` by one half; nothing at level "none".

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
    make = turned if any(warp.angles) else scaled
    return _flipped(make(source, corner=corner, patch_size=patch_size, warp=warp), flips=warp.flips)


def scaled(source: Source, *, corner: Size, patch_size: Size, warp: Warp) -> Cut:
    """The patch without turn and flips: the box of whole voxels next to the drawn scale, fitted to the patch's size."""
    size = [max(1, round(n * scale)) for n, scale in zip(patch_size, warp.scale, strict=True)]
    lowest = [low + (n - m) // 2 for low, n, m in zip(corner, patch_size, size, strict=True)]
    box = _padded(source, corner=(lowest[0], lowest[1], lowest[2]), size=(size[0], size[1], size[2]))
    if tuple(size) == patch_size:
        return box
    image = F.interpolate(box.image[None], size=patch_size, mode="trilinear")[0]
    return Cut(image=image, atoms=shrink(box.atoms[None], shape=patch_size)[0])


def turned(source: Source, *, corner: Size, patch_size: Size, warp: Warp) -> Cut:
    """The patch without flips, in a single resample that reads only the box which the turned patch covers."""
    matrix, extent = warp.matrix, np.asarray(patch_size, dtype=float)
    centre = np.asarray(corner) + (extent - 1) / 2
    half = np.abs(matrix) @ ((extent - 1) / 2)
    lowest, highest = np.floor(centre - half).astype(int), np.ceil(centre + half).astype(int) + 1
    bounds = zip(lowest.tolist(), highest.tolist(), source.shape, strict=True)
    spans = [_within(low, high, length=length) for low, high, length in bounds]
    box = source.read((spans[0], spans[1], spans[2]))
    # Voxel of the box that the patch's first voxel shows.
    first = centre - [span.start for span in spans] - matrix @ ((extent - 1) / 2)
    sample = _linear_in_slices if warp.keeps_slices else _linear
    return Cut(
        image=sample(box.image, matrix=matrix, first=first, size=patch_size),
        atoms=_nearest(box.atoms, matrix=matrix, first=first, size=patch_size),
    )


def swap_sides(atoms: Tensor, *, table: LabelTable) -> Tensor:
    """The atoms of a left/right flipped patch: paired structures change names."""
    mirrored = table.mirrored_atoms
    if mirrored is None or mirrored == tuple(range(len(mirrored))):
        return atoms
    names = torch.tensor((*mirrored, table.ignored), dtype=atoms.dtype, device=atoms.device)
    return names.index_select(0, atoms.flatten().int()).view_as(atoms)


def _linear(image: Tensor, *, matrix: NDArray, first: NDArray, size: Size) -> Tensor:
    """The patch (c, *size) whose voxel p shows first + matrix p of the image, between voxels linearly."""
    # grid_sample counts from -1 to 1 over the outer faces of the box's voxels, in order x, y, z.
    length = np.asarray(image.shape[1:], dtype=float)
    rows, start = 2 * matrix / length[:, None], (2 * first + 1) / length - 1
    where = _lattice(rows[::-1], first=start[::-1], size=size, device=image.device)
    return F.grid_sample(image[None], where[None], align_corners=False)[0]


def _linear_in_slices(image: Tensor, *, matrix: NDArray, first: NDArray, size: Size) -> Tensor:
    """`_linear` where slices stay slices: torch samples them several times faster as the channels of one picture."""
    length = np.asarray((1, *image.shape[2:]), dtype=float)
    rows, start = 2 * matrix / length[:, None], (2 * first + 1) / length - 1
    where = _lattice(rows[:0:-1], first=start[:0:-1], size=(1, *size[1:]), device=image.device)
    slices = F.grid_sample(image, where.expand(len(image), -1, -1, -1), align_corners=False)
    front = -round(first[0])
    return F.pad(slices, (0, 0, 0, 0, front, size[0] - front - image.shape[1]))


def _nearest(atoms: Tensor, *, matrix: NDArray, first: NDArray, size: Size) -> Tensor:
    """The patch whose voxel p shows the atom nearest to first + matrix p; 0 beyond the atoms."""
    margin = F.pad(atoms, (1,) * 6)
    z, y, x = (
        _lattice(matrix[[axis]], first=first[[axis]] + 1, size=size, device=atoms.device).round_().clamp_(0, length + 1)
        for axis, length in enumerate(atoms.shape)
    )
    # A float32 is exact up to 16 million rows.
    rows = z.mul_(margin.shape[1]).add_(y).int()
    index = rows.mul_(margin.shape[2]).add_(x.int())
    return margin.flatten().index_select(0, index.flatten()).view(size)


def _lattice(rows: NDArray, *, first: NDArray, size: Size, device: torch.device) -> Tensor:
    """(*size, n) float32: `first` + `rows` (n, 3) times each voxel (z, y, x) of the size."""
    z, y, x = (torch.arange(n, dtype=torch.float32, device=device) for n in size)
    by_z, by_y, by_x = torch.from_numpy(np.array(rows.T)).float().to(device)
    start = torch.from_numpy(np.array(first)).float().to(device)
    plane = start + y[:, None, None] * by_y + x[:, None] * by_x
    # One operation on long rows: on a CPU 20 times faster than `affine_grid`.
    step = by_z.expand_as(plane).reshape(-1)
    result = empty((len(z), len(step)), dtype=torch.float32, device=device)
    return torch.addcmul(plane.reshape(-1), z[:, None], step, out=result).view(*size, len(rows))


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
