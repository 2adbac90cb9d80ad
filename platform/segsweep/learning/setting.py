"""All that a training needs, as one value."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from segsweep.learning.losses import Loss
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import TrainingCase
from segsweep.learning.stages import Stage
from segsweep.learning.task import Task


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All that a training needs. `params` has patch and batch size filled in; `model` is on `device` already.

    A model with a true `takes_source` is called with the batch's `source` as a second argument.
    """

    model: nn.Module
    task: Task
    params: TrainingParams
    stages: tuple[Stage, ...]
    loss: Loss
    training: Sequence[TrainingCase]
    validation: Sequence[TrainingCase]
    unlabelled: Sequence[TrainingCase] = ()
    seed: int = 0
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))


def plain(params: TrainingParams) -> TrainingParams:
    """The parameters without augmentation."""
    return dataclasses.replace(params, augmentation="none", mirror="none")


def rank() -> int:
    """Which of the workers that train together this process is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many workers train together."""
    return dist.get_world_size() if dist.is_initialized() else 1
