"""What segmenting a scan needs of the main memory, reckoned before it begins, against what it may use.

Logits are never held for the whole scan (`sliding`), and what an ensemble's members add up to waits on disk where the memory does not
hold it (`spill`), so that the labels are the same whatever the budget; a scan that fits in no way is refused with the numbers.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast, get_args

from segsweep.data.geometry import Geometry, Size
from segsweep.errors import InputError, ResourceError, unknown
from segsweep.inference.export import MOST_NUMBERS, Kept
from segsweep.inference.performance import Stopwatch
from segsweep.inference.sliding import TOGETHER
from segsweep.inference.spill import Spilled
from segsweep.learning.memory import available_bytes, describe, read_size, resident_bytes
from segsweep.learning.precision import Precision
from segsweep.learning.task import Task

# Without a budget a process may take so much of what is available now, besides what it holds already.
SHARE = 0.8
# Label map, its copies while it is cleaned and written, and numbered components (4 bytes): bytes a voxel.
LABEL_BYTES = 10


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What segmenting a scan may use: `max_memory` bytes of main memory for the whole process (80 % of what is available without it).

    `precision` is what the networks compute in (what each was trained in on a GPU, and float32 on a processor, without it).
    `stopwatch` is told the stages.
    """

    max_memory: int | None = None
    precision: Precision | None = None
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def free(self) -> int:
        """Bytes that may be taken besides those that the process holds now."""
        return int(SHARE * available_bytes()) if self.max_memory is None else self.max_memory - resident_bytes()


def resources(*, max_memory: str | None, precision: str | None) -> Resources:
    """As a person writes them: "8GB", "float32". Raises InputError for a word that means nothing."""
    if precision not in (None, *get_args(Precision)):
        raise InputError(unknown(precision, kind="precisions", known=get_args(Precision)))
    return Resources(
        max_memory=None if max_memory is None else read_size(max_memory), precision=cast("Precision | None", precision)
    )


@dataclass(frozen=True, kw_only=True)
class Part:
    """A member's share in the work: its task, and the bytes that its network takes of the main memory for a batch of patches."""

    task: Task
    network_bytes: int


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes of main memory by what they are for, at the worst moment, and those that an ensemble keeps between its members."""

    parts: Mapping[str, int]
    kept: int

    @property
    def total(self) -> int:
        """All but what is kept."""
        return sum(self.parts.values())


def needs(parts: Sequence[Part], *, image_bytes: int, geometry: Geometry, probabilities: bool = False) -> Needs:
    """Of a scan on `geometry` whose image takes so much, segmented by members one after the other on the first one's grid.

    `probabilities` are kept until they are written, a byte each.
    """
    common = geometry.resampled(parts[0].task.spacing)
    of_members = [moment for part in parts for moment in _moments(part, geometry=geometry, common=common)]
    worst = max(
        [*of_members, {"label maps": LABEL_BYTES * math.prod(geometry.shape)}], key=lambda each: sum(each.values())
    )
    # A copy of the image that is nowhere below air, and the next scan, which is read meanwhile.
    scans = {"this scan and the next one": 2 * image_bytes}
    if probabilities:
        scans["probabilities"] = len(parts[0].task.table.labels.structures) * math.prod(common.shape)
    kept = 4 * max(_classes(part.task) for part in parts) * math.prod(common.shape) if len(parts) > 1 else 0
    return Needs(parts={**scans, **worst}, kept=kept)


def find_room(wanted: Needs, *, resources: Resources) -> Callable[[], Kept]:
    """Where an ensemble's slices wait: in memory where it holds them, else on disk. Raises ResourceError when the scan does not fit."""
    free = resources.free
    if wanted.total > free:
        parts = ", ".join(f"{name} {describe(size)}" for name, size in wanted.parts.items())
        limit = (
            "what is available now"
            if resources.max_memory is None
            else f"--max-memory {describe(resources.max_memory)}"
        )
        raise ResourceError(
            f"segmenting it needs about {describe(wanted.total)} more memory ({parts}), of {limit} are {describe(max(0, free))} "
            "left; allow more, or crop the scan"
        )
    if wanted.total + wanted.kept <= free:
        return dict
    folder = tempfile.gettempdir()
    if wanted.kept > (left := shutil.disk_usage(folder).free):
        raise ResourceError(
            f"the ensemble's mean takes {describe(wanted.kept)}, {folder} has {describe(left)} left; "
            "set TMPDIR to a larger disk, or allow more memory with --max-memory"
        )
    return Spilled


def _moments(part: Part, *, geometry: Geometry, common: Geometry) -> list[Mapping[str, int]]:
    """What is in memory while one member's image is resampled, and while its slices come."""
    task, grid = part.task, geometry.resampled(part.task.spacing).shape
    padded: Size = tuple(max(n, patch) for n, patch in zip(grid, task.patch_size, strict=True))  # type: ignore[assignment]
    channels = max(task.widths)
    native, resampled = math.prod(geometry.shape), channels * math.prod(grid)
    # One channel at a time: its numbers, and those between one axis and the next.
    during = native + 2 * max(native, math.prod(grid))
    image = {"the resampled image": 4 * max(resampled + during, 2 * resampled)}
    classes = _classes(task)
    plane, patch = math.prod(padded[1:]), math.prod(task.patch_size)
    slices = min(task.patch_size[0], padded[0]) * (classes + 1) * plane
    # Two batches' logits while flips are added, and one patch's weighted ones.
    patches = (2 * TOGETHER + 1) * classes * patch
    # Slices on either side of a target slice and their copies in float64; scores, neighbours and weights of what is interpolated at once.
    export = 10 * classes * max(plane, math.prod(common.shape[1:]))
    interpolated = min(MOST_NUMBERS // classes, math.prod(geometry.shape[1:])) * 16 * (classes + 12)
    sliding = {
        "the resampled image": 4 * channels * math.prod(padded) * (2 if padded != grid else 1),
        "slices of logits": 4 * (slices + patches + export) + interpolated,
        "the network": part.network_bytes,
        "the label map": math.prod(geometry.shape),
    }
    return [image, sliding]


def _classes(task: Task) -> int:
    return max(task.outputs, len(task.table.labels.structures))
