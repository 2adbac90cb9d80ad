"""Puts masks drawn on part of a scan's grid (a cropped box, one slice) where they belong on the whole grid, by position alone."""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Geometry
from segsweep.errors import InputError

Start = tuple[int, int, int]

# A part whose corners lie farther from the scan's voxel centres was drawn on another grid. Slices of a series may stray by 0.1 mm.
PLACED_WITHIN_MM, PLACED_WITHIN_VOXELS = 0.15, 0.3


def same_voxels(one: Geometry, other: Geometry) -> bool:
    """Whether two grids in canonical orientation are one but for the rounding of their headers by different programs."""
    return one.corner_distance(other) <= min(PLACED_WITHIN_MM, PLACED_WITHIN_VOXELS * min(other.spacing))


def locate(part: Geometry, *, scan: Geometry, name: str) -> Start:
    """Canonical index (z, y, x) on the scan of the part's first voxel, which may lie outside the scan.

    `name` is the file that the error names. Raises InputError when the part's voxels are not voxels of the scan's grid.
    """
    small, large = part.canonical(), scan.canonical()
    corners = np.asarray(list(itertools.product(*((0, size - 1) for size in small.shape))), dtype=float)
    positions = np.asarray(small.origin) + corners @ small.matrix.T
    found = np.linalg.solve(large.matrix, (positions - np.asarray(large.origin)).T).T - corners
    start = np.rint(found[0])
    astray = np.abs(found - start)
    farthest = float((astray * large.spacing).max())
    if not (farthest <= PLACED_WITHIN_MM and astray.max() <= PLACED_WITHIN_VOXELS):
        raise InputError(
            f"{name} lies on another grid than the image: its corners are up to {farthest:.2f} mm away from the image's voxels; "
            "resample it to the image or re-export it"
        )
    return (int(start[0]), int(start[1]), int(start[2]))


def paint(
    part: NDArray[np.bool_], *, geometry: Geometry, start: Start, scan: Geometry, onto: NDArray, name: str
) -> None:
    """Set the voxels of `onto` (on the scan's own grid, changed in place) where the part is set; `start` comes from `locate`.

    Raises InputError when set voxels lie outside the scan.
    """
    target, source = scan.reorientation.apply(onto), geometry.reorientation.apply(part)
    inside = _overlap(source.shape, start=start, size=target.shape)
    if np.count_nonzero(source[inside]) != np.count_nonzero(source):
        raise InputError(
            f"{name}: a segment reaches beyond the image; expected it inside; crop it, or is this another scan's file?"
        )
    shifted = tuple(slice(part.start + first, part.stop + first) for part, first in zip(inside, start, strict=True))
    target[shifted] |= source[inside]


def _overlap(shape: Sequence[int], *, start: Start, size: Sequence[int]) -> tuple[slice, ...]:
    """The part's own indices that lie on the scan (empty where there are none)."""
    bounds = ((max(0, -s), min(n, m - s)) for n, s, m in zip(shape, start, size, strict=True))
    return tuple(slice(low, max(low, high)) for low, high in bounds)
