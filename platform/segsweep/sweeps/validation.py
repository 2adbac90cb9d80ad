"""Scores of a trained network on whole held-out scans, which the workers of a run share among them, and what segmenting these cost."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from segsweep.data.remote import RemoteGrid
from segsweep.data.store import Store
from segsweep.evaluation.whole_scans import Case, Scores, score_case
from segsweep.inference.predictor import Member, Predictor, load_member
from segsweep.learning.inference import Inference
from segsweep.learning.precision import Precision
from segsweep.learning.prefetch import prefetch
from segsweep.learning.task import Task
from segsweep.sweeps.meter import peak_memory

# So many held-out cases are drawn, the same ones by every model of a fold.
MOST_PICTURES = 3


@dataclass(frozen=True, kw_only=True)
class Validated:
    """Cases by their id. `memory`: bytes of the worker with most, on its GPU while it validated; without one, the most that its
    process has held since it began.
    """

    cases: Mapping[str, Case]
    memory: int

    @property
    def scores(self) -> Scores:
        """Case -> structure -> Dice."""
        return {case_id: case.dice for case_id, case in self.cases.items()}

    @property
    def nsd(self) -> Scores:
        """Case -> structure -> NSD; nothing where it was not asked for."""
        return {case_id: case.nsd for case_id, case in self.cases.items() if case.nsd}

    def costs(self) -> dict[str, float]:
        """`seconds_per_case` (median) and `memory_gb` (10^9 bytes); nothing without cases."""
        if not self.cases:
            return {}
        seconds = statistics.median(case.seconds for case in self.cases.values())
        return {"seconds_per_case": seconds, "memory_gb": self.memory / 1e9}


def validate(
    model: nn.Module, *, task: Task, store: Store, case_ids: Sequence[str], inference: Inference, finder: Path | None,
    precision: Precision, nsd_tolerance: float = 0.0, pictures: Path | None = None,
) -> Validated:  # fmt: skip
    """`score_case` of every case, on every worker; each worker segments its share of the cases.

    `finder` is the checkpoint of the model that shows this one where to look, if it has one; `precision` what the model is trained in;
    `nsd_tolerance` as for `score_case`; `pictures` a folder that gets CASE.png of the first cases.
    """
    found_by = None if finder is None else load_member(finder)
    member = Member(model=model.eval(), task=task, inference=inference, finder=found_by, precision=precision)
    predictor = Predictor(members=(member,))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    several = dist.is_initialized()
    shared = case_ids[dist.get_rank() :: dist.get_world_size()] if several else case_ids
    drawn = {case_id: pictures / f"{case_id}.png" for case_id in case_ids[:MOST_PICTURES]} if pictures else {}
    score = partial(score_case, predictor, store=store, nsd_tolerance=nsd_tolerance)
    # The next case comes out of its bucket while this one is segmented.
    ready = prefetch(partial(_near, store), shared, depth=1)
    own = Validated(
        cases={case_id: score(case_id=case_id, picture=drawn.get(case_id)) for case_id in ready},
        memory=_peak_memory(),
    )
    if not several:
        return own
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own)
    cases = {case_id: case for part in everyone for case_id, case in part.cases.items()}
    return Validated(cases=dict(sorted(cases.items())), memory=max(part.memory for part in everyone))


def summarise(scores: Mapping[str, Mapping[str, float]], *, prefix: str = "dice") -> dict[str, float]:
    """`dice/STRUCTURE` (mean over cases) and `dice` (mean over structures) from case -> structure -> Dice; `prefix` may be another."""
    structures = sorted({name for values in scores.values() for name in values})
    means = {
        name: float(np.mean([values[name] for values in scores.values() if name in values])) for name in structures
    }
    return (
        {prefix: float(np.mean(list(means.values()))), **{f"{prefix}/{name}": mean for name, mean in means.items()}}
        if means
        else {}
    )


def _near(store: Store, case_id: str) -> str:
    grid = store.grid(case_id)
    if isinstance(grid, RemoteGrid):
        grid.fetch()
    return case_id


def _peak_memory() -> int:
    """Bytes."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_memory()
