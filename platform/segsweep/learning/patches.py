"""Where a patch of a case lies, and which patches of a batch must hold foreground (nnU-Net v2, data loader)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from segsweep.data.geometry import Size
from segsweep.learning.task import Normalisation, Task, own_rule

Region = tuple[slice, slice, slice]
Oversampling = Literal["deterministic", "probabilistic"]


class Grid(Protocol):
    """One case's voxels. `foreground` maps atom values to sampled voxel indices (n, 3) in order z, y, x."""

    @property
    def shape(self) -> Size: ...
    @property
    def foreground(self) -> Mapping[int, NDArray]: ...
    def read_image(self, region: Region, /) -> NDArray: ...
    def read_label(self, region: Region, /) -> NDArray: ...


class Distant(Protocol):
    """Voxels that are fetched before they are read. `fetch` may raise, and is False where there is no room unless those of `spare` go.

    `key` is what `spare` calls them: empty as long as there is nothing to spare.
    """

    @property
    def key(self) -> str: ...
    def fetch(self, spare: Collection[str] = (), /) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class TrainingCase:
    """A case to train on: `annotated` per structure of the task's table, `grid` in the task's atom values, `source` its dataset (an
    index into the task's sources), `distant` where its voxels come from, unless they are here."""

    case_id: str
    grid: Grid
    annotated: tuple[bool, ...]
    source: int = 0
    distant: Distant | None = None

    @cached_property
    def _own_rules(self) -> dict[tuple[Normalisation, ...], tuple[Normalisation, ...]]:
        return {}

    @cached_property
    def _histograms(self) -> NDArray[np.int64]:
        """(z, atom values): how often each value stands in each slice; the label map is read once for it."""
        label = self.grid.read_label(whole(self.grid.shape))
        most = int(label.max()) + 1
        return np.stack([np.bincount(plane.ravel(), minlength=most) for plane in label])

    def known_voxel(self, *, ignored: int, generator: np.random.Generator) -> NDArray[np.int64] | None:
        """A voxel (z, y, x) drawn from all whose value is not `ignored`, background among them; None when there is none."""
        histograms = self._histograms
        known = histograms[:, np.arange(histograms.shape[1]) != ignored].sum(axis=1)
        if not known.any():
            return None
        z = int(generator.choice(len(known), p=known / known.sum()))
        _, height, width = self.grid.shape
        plane = self.grid.read_label((slice(z, z + 1), slice(0, height), slice(0, width)))[0]
        y, x = divmod(int(generator.choice(np.flatnonzero(plane != ignored))), width)
        return np.asarray((z, y, x))

    def rules(self, normalisation: tuple[Normalisation, ...]) -> tuple[Normalisation, ...]:
        """Rules that patches may use: "z-score" becomes this scan's own mean and deviation, read once."""
        if all(rule.scheme == "ct" for rule in normalisation):
            return normalisation
        if normalisation not in self._own_rules:
            pairs = zip(self.grid.read_image(whole(self.grid.shape)), normalisation, strict=True)
            self._own_rules[normalisation] = tuple(
                rule if rule.scheme == "ct" else own_rule(channel, rule=rule) for channel, rule in pairs
            )
        return self._own_rules[normalisation]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A patch to read: `corner` is its lowest voxel (z, y, x); the patch may reach beyond the scan on either side."""

    case: TrainingCase
    corner: Size
    forced: bool


def forced_flags(
    batch_size: int,
    *,
    foreground: float,
    rule: Oversampling,
    generator: np.random.Generator,
    rank: int = 0,
    ranks: int = 1,
) -> tuple[bool, ...]:
    """Which of a worker's `batch_size` samples must hold foreground: the last ones of all workers' batches, or each by chance."""
    if rule == "deterministic":
        first = round(batch_size * ranks * (1 - foreground))
        return tuple(rank * batch_size + index >= first for index in range(batch_size))
    return tuple(bool(value < foreground) for value in generator.random(batch_size))


def place(case: TrainingCase, *, task: Task, forced: bool, generator: np.random.Generator) -> Placement:
    """A patch of a case. Forced, it holds a voxel of foreground, at its centre unless the scan ends before.

    In a scan with ignored voxels other patches hold a voxel that is not ignored. Where there is no such voxel, the patch lies anywhere.
    """
    lowest, highest = corner_bounds(case.grid.shape, patch_size=task.patch_size)
    voxel = _foreground_voxel(case, task=task, generator=generator) if forced else None
    if voxel is None and any(case.annotated) and task.table.ignored in case.grid.foreground:
        voxel = case.known_voxel(ignored=task.table.ignored, generator=generator)
    if voxel is None:
        corner = [int(generator.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True)]
    else:
        centred = (int(at) - size // 2 for at, size in zip(voxel, task.patch_size, strict=True))
        corner = [max(low, at) for low, at in zip(lowest, centred, strict=True)]
    return Placement(case=case, corner=(corner[0], corner[1], corner[2]), forced=forced)


def corner_bounds(shape: Size, *, patch_size: Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lowest and highest corner (both allowed) of a random patch; negative where the scan is smaller than the patch."""
    lacking = [max(0, patch - size) for patch, size in zip(patch_size, shape, strict=True)]
    lowest = tuple(-lack // 2 for lack in lacking)
    ends = zip(shape, lacking, patch_size, strict=True)
    return lowest, tuple(size + lack // 2 + lack % 2 - patch for size, lack, patch in ends)


def foreground_classes(case: TrainingCase, *, task: Task) -> dict[int, list[NDArray]]:
    """Classes that a forced patch may aim at, with their sampled voxels: atoms (softmax) or structures (sigmoid)."""
    known = {index for index, annotated in enumerate(case.annotated) if annotated}
    classes: dict[int, list[NDArray]] = {}
    for value, voxels in sorted(case.grid.foreground.items()):
        annotated = known.intersection(task.table.atoms[value]) if value != task.table.ignored else ()
        if len(voxels) and annotated:
            for name in (value,) if task.head == "softmax" else sorted(annotated):
                classes.setdefault(name, []).append(voxels)
    return classes


def _foreground_voxel(case: TrainingCase, *, task: Task, generator: np.random.Generator) -> NDArray | None:
    classes = list(foreground_classes(case, task=task).values())
    if not classes:
        return None
    pieces = classes[int(generator.integers(len(classes)))]
    index = int(generator.integers(sum(len(piece) for piece in pieces)))
    for piece in pieces:
        if index < len(piece):
            return piece[index]
        index -= len(piece)
    return None


def whole(shape: Size) -> Region:
    """The region that is all of a grid."""
    return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
