"""Dice of a trained network on whole held-out scans, which the workers of a run share among them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import nn

from segsweep.data.store import Store
from segsweep.evaluation.whole_scans import Scores, scan_dice
from segsweep.inference.prediction import Member, Predictor, load_member
from segsweep.learning.inference import Inference
from segsweep.learning.task import Task


def validate(
    model: nn.Module, *, task: Task, store: Store, case_ids: Sequence[str], inference: Inference, finder: Path | None
) -> Scores:
    """`scan_dice` of every case, on every worker; each worker segments its share of the cases.

    `finder` is the checkpoint of the model that shows this one where to look, if it has one.
    """
    found_by = None if finder is None else load_member(finder)
    member = Member(model=model.eval(), task=task, inference=inference, finder=found_by)
    predictor = Predictor(members=(member,))
    if not dist.is_initialized():
        return {case_id: scan_dice(predictor, store=store, case_id=case_id) for case_id in case_ids}
    world = dist.get_world_size()
    shared = case_ids[dist.get_rank() :: world]
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, {name: scan_dice(predictor, store=store, case_id=name) for name in shared})
    return dict(sorted((case_id, values) for part in everyone for case_id, values in part.items()))


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
