"""Batches: patches drawn, cut, normalised and augmented; every batch follows from its turn alone, so training resumes exactly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segsweep.errors import InputError
from segsweep.learning.augment import Cut, Source, cut, draw_warp, swap_sides
from segsweep.learning.buffers import empty, stacked
from segsweep.learning.intensity import alter
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import Placement, Region, TrainingCase, forced_flags, place
from segsweep.learning.sampling import Turn, choose
from segsweep.learning.task import Normalisation, Task

CPU = torch.device("cpu")


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


@dataclass(frozen=True, kw_only=True)
class Located:
    """Where the patches of a batch lie, and what is drawn on from: `generator` has drawn the places."""

    placements: Sequence[Placement]
    generator: np.random.Generator


def draw(
    cases: Sequence[TrainingCase],
    *,
    task: Task,
    params: TrainingParams,
    turn: Turn,
    unlabelled: Sequence[TrainingCase] = (),
    device: torch.device = CPU,
) -> Batch:
    """The batch of a turn: `locate`, then `cut_out`. Equal turns give equal batches, on any machine."""
    located = locate(cases, task=task, params=params, turn=turn, unlabelled=unlabelled)
    return cut_out(located, task=task, params=params, device=device)


def locate(
    cases: Sequence[TrainingCase],
    *,
    task: Task,
    params: TrainingParams,
    turn: Turn,
    unlabelled: Sequence[TrainingCase] = (),
    near: Callable[[Sequence[TrainingCase]], None] = lambda _: None,
) -> Located:
    """Where the patches of a turn's batch lie.

    `params.batch_size` must be given; the patch is the task's. As many patches of `unlabelled` cases, drawn uniformly, follow if there
    are such cases. `near` is told of cases before anything of them is read. Raises InputError without cases or without a batch size.
    """
    if not cases:
        raise InputError("there are 0 cases to draw patches from; expected at least 1: check the fold and the store")
    if params.batch_size is None:
        raise InputError("batch_size=None cannot be drawn; expected a number: take it from the store's plan")
    generator = turn.generator()
    flags = forced_flags(
        params.batch_size,
        foreground=params.foreground,
        rule=params.oversampling,
        generator=generator,
        rank=turn.rank,
        ranks=turn.ranks,
    )
    chosen = choose(
        cases,
        number=len(flags),
        sampling=params.sampling,
        iterations=params.iterations,
        turn=turn,
        generator=generator,
    )
    near(chosen)
    placements = [
        place(case, task=task, forced=forced, generator=generator) for case, forced in zip(chosen, flags, strict=True)
    ]
    if unlabelled:
        others = [unlabelled[index] for index in generator.integers(len(unlabelled), size=len(flags))]
        near(others)
        placements += [place(case, task=task, forced=False, generator=generator) for case in others]
    return Located(placements=placements, generator=generator)


def cut_out(located: Located, *, task: Task, params: TrainingParams, device: torch.device = CPU) -> Batch:
    """The batch whose patches were located. Voxels go to `device` as they are stored; they are normalised, resampled and augmented there.

    Once only: what is drawn comes from the generator, which goes on.
    """
    samples = [
        _sample(placement, task=task, params=params, generator=located.generator, device=device)
        for placement in located.placements
    ]
    return Batch(
        image=stacked([sample.patch.image for sample in samples], dtype=torch.float32),
        atoms=stacked([sample.patch.atoms for sample in samples], dtype=torch.int64),
        annotated=torch.tensor([sample.annotated for sample in samples], dtype=torch.bool),
        source=torch.tensor([sample.source for sample in samples]),
    )


def _sample(
    placement: Placement, *, task: Task, params: TrainingParams, generator: np.random.Generator, device: torch.device
) -> Sample:
    warp = draw_warp(level=params.augmentation, task=task, mirror=params.mirror, generator=generator)
    case = placement.case
    source = _source(case, task=task, device=device)
    patch = cut(source, corner=placement.corner, patch_size=task.patch_size, warp=warp)
    annotated = case.annotated
    if warp.flips[2]:
        patch = replace(patch, atoms=swap_sides(patch.atoms, table=task.table))
        annotated = tuple(annotated[partner] for partner in task.table.labels.mirrored)
    alter(patch.image, level=params.augmentation, generator=generator)
    return Sample(patch=patch, annotated=annotated, source=case.source)


def _source(case: TrainingCase, *, task: Task, device: torch.device) -> Source:
    rules = case.rules(task.scans(case.source).normalisation)

    def read(region: Region) -> Cut:
        image = _normalised(_tensor(case.grid.read_image(region), device=device), rules=rules)
        if not any(case.annotated):
            return Cut(image=image, atoms=torch.zeros(image.shape[1:], dtype=torch.uint8, device=device))
        return Cut(image=image, atoms=_atoms(case.grid.read_label(region), device=device))

    return Source(shape=case.grid.shape, read=read)


def _atoms(label: NDArray, *, device: torch.device) -> Tensor:
    # Torch pads, gathers and flips 1 byte a voxel several times faster than 8.
    return _tensor(label if label.dtype == np.uint8 else label.astype(np.int32), device=device)


def _normalised(image: Tensor, *, rules: Sequence[Normalisation]) -> Tensor:
    """`task.normalise` for rules that do not need the whole scan, on the image's own device."""
    result = empty(image.shape, dtype=torch.float32, device=image.device).copy_(image)
    for channel, rule in zip(result, rules, strict=True):
        channel.clamp_(rule.low, rule.high).sub_(rule.mean).div_(max(rule.deviation, 1e-8))
    return result


def _tensor(values: NDArray, *, device: torch.device) -> Tensor:
    return torch.from_numpy(np.require(values, requirements=("C", "W"))).to(device)
