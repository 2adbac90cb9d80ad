"""The training loop as a generator: it yields after every epoch, and whoever drives it decides what to save and when to stop.

Sampling is a pure function of (seed, rank, epoch, step), so a training that resumes from a snapshot repeats nothing and skips nothing.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segsweep.learning.batches import Batch, draw
from segsweep.learning.checkpoint import Snapshot
from segsweep.learning.losses import Loss, dice_counts
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import TrainingCase
from segsweep.learning.prefetch import prefetch
from segsweep.learning.sampling import Turn
from segsweep.learning.stages import Optimizer, Stage
from segsweep.learning.task import Task

# nnU-Net's values (v2, training loop).
MOMENTUM, SMOOTHING = 0.99, 0.9
# Key of the validation draws: the same patches after every epoch, whatever the number of epochs.
VALIDATION = 1 << 30


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
                        setting, stage=stage, model=model, optimizer=optimizer, epoch=number, begin=begin
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


def _start_stage(setting: Setting, *, stage: Stage) -> torch.optim.Optimizer:
    """Set the model's switches, let gradients flow into what the stage trains, and make its optimizer."""
    for name, on in stage.switches.items():
        setting.model.get_buffer(name).fill_(on)
    for name, parameter in setting.model.named_parameters():
        parameter.requires_grad_(not stage.parameters or name.startswith(stage.parameters))
    trained = [parameter for parameter in setting.model.parameters() if parameter.requires_grad]
    return make_optimizer(
        stage.optimizer or setting.params.optimizer,
        parameters=trained,
        learning_rate=stage.learning_rate,
        weight_decay=setting.params.weight_decay,
    )


def make_optimizer(
    name: Optimizer, *, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The named optimizer; "sgd" with nnU-Net's momentum 0.99 (Nesterov), "amsgrad" is AdamW with AMSGrad."""
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=weight_decay
        )
    if name == "adam":
        return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=weight_decay)
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, amsgrad=name == "amsgrad")


def _parallel(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model) if dist.is_initialized() else model


def _train_epoch(
    setting: Setting, *, stage: Stage, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int, begin: int
) -> float:
    """Train `epoch` of a stage that began with epoch `begin`, and return the mean loss."""
    model.train()
    params = setting.params if stage.augment else _plain(setting.params)
    unlabelled = setting.unlabelled if stage.unlabelled else ()
    progress = (epoch - begin) / stage.epochs
    total = torch.zeros((), device=setting.device)

    def make(turn: Turn) -> Batch:
        return draw(setting.training, task=setting.task, params=params, turn=turn, unlabelled=unlabelled)

    for batch in prefetch(make, _turns(setting, epoch=epoch, steps=params.iterations)):
        optimizer.zero_grad(set_to_none=True)
        total += _backward(setting, batch=batch, model=model, progress=progress)
        nn.utils.clip_grad_norm_(model.parameters(), stage.largest_gradient)
        optimizer.step()
    return float(_mean_over_ranks(total / params.iterations))


def _backward(setting: Setting, *, batch: Batch, model: nn.Module, progress: float) -> Tensor:
    device = setting.device
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
        logits = _logits(setting, model=model, batch=batch)
        value = setting.loss(logits, batch.atoms.to(device), batch.annotated.to(device), progress=progress)
    value.backward()
    return value.detach()


def _logits(setting: Setting, *, model: nn.Module, batch: Batch) -> list[Tensor]:
    image = batch.image.to(setting.device, non_blocking=True)
    if getattr(setting.model, "takes_source", False):
        return model(image, batch.source.to(setting.device))
    return model(image)


def _plain(params: TrainingParams) -> TrainingParams:
    return dataclasses.replace(params, augmentation="none", mirror="none")


@torch.no_grad()
def _validate(setting: Setting) -> dict[str, float]:
    """Pseudo-Dice on patches of the validation cases: counts pooled over all of them, then one Dice a structure."""
    if not setting.validation or not setting.params.validation_iterations:
        return {}
    setting.model.eval()
    params = _plain(setting.params)
    structures = setting.task.table.labels.structures
    counts = torch.zeros(len(structures), 3, dtype=torch.float64)

    def make(turn: Turn) -> Batch:
        return draw(setting.validation, task=setting.task, params=params, turn=turn)

    for batch in prefetch(make, _turns(setting, epoch=VALIDATION, steps=params.validation_iterations)):
        logits = _logits(setting, model=setting.model, batch=batch)[0].cpu()
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


def _turns(setting: Setting, *, epoch: int, steps: int) -> Iterator[Turn]:
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return (Turn(seed=setting.seed, epoch=epoch, step=step, rank=_rank(), ranks=ranks) for step in range(steps))


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _mean_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
