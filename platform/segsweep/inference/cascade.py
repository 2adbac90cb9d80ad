"""Two models one after the other: a finder shows the other one where to look, and travels with it (FLARE22's coarse-to-fine)."""

from dataclasses import replace
from pathlib import Path

from numpy.typing import NDArray

from segsweep.data.geometry import Geometry
from segsweep.errors import ModelError
from segsweep.learning import checkpoint
from segsweep.learning.crop import box, in_voxels
from segsweep.learning.patches import Region
from segsweep.learning.task import Task, task_from_json
from segsweep.learning.transfer import unpinned
from segsweep.terminal import complain

NOTHING_FOUND = (
    "the finder found nothing in the scan, so all of it is looked at; that takes longer, and what the model shows far from "
    "where it was trained may not be there: look at the result"
)


def part_of(geometry: Geometry, *, region: Region) -> Geometry:
    """The grid of a region's voxels alone."""
    z, y, x = region
    return replace(
        geometry,
        shape=(z.stop - z.start, y.stop - y.start, x.stop - x.start),
        origin=tuple(float(mm) for mm in geometry.position((z.start, y.start, x.start))),
    )


def around(found: NDArray, *, margin_mm: float, geometry: Geometry) -> Region:
    """The box around what a finder found (z, y, x), grown by a margin on every side.

    All of the scan where it found nothing: a model that then looked nowhere would leave out what the finder missed. That is told on
    stderr, since what a model shows of a scan without its organs is worth little.
    """
    if not found.any():
        complain(NOTHING_FOUND)
    return box(found > 0, margin=in_voxels((margin_mm, margin_mm, margin_mm), spacing=geometry.spacing))


def keep_finder(initial: str, *, task: Task, folder: Path) -> None:
    """Copy the model that finds for one trained from `initial` (as `pinned` wrote it) to `folder`, unless it is there.

    That is the initial model's own finder or, without one, the initial model. Raises ModelError when it is absent or changed since,
    or takes other channels than the task.
    """
    if (folder / checkpoint.MANIFEST).is_file():
        return
    given = unpinned(initial)
    source = checkpoint.finder_of(given) or given
    channels = task_from_json(checkpoint.run_document(source)["task"]).channels
    if channels != task.channels:
        raise ModelError(
            f"{source}: takes the channels {channels}, the data has {task.channels}; "
            "expected an initial model of the same channels, which has to find the organs in them"
        )
    checkpoint.save_plain(source, to=folder)
