"""Batches: patches drawn, cut, normalised and augmented; every batch follows from its key alone, so training resumes exactly."""

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from segsweep.errors import InputError
from segsweep.learning.augment import Cut, Source, cut, draw_warp, swap_sides
from segsweep.learning.intensity import alter
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import Placement, Region, TrainingCase, forced_flags, place
from segsweep.learning.task import Task, normalise

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """`image` (B, c, z, y, x) float32, `atoms` (B, z, y, x) int64, `annotated` (B, structures) bool, `source` (B,) int64.

    Unlabelled patches come last; nothing is annotated in them, and their atoms are 0.
    """

    image: Tensor
    atoms: Tensor
    annotated: Tensor
    source: Tensor


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One entry of a batch."""

    patch: Cut
    annotated: tuple[bool, ...]
    source: int


def draw(
    cases: Sequence[TrainingCase],
    *,
    task: Task,
    params: TrainingParams,
    key: tuple[int, ...],
    unlabelled: Sequence[TrainingCase] = (),
) -> Batch:
    """The batch of a key such as (seed, rank, epoch, step): equal keys give equal batches, on any machine.

    `params.batch_size` must be given; the patch is the task's. As many patches of `unlabelled` cases follow, if there are such cases.
    Raises InputError without cases or without a batch size.
    """
    if not cases:
        raise InputError("there are 0 cases to draw patches from; expected at least 1: check the fold and the store")
    if params.batch_size is None:
        raise InputError("batch_size=None cannot be drawn; expected a number: take it from the store's plan")
    generator = np.random.default_rng(key)
    flags = forced_flags(params.batch_size, foreground=params.foreground, rule=params.oversampling, generator=generator)
    placements = [place(cases, task=task, forced=forced, generator=generator) for forced in flags]
    if unlabelled:
        placements += [place(unlabelled, task=task, forced=False, generator=generator) for _ in flags]
    samples = [_sample(placement, task=task, params=params, generator=generator) for placement in placements]
    return Batch(
        image=torch.stack([sample.patch.image for sample in samples]),
        atoms=torch.stack([sample.patch.atoms for sample in samples]),
        annotated=torch.tensor([sample.annotated for sample in samples], dtype=torch.bool),
        source=torch.tensor([sample.source for sample in samples]),
    )


def prefetch(source: Iterable[Item] | Callable[[], Item], *, depth: int = 2) -> Generator[Item, None, None]:
    """The items of an iterable (or of a function called for ever), made by one thread up to `depth` ahead.

    An exception of the source is raised here, in its turn. Closing the generator ends the thread after its current item.
    """
    items = iter(source) if isinstance(source, Iterable) else iter(source, object())
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(ready, items, stop), name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        # At most one more item follows the signal, and it finds room in the emptied queue.
        while not ready.empty():
            ready.get_nowait()
        thread.join()


def _fill(ready: queue.Queue[tuple[str, Any]], items: Iterator[Any], stop: threading.Event) -> None:
    last: tuple[str, Any] = ("end", None)
    try:
        for item in items:
            if stop.is_set():
                return
            ready.put(("item", item))
            if stop.is_set():
                return
    except BaseException as error:
        last = ("error", error)
    if not stop.is_set():
        ready.put(last)


def _sample(placement: Placement, *, task: Task, params: TrainingParams, generator: np.random.Generator) -> Sample:
    warp = draw_warp(level=params.augmentation, task=task, mirror=params.mirror, generator=generator)
    case = placement.case
    patch = cut(_source(case, task=task), corner=placement.corner, patch_size=task.patch_size, warp=warp)
    annotated = case.annotated
    if warp.flips[2]:
        patch = swap_sides(patch, task=task)
        annotated = tuple(annotated[partner] for partner in task.table.labels.mirrored)
    alter(patch.image, level=params.augmentation, generator=generator)
    return Sample(patch=patch, annotated=annotated, source=case.source)


def _source(case: TrainingCase, *, task: Task) -> Source:
    rules = case.rules(task.normalisation)

    def read(region: Region) -> Cut:
        image = torch.from_numpy(normalise(case.grid.read_image(region), normalisation=rules))
        if not any(case.annotated):
            return Cut(image=image, atoms=torch.zeros(image.shape[1:], dtype=torch.int64))
        return Cut(image=image, atoms=torch.from_numpy(case.grid.read_label(region).astype(np.int64)))

    return Source(shape=case.grid.shape, read=read)
