"""The training loop as a generator: it yields after every epoch, and whoever drives it decides what to save and when to stop.

Sampling is a pure function of (seed, rank, epoch, step), so a training that resumes from a snapshot repeats nothing and skips nothing.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segsweep.learning.batches import Batch, draw, prefetch
from segsweep.learning.checkpoint import Snapshot
from segsweep.learning.losses import build_loss, dice_counts
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import TrainingCase
from segsweep.learning.stages import Stage
from segsweep.learning.task import Task

# nnU-Net's values (v2, training loop).
MOMENTUM, LARGEST_GRADIENT, SMOOTHING = 0.99, 12.0, 0.9
# Key of the validation draws: the same patches after every epoch, whatever the number of epochs.
VALIDATION = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Setting:
    """All that a training needs. `params` has patch and batch size filled in; `model` is on `device` already."""

    model: nn.Module
    task: Task
    params: TrainingParams
    stages: tuple[Stage, ...]
    training: Sequence[TrainingCase]
    validation: Sequence[TrainingCase]
    seed: int = 0
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One finished epoch, counted from 0. `metrics`: loss, learning_rate and, with validation cases, patch_dice values (0 to 1)."""

    number: int
    total: int
    metrics: dict[str, float]
    snapshot: Callable[[], Snapshot]


def train(setting: Setting, *, resume: Snapshot | None = None) -> Iterator[Epoch]:
    """Train stage by stage and yield after every epoch; with `resume`, from the epoch after the snapshot's.

    A snapshot of the last epoch yields nothing: its weights are in `setting.model` then. Under an initialised process group the
    model is trained data-parallel and metrics are those of all ranks together.
    """
    total = sum(stage.epochs for stage in setting.stages)
    first = 0 if resume is None else resume.epoch + 1
    smoothed = None if resume is None else resume.metrics.get("patch_dice_smoothed")
    loss = build_loss(setting.params.loss, task=setting.task, batch_dice=False)
    if resume is not None:
        setting.model.load_state_dict(dict(resume.weights))
    begin = 0
    for stage in setting.stages:
        end = begin + stage.epochs
        if first < end:
            optimizer = _start_stage(setting, stage=stage)
            # A snapshot from an earlier stage carries that stage's optimizer: only its weights go on.
            if resume is not None and begin <= resume.epoch < end:
                optimizer.load_state_dict(dict(resume.optimizer))
            model = _parallel(setting.model)
            for number in range(max(first, begin), end):
                rate = stage.rate(number - begin)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                metrics = {
                    "loss": _train_epoch(
                        setting, model=model, optimizer=optimizer, loss=loss, epoch=number, augment=stage.augment
                    ),
                    "learning_rate": rate,
                    **_validate(setting),
                }
                if "patch_dice" in metrics:
                    smoothed = _smooth(smoothed, metrics["patch_dice"])
                    metrics["patch_dice_smoothed"] = smoothed
                yield Epoch(
                    number=number, total=total, metrics=metrics, snapshot=_snapshot(setting, optimizer, number, metrics)
                )
        begin = end


def default_stages(params: TrainingParams) -> tuple[Stage, ...]:
    """One stage of polynomial decay over all epochs: nnU-Net's schedule."""
    return (Stage(name="train", epochs=params.epochs, learning_rate=params.learning_rate),)


def _start_stage(setting: Setting, *, stage: Stage) -> torch.optim.Optimizer:
    """Switch gradients on for what the stage trains and make its optimizer."""
    for name, parameter in setting.model.named_parameters():
        parameter.requires_grad_(not stage.parameters or name.startswith(stage.parameters))
    trained = [parameter for parameter in setting.model.parameters() if parameter.requires_grad]
    decay = setting.params.weight_decay
    if setting.params.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=stage.learning_rate, weight_decay=decay)
    return torch.optim.SGD(trained, lr=stage.learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=decay)


def _parallel(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if dist.is_initialized() else model


def _train_epoch(
    setting: Setting, *, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Any, epoch: int, augment: bool
) -> float:
    model.train()
    params = setting.params if augment else dataclasses.replace(setting.params, augmentation="none", mirror="none")
    total = torch.zeros((), device=setting.device)
    keys = ((setting.seed, _rank(), epoch, step) for step in range(params.iterations))
    batches = prefetch(draw(setting.training, task=setting.task, params=params, key=key) for key in keys)
    for batch in batches:
        total += _step(setting, batch=batch, model=model, optimizer=optimizer, loss=loss)
    return float(_mean_over_ranks(total / params.iterations))


def _step(setting: Setting, *, batch: Batch, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Any) -> Tensor:
    device = setting.device
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        logits = model(batch.image.to(device, non_blocking=True))
        value = loss(logits, batch.atoms.to(device), batch.annotated.to(device))
    value.backward()
    nn.utils.clip_grad_norm_(model.parameters(), LARGEST_GRADIENT)
    optimizer.step()
    return value.detach()


@torch.no_grad()
def _validate(setting: Setting) -> dict[str, float]:
    """Pseudo-Dice on patches of the validation cases: counts pooled over all of them, then one Dice a structure."""
    if not setting.validation or not setting.params.validation_iterations:
        return {}
    setting.model.eval()
    params = dataclasses.replace(setting.params, augmentation="none", mirror="none")
    structures = setting.task.table.labels.structures
    counts = torch.zeros(len(structures), 3, dtype=torch.float64)
    keys = ((setting.seed, _rank(), VALIDATION, step) for step in range(params.validation_iterations))
    for batch in prefetch(draw(setting.validation, task=setting.task, params=params, key=key) for key in keys):
        logits = setting.model(batch.image.to(setting.device))[0].cpu()
        counts += dice_counts(logits, atoms=batch.atoms, annotated=batch.annotated, task=setting.task)
    if dist.is_initialized():
        counts = counts.to(setting.device)  # NCCL moves nothing that lies in main memory
        dist.all_reduce(counts)
        counts = counts.cpu()
    hits, false, missed = counts.T
    dice = torch.where(
        hits + missed + false > 0, 2 * hits / (2 * hits + false + missed).clamp(min=1), torch.nan
    ).numpy()
    seen = {
        f"patch_dice/{name}": float(value) for name, value in zip(structures, dice, strict=True) if not np.isnan(value)
    }
    return {"patch_dice": float(np.mean(list(seen.values()))) if seen else 0.0, **seen}


def _smooth(previous: float | None, value: float) -> float:
    return value if previous is None else SMOOTHING * previous + (1 - SMOOTHING) * value


def _snapshot(
    setting: Setting, optimizer: torch.optim.Optimizer, number: int, metrics: dict[str, float]
) -> Callable[[], Snapshot]:
    return lambda: Snapshot(
        weights=setting.model.state_dict(), metrics=metrics, epoch=number, optimizer=optimizer.state_dict()
    )


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _mean_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
