"""A region of a case as a case of its own: the box around what is annotated, with a margin, is all that a method then trains on."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Size, Spacing
from segsweep.learning.patches import Grid, Region, TrainingCase, whole
from segsweep.learning.task import Task

# Voxels that a box grows by on either side along z, y, x; None takes the whole axis.
Margin = tuple[int | None, int | None, int | None]
Millimetres = tuple[float | None, float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class Cropped:
    """The box around a grid's labelled voxels, grown by `margin`, as a grid; the whole grid where nothing is labelled.

    Values from `ignored` on are not labelled. The label map is read once, when the box is first asked for.
    """

    grid: Grid
    ignored: int
    margin: Margin

    @cached_property
    def region(self) -> Region:
        """Where in the other grid this one lies."""
        label = self.grid.read_label(whole(self.grid.shape))
        return box((label > 0) & (label < self.ignored), margin=self.margin)

    @property
    def shape(self) -> Size:
        """Voxels (z, y, x)."""
        z, y, x = (part.stop - part.start for part in self.region)
        return z, y, x

    @cached_property
    def foreground(self) -> Mapping[int, NDArray]:
        """Atom value -> sampled voxels within the region, as its own indices."""
        low, high = ([getattr(part, end) for part in self.region] for end in ("start", "stop"))
        inside = {
            value: voxels[((voxels >= low) & (voxels < high)).all(axis=1)] - np.asarray(low, voxels.dtype)
            for value, voxels in self.grid.foreground.items()
        }
        return {value: voxels for value, voxels in inside.items() if len(voxels)}

    def read_image(self, region: Region, /) -> NDArray:
        """Image (c, z, y, x) of a region of this grid."""
        return self.grid.read_image(self._shifted(region))

    def read_label(self, region: Region, /) -> NDArray:
        """Atom values (z, y, x) of a region of this grid."""
        return self.grid.read_label(self._shifted(region))

    def _shifted(self, region: Region) -> Region:
        pairs = zip(region, self.region, strict=True)
        z, y, x = (slice(part.start + own.start, part.stop + own.start) for part, own in pairs)
        return z, y, x


def cropped(case: TrainingCase, *, task: Task, margin: Margin) -> TrainingCase:
    """The case cut to the box around its labelled voxels and `margin` voxels more; a case without labelled voxels stays whole."""
    return dataclasses.replace(case, grid=Cropped(grid=case.grid, ignored=task.table.ignored, margin=margin))


def box(mask: NDArray[np.bool_], *, margin: Margin) -> Region:
    """The smallest region that holds every true voxel of (z, y, x), grown by `margin` within the array; all of it where none is true."""
    region = []
    for axis, (size, more) in enumerate(zip(mask.shape, margin, strict=True)):
        others = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        if more is None or not len(found):
            region.append(slice(0, size))
        else:
            region.append(slice(max(0, int(found[0]) - more), min(size, int(found[-1]) + 1 + more)))
    return region[0], region[1], region[2]


def in_voxels(margin_mm: Millimetres, *, spacing: Spacing) -> Margin:
    """A margin in mm along z, y, x as the number of voxels that covers it; None stays None."""
    # Grids are a hair off their nominal spacing, which must not add a voxel.
    z, y, x = (
        None if mm is None else math.ceil(round(mm / size, 2)) for mm, size in zip(margin_mm, spacing, strict=True)
    )
    return z, y, x
