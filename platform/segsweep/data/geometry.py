"""Voxel grids in patient space, and the exact way between a scan's own axis order and the canonical one.

Everywhere else arrays are `(z, y, x)` with spacing in mm in that order, in canonical orientation: z grows to the head,
y to the back, x to the patient's left (LPS). This module alone knows other conventions.
"""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int, int]
Spacing = tuple[float, float, float]

# Two grids are the same when every corner voxel lies within this distance (mm); header rounding stays far below.
SAME_GRID_MM = 1e-2


@dataclass(frozen=True, kw_only=True)
class Reorientation:
    """An exact permutation and flip of the last three axes. `axes[i]` is the source axis that becomes axis i."""

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]

    def apply(self, array: NDArray) -> NDArray:
        """Source order to canonical order (a view)."""
        lead = array.ndim - 3
        turned = np.transpose(array, (*range(lead), *(lead + axis for axis in self.axes)))
        return np.flip(turned, tuple(lead + axis for axis in range(3) if self.flips[axis]))

    def invert(self, array: NDArray) -> NDArray:
        """Canonical order back to source order (a view)."""
        lead = array.ndim - 3
        unflipped = np.flip(array, tuple(lead + axis for axis in range(3) if self.flips[axis]))
        return np.transpose(unflipped, (*range(lead), *(lead + self.axes.index(axis) for axis in range(3))))


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A voxel grid in patient space.

    `shape` and `spacing` (mm) are in array order (z, y, x). `origin` is the LPS position in mm of voxel (0, 0, 0), and
    `direction` the 3 x 3 matrix, row by row, whose columns are the unit vectors of the x, y and z array axes (ITK's convention).
    """

    shape: Size
    spacing: Spacing
    origin: tuple[float, float, float]
    direction: tuple[float, ...]

    @property
    def matrix(self) -> NDArray[np.float64]:
        """3 x 3: moves one voxel along array axes (z, y, x), in LPS mm, as columns."""
        columns = np.asarray(self.direction, dtype=float).reshape(3, 3)[:, ::-1]
        return columns * np.asarray(self.spacing)

    def position(self, index: tuple[float, float, float]) -> NDArray[np.float64]:
        """LPS position in mm of a voxel index (z, y, x)."""
        return np.asarray(self.origin) + self.matrix @ np.asarray(index, dtype=float)

    @property
    def reorientation(self) -> Reorientation:
        """The permutation and flips that bring this grid closest to canonical orientation (oblique axes stay oblique)."""
        columns = np.asarray(self.direction, dtype=float).reshape(3, 3)[:, ::-1]
        # Rows of `likeness`: canonical axes z, y, x; columns: source axes. The best permutation maximises its trace.
        likeness = columns[::-1, :]
        best = max(itertools.permutations(range(3)), key=lambda axes: sum(abs(likeness[i, axes[i]]) for i in range(3)))
        flips = tuple(bool(likeness[i, best[i]] < 0) for i in range(3))
        return Reorientation(axes=(best[0], best[1], best[2]), flips=(flips[0], flips[1], flips[2]))

    def canonical(self) -> "Geometry":
        """The grid of `reorientation.apply(array)`: the same voxels at the same positions."""
        turn = self.reorientation
        shape = tuple(self.shape[axis] for axis in turn.axes)
        spacing = tuple(self.spacing[axis] for axis in turn.axes)
        corner = [0, 0, 0]
        for axis, source in enumerate(turn.axes):
            corner[source] = self.shape[source] - 1 if turn.flips[axis] else 0
        columns = np.asarray(self.direction, dtype=float).reshape(3, 3)[:, ::-1]
        turned = columns[:, list(turn.axes)] * np.where(turn.flips, -1.0, 1.0)
        return Geometry(
            shape=(shape[0], shape[1], shape[2]),
            spacing=(spacing[0], spacing[1], spacing[2]),
            origin=tuple(float(value) for value in self.position((corner[0], corner[1], corner[2]))),  # type: ignore[arg-type]
            direction=tuple(float(value) for value in turned[:, ::-1].ravel()),
        )

    def resampled(self, spacing: Spacing) -> "Geometry":
        """The grid that covers the same extent at about this spacing: round(shape * spacing / new) voxels an axis, at least 1."""
        shape = tuple(max(1, round(n * s / t)) for n, s, t in zip(self.shape, self.spacing, spacing, strict=True))
        exact = tuple(n * s / m for n, s, m in zip(self.shape, self.spacing, shape, strict=True))
        first = tuple((e / s - 1) / 2 for e, s in zip(exact, self.spacing, strict=True))
        return replace(
            self,
            shape=shape,
            spacing=exact,
            origin=tuple(float(value) for value in self.position((first[0], first[1], first[2]))),
        )

    @property
    def voxel_ml(self) -> float:
        """Volume of one voxel in millilitres."""
        return math.prod(self.spacing) / 1000.0

    def corner_distance(self, other: "Geometry") -> float:
        """Largest distance in mm between equal corner voxels; infinite when the shapes differ."""
        if self.shape != other.shape:
            return math.inf
        z, y, x = ((0, n - 1) for n in self.shape)
        corners = itertools.product(z, y, x)
        return max(float(np.linalg.norm(self.position(corner) - other.position(corner))) for corner in corners)

    def same_grid(self, other: "Geometry") -> bool:
        """Whether both grids hold the same voxels at the same positions (within 0.01 mm)."""
        return self.corner_distance(other) <= SAME_GRID_MM
