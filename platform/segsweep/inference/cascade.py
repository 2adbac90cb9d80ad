"""Two models one after the other: a finder shows the other one where to look, and travels with it (FLARE22's coarse-to-fine)."""

import json
from dataclasses import replace
from pathlib import Path

from segsweep.data.geometry import Geometry
from segsweep.errors import ModelError
from segsweep.learning import checkpoint
from segsweep.learning.patches import Region
from segsweep.learning.task import Task, task_from_json


def part_of(geometry: Geometry, *, region: Region) -> Geometry:
    """The grid of a region's voxels alone."""
    z, y, x = region
    return replace(
        geometry,
        shape=(z.stop - z.start, y.stop - y.start, x.stop - x.start),
        origin=tuple(float(mm) for mm in geometry.position((z.start, y.start, x.start))),
    )


def finder_in(folder: Path, *, task: Task) -> Path:
    """The checkpoint that finds for a model trained from the one in `folder`: that one's own finder, or itself.

    Raises ModelError when it takes other channels than the task.
    """
    finder = checkpoint.finder_of(folder) or folder
    channels = task_from_json(json.loads((finder / checkpoint.RUN).read_text())["task"]).channels
    if channels != task.channels:
        raise ModelError(
            f"{finder}: takes the channels {channels}, the data has {task.channels}; "
            "start from a model of the same channels, which has to find the organs in them"
        )
    return finder
