"""Scans, label maps and scores from one voxel grid to another that covers the same extent (nnU-Net v2, resampling).

Voxels are areas, not points: grids of different shape share their outer faces, so that voxel i of n maps to
(i + 0.5) * m / n - 0.5, and values beyond the outermost centres are those of the edge.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from segsweep.data.geometry import SAME_GRID_MM, Geometry, Size, Spacing
from segsweep.errors import InputError

Item = TypeVar("Item")

# An axis is resampled on its own, without interpolation, where its spacing is more than this many times the finest one.
ANISOTROPIC = 3.0


def resample_image(image: NDArray, *, source: Geometry, target: Geometry, order: int = 3) -> NDArray[np.float32]:
    """An image (c, z, y, x) on `target`: spline of this order, order 0 along a coarse axis, kept within each channel's range."""
    _check(image.shape[1:], source=source, target=target)
    if source.shape == target.shape:
        return image.astype(np.float32)
    coarse = _coarse_axis(source, target=target)

    def weights(axis: int) -> NDArray[np.float32]:
        n, m = source.shape[axis], target.shape[axis]
        return _nearest(n, m=m) if axis == coarse else _spline(n, m=m, order=order)

    result = np.stack([_separable(channel, weights=weights, target=target.shape) for channel in image])
    for channel, original in zip(result, image, strict=True):
        np.clip(channel, original.min(), original.max(), out=channel)
    return result


def resample_planes(
    planes: Iterable[NDArray[np.float32]], *, source: Geometry, target: Geometry
) -> Iterator[NDArray[np.float32]]:
    """Slices (k, y, x) of scores or probabilities on `target`, in order, from those on `source`, taken one by one; two are held.

    Linear along every axis, so that each value is a mean of its neighbours.
    """
    require_same_extent(source, target=target)
    if source.shape == target.shape:
        yield from planes
        return
    z = linear_taps(source.shape[0], m=target.shape[0])
    rows, columns = (linear_weights(n, m=m) for n, m in zip(source.shape[1:], target.shape[1:], strict=True))
    for pair in pairs((rows @ plane @ columns.T for plane in planes), taps=z):
        yield np.asarray(pair.low + np.float32(pair.share) * (pair.high - pair.low), dtype=np.float32)


def resample_label(label: NDArray, *, source: Geometry, target: Geometry) -> NDArray:
    """A label map (z, y, x) of non-negative integers on `target`: each voxel gets the value with the largest share.

    Shares are the values' masks interpolated linearly (nearest along a coarse axis); of equal shares the lower value wins.
    """
    _check(label.shape, source=source, target=target)
    if source.shape == target.shape:
        return label.copy()
    coarse = _coarse_axis(source, target=target)
    shapes = list(zip(source.shape, target.shape, strict=True))
    matrices = [_nearest(n, m=m) if axis == coarse else linear_weights(n, m=m) for axis, (n, m) in enumerate(shapes)]
    result = np.zeros(target.shape, dtype=label.dtype)
    best = np.zeros(target.shape, dtype=np.float32)
    rest = np.ones(target.shape, dtype=np.float32)  # the share that no other value has taken is the background's
    # find_objects lists the bounding boxes of the values 1, 2, ... in one pass.
    for value, box in enumerate(ndimage.find_objects(label), start=1):
        if box is None:
            continue
        rows = tuple(_touched(matrix[:, part]) for matrix, part in zip(matrices, box, strict=True))
        cropped = [matrix[row, part] for matrix, row, part in zip(matrices, rows, box, strict=True)]
        size = tuple(len(matrix) for matrix in cropped)
        mask = (label[box] == value).astype(np.float32)
        share = _separable(mask, weights=cropped.__getitem__, target=(size[0], size[1], size[2]))
        wins = share > best[rows]
        result[rows][wins] = value
        best[rows][wins] = share[wins]
        rest[rows] -= share
    result[rest >= best] = 0
    return result


@dataclass(frozen=True, kw_only=True)
class Taps:
    """For each target voxel of an axis: its two source neighbours and the upper one's share."""

    low: NDArray[np.int64]
    high: NDArray[np.int64]
    share: NDArray[np.float64]


def linear_taps(n: int, *, m: int) -> Taps:
    """Where n voxels lie around each of m voxels over the same extent; beyond the outermost centres the edge counts."""
    position = np.clip((np.arange(m) + 0.5) * n / m - 0.5, 0, n - 1)
    low = np.floor(position).astype(np.int64)
    return Taps(low=low, high=np.minimum(low + 1, n - 1), share=position - low)


