"""One training step: forward and backward of the batch's parts, gradient clipping, the optimizer, and the average of weights."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from segsweep.learning.average import Average
from segsweep.learning.batches import Batch
from segsweep.learning.precision import computing
from segsweep.learning.setting import Setting
from segsweep.learning.stages import Optimizer

# nnU-Net's value (v2, training loop).
MOMENTUM = 0.99


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What a stage trains with. `forward` is the model as it is called in training: compiled, and parallel where several train."""

    forward: Callable[..., list[Tensor]]
    unsynchronised: Callable[[], AbstractContextManager[Any]]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: Average | None

    def step(
        self, batches: Iterator[Batch], *, setting: Setting, largest_gradient: float, progress: float, number: int
    ) -> Tensor:
        """Take the next `accumulate` batches for one step of the weights and return their mean loss.

        `number` counts the training's steps from 0. The gradient is the mean of the batches'; workers exchange it once.
        """
        parts = setting.params.accumulate
        total = torch.zeros((), device=setting.device)
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(parts):
            with self.unsynchronised() if part < parts - 1 else nullcontext():
                value = self._loss(next(batches), setting=setting, progress=progress) / parts
                self.scaler.scale(value).backward()
            total += value.detach()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(setting.model.parameters(), largest_gradient)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update(setting.model, step=number)
        return total

    def _loss(self, batch: Batch, *, setting: Setting, progress: float) -> Tensor:
        takes_source = getattr(setting.model, "takes_source", False)
        with computing(setting.params.precision, device=setting.device):
            logits = self.forward(batch.image, batch.source) if takes_source else self.forward(batch.image)
            return setting.loss(logits, batch.atoms, batch.annotated, progress=progress)


def make_learner(
    setting: Setting, *, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, average: Average | None
) -> Learner:
    """The learner of a stage. Under an initialised process group the gradients are averaged over all ranks."""
    parallel = DistributedDataParallel(setting.model) if dist.is_initialized() else None
    model = parallel or setting.model
    return Learner(
        # A wrapper: the model itself, its names and what predicts with it stay as they are.
        forward=torch.compile(model) if setting.params.compile else model,  # pyright: ignore[reportArgumentType]
        unsynchronised=parallel.no_sync if parallel else nullcontext,
        optimizer=optimizer,
        scaler=scaler,
        average=average,
    )


def make_optimizer(
    name: Optimizer, *, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The named optimizer; "sgd" with nnU-Net's momentum 0.99 (Nesterov), "amsgrad" is AdamW with AMSGrad.

    Fused ones, on CPU as on GPU: they pass over the weights once, in a third of the time.
    """
    if name == "sgd":
        return torch.optim.SGD(
            parameters, lr=learning_rate, momentum=MOMENTUM, nesterov=True, weight_decay=weight_decay, fused=True
        )
    kind = torch.optim.Adam if name == "adam" else torch.optim.AdamW
    return kind(parameters, lr=learning_rate, weight_decay=weight_decay, amsgrad=name == "amsgrad", fused=True)
