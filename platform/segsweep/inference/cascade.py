"""Two models one after the other: a finder shows the other one where to look, and travels with it (FLARE22's coarse-to-fine)."""

import json
from dataclasses import replace
from pathlib import Path

from segsweep.data.geometry import Geometry
from segsweep.errors import ModelError
from segsweep.learning import checkpoint
from segsweep.learning.patches import Region
from segsweep.learning.task import Task, task_from_json
from segsweep.learning.transfer import unpinned


def part_of(geometry: Geometry, *, region: Region) -> Geometry:
    """The grid of a region's voxels alone."""
    z, y, x = region
    return replace(
        geometry,
        shape=(z.stop - z.start, y.stop - y.start, x.stop - x.start),
        origin=tuple(float(mm) for mm in geometry.position((z.start, y.start, x.start))),
    )


def keep_finder(initial: str, *, task: Task, folder: Path) -> None:
    """Copy the model that finds for one trained from `initial` (as `pinned` wrote it) to `folder`, unless it is there.

    That is the initial model's own finder or, without one, the initial model. Raises ModelError when it is absent or changed since,
    or takes other channels than the task.
    """
    if (folder / checkpoint.MANIFEST).is_file():
        return
    given = unpinned(initial)
    source = checkpoint.finder_of(given) or given
    channels = task_from_json(json.loads((source / checkpoint.RUN).read_text())["task"]).channels
    if channels != task.channels:
        raise ModelError(
            f"{source}: takes the channels {channels}, the data has {task.channels}; "
            "expected an initial model of the same channels, which has to find the organs in them"
        )
    checkpoint.save_plain(source, to=folder)