@dataclass(frozen=True, kw_only=True)
class Pair(Generic[Item]):
    """What lies on either side of a target voxel, and the upper one's share."""

    low: Item
    high: Item
    share: float


def pairs(items: Iterable[Item], *, taps: Taps) -> Iterator[Pair[Item]]:
    """For each target voxel of an axis its neighbours out of items that come one by one, of which two are held. All are taken."""
    upcoming, held = iter(items), deque[Item](maxlen=2)
    taken = 0
    for low, high, share in zip(taps.low.tolist(), taps.high.tolist(), taps.share.tolist(), strict=True):
        while taken <= high:
            held.append(next(upcoming))
            taken += 1
        yield Pair(low=held[-1] if low == high else held[-2], high=held[-1], share=share)
    deque(upcoming, maxlen=0)


def linear_weights(n: int, *, m: int) -> NDArray[np.float32]:
    """(m, n): the same as a matrix; rows sum to 1."""
    taps = linear_taps(n, m=m)
    weights = np.zeros((m, n))
    np.add.at(weights, (np.arange(m), taps.low), 1 - taps.share)
    np.add.at(weights, (np.arange(m), taps.high), taps.share)
    return weights.astype(np.float32)


def require_same_extent(source: Geometry, *, target: Geometry) -> None:
    """Raises InputError unless the outer faces of both grids coincide (within 0.01 mm)."""
    faces = [
        np.stack([grid.position((-0.5, -0.5, -0.5)), grid.position((z - 0.5, y - 0.5, x - 0.5))])
        for grid in (source, target)
        for z, y, x in [grid.shape]
    ]
    away = float(np.abs(faces[0] - faces[1]).max())
    if away > SAME_GRID_MM or not np.allclose(source.direction, target.direction, atol=1e-6):
        raise InputError(
            f"the grids {source} and {target} cover different extents (corners up to {away:.3g} mm apart); "
            "expected a target made by source.resampled(spacing)"
        )


def _check(shape: tuple[int, ...], *, source: Geometry, target: Geometry) -> None:
    if tuple(shape) != source.shape:
        raise InputError(
            f"an array of shape {tuple(shape)} (z, y, x) was given for a grid of {source.shape}; expected equal shapes"
        )
    require_same_extent(source, target=target)


def _coarse_axis(source: Geometry, *, target: Geometry) -> int | None:
    """nnU-Net's rule: the one axis whose spacing exceeds 3 times the finest, in the source, else in the target."""
    for spacing in (source.spacing, target.spacing):
        if max(spacing) / min(spacing) > ANISOTROPIC:
            return _coarsest(spacing)
    return None


def _coarsest(spacing: Spacing) -> int | None:
    coarse = [axis for axis in range(3) if np.isclose(spacing[axis], max(spacing))]
    return coarse[0] if len(coarse) == 1 else None


def _nearest(n: int, *, m: int) -> NDArray[np.float32]:
    chosen = np.floor((np.arange(m) + 0.5) * n / m).astype(int)
    return np.eye(n, dtype=np.float32)[np.minimum(chosen, n - 1)]


def _spline(n: int, *, m: int, order: int) -> NDArray[np.float32]:
    """Spline interpolation is linear in its data: its matrix is the interpolated identity."""
    if n == 1 or order == 0:
        return _nearest(n, m=m)
    matrix = ndimage.zoom(np.eye(n), (m / n, 1), order=order, mode="nearest", grid_mode=True)
    return np.asarray(matrix, dtype=np.float32)


def _touched(weights: NDArray) -> slice:
    """Rows between the first and the last that any column reaches (empty where none is)."""
    rows = np.flatnonzero(weights.any(axis=1))
    return slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)


def _separable(array: NDArray, *, weights: Callable[[int], NDArray[np.float32]], target: Size) -> NDArray[np.float32]:
    """One (z, y, x) array through a matrix an axis; the axis that shrinks most goes first."""
    result = array.astype(np.float32)
    for axis in sorted(range(3), key=lambda axis: target[axis] / array.shape[axis]):
        matrix = weights(axis)
        if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))):
            continue
        if axis == 2:
            result = result @ matrix.T
        else:
            lead, tail = result.shape[:axis], result.shape[axis + 1 :]
            flat = result.reshape(*lead, result.shape[axis], -1) if axis == 0 else result
            result = np.matmul(matrix, flat).reshape(*lead, len(matrix), *tail)
    return np.ascontiguousarray(result)
