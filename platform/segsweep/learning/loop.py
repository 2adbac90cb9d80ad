"""The training loop as a generator: it yields after every epoch, and whoever drives it decides what to save and when to stop.

Sampling and dropout are pure functions of (seed, rank, epoch, step), so a training that resumes from a snapshot repeats nothing and
skips nothing.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segsweep.errors import RecipeError
from segsweep.learning.average import Average
from segsweep.learning.checkpoint import Snapshot
from segsweep.learning.feeding import feed
from segsweep.learning.precision import make_scaler
from segsweep.learning.pseudo_dice import pseudo_dice
from segsweep.learning.recompute import recomputed
from segsweep.learning.sampling import Turn
from segsweep.learning.setting import Setting, plain, rank, ranks
from segsweep.learning.stages import Stage
from segsweep.learning.step import Learner, make_learner, make_optimizer

__all__ = ["Epoch", "Setting", "train"]

# nnU-Net's value (v2, training loop).
SMOOTHING = 0.9


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One finished epoch, counted from 0. `metrics`: loss, learning_rate and, with validation cases, patch_dice values (0 to 1).

    `model` is the one that was validated, whose weights the snapshot gives: the average of weights where the parameters ask for one.
    """

    number: int
    total: int
    metrics: dict[str, float]
    model: nn.Module
    snapshot: Callable[[], Snapshot]


def train(setting: Setting, *, resume: Snapshot | None = None) -> Iterator[Epoch]:
    """Train stage by stage and yield after every epoch; with `resume`, from the epoch after the snapshot's.

    A snapshot of the last epoch yields nothing. Under an initialised process group the model is trained data-parallel and metrics
    are those of all ranks together. Raises RecipeError when activations cannot be recomputed, and when weights are no longer finite.
    """
    params = setting.params
    if resume is not None:
        setting.model.load_state_dict(dict(resume.raw or resume.weights))
    average = Average(setting.model, decay=params.ema) if params.ema else None
    scaler = make_scaler(params.precision, device=setting.device)
    if resume is not None:
        scaler.load_state_dict(dict(resume.scaler))
        if average:
            average.model.load_state_dict(dict(resume.weights))
    with recomputed(setting.model, on=params.recompute):
        yield from _train(setting, resume=resume, average=average, scaler=scaler)


def _train(
    setting: Setting, *, resume: Snapshot | None, average: Average | None, scaler: torch.amp.GradScaler
) -> Iterator[Epoch]:
    first = 0 if resume is None else resume.epoch + 1
    smoothed = None if resume is None else resume.metrics.get("patch_dice_smoothed")
    total, begin = sum(stage.epochs for stage in setting.stages), 0
    for stage in setting.stages:
        end = begin + stage.epochs
        if first < end:
            optimizer = _start_stage(setting, stage=stage)
            # A snapshot from an earlier stage carries that stage's optimizer: only its weights go on.
            if resume is not None and begin <= resume.epoch < end:
                optimizer.load_state_dict(dict(resume.optimizer))
            learner = make_learner(setting, optimizer=optimizer, scaler=scaler, average=average)
            validated = average.model if average else setting.model
            for number in range(max(first, begin), end):
                rate = stage.rate(number - begin)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                loss = _train_epoch(setting, stage=stage, learner=learner, epoch=number, begin=begin)
                _demand_finite(setting, epoch=number, rate=rate)
                metrics = {"loss": loss, "learning_rate": rate, **pseudo_dice(validated, setting=setting)}
                if "patch_dice" in metrics:
                    smoothed = _smooth(smoothed, metrics["patch_dice"])
                    metrics["patch_dice_smoothed"] = smoothed
                yield Epoch(
                    number=number,
                    total=total,
                    metrics=metrics,
                    model=validated,
                    snapshot=_snapshot(setting, learner=learner, number=number, metrics=metrics),
                )
        begin = end


def _start_stage(setting: Setting, *, stage: Stage) -> torch.optim.Optimizer:
    """Set the model's switches, let gradients flow into what the stage trains, and make its optimizer."""
    # Else what the stage before left behind counts when gradients are clipped.
    setting.model.zero_grad()
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


def _train_epoch(setting: Setting, *, stage: Stage, learner: Learner, epoch: int, begin: int) -> float:
    """Train `epoch` of a stage that began with epoch `begin`, and return the mean loss."""
    setting.model.train()
    # Dropout draws from torch's own generator: it, too, follows from the epoch alone.
    torch.manual_seed(int(Turn(seed=setting.seed, epoch=epoch, rank=rank()).generator().integers(1 << 63)))
    iterations = setting.params.iterations
    total = torch.zeros((), device=setting.device)
    batches = feed(
        setting.training,
        setting=setting,
        params=setting.params if stage.augment else plain(setting.params),
        turns=_turns(setting, epoch=epoch),
        unlabelled=setting.unlabelled if stage.unlabelled else (),
    )
    with closing(batches):
        for step in range(iterations):
            total += learner.step(
                batches,
                setting=setting,
                largest_gradient=stage.largest_gradient,
                progress=(epoch - begin) / stage.epochs,
                number=epoch * iterations + step,
            )
    return float(_mean_over_ranks(total / iterations))


def _demand_finite(setting: Setting, *, epoch: int, rate: float) -> None:
    """Raise RecipeError after an epoch that no later one can mend; the checkpoint of the one before it stays."""
    if not all(bool(value.isfinite().all()) for value in setting.model.parameters()):
        raise RecipeError(
            f"epoch {epoch + 1}: the weights are not finite any more (its rate was {rate:g}); expected a training that converges: "
            "choose a lower learning_rate, or precision=float32"
        )


def _turns(setting: Setting, *, epoch: int) -> Iterator[Turn]:
    """The parts of an accumulated batch are drawn as by so many workers: together they are one batch of all of them."""
    parts = setting.params.accumulate
    for step in range(setting.params.iterations):
        for part in range(parts):
            yield Turn(seed=setting.seed, epoch=epoch, step=step, rank=rank() * parts + part, ranks=ranks() * parts)


def _smooth(previous: float | None, value: float) -> float:
    return value if previous is None else SMOOTHING * previous + (1 - SMOOTHING) * value


def _snapshot(setting: Setting, *, learner: Learner, number: int, metrics: dict[str, float]) -> Callable[[], Snapshot]:
    average = learner.average
    return lambda: Snapshot(
        weights=(average.model if average else setting.model).state_dict(),
        raw=setting.model.state_dict() if average else {},
        metrics=metrics,
        epoch=number,
        optimizer=learner.optimizer.state_dict(),
        scaler=learner.scaler.state_dict(),
    )


def _mean_over_ranks(value: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
