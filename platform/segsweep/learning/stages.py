"""A stage is one stretch of a training: how long, at which learning rate, what is trained, what it is trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Schedule = Literal["poly", "constant", "rise", "step"]
Optimizer = Literal["sgd", "adam", "adamw", "amsgrad"]

# nnU-Net's polynomial decay (v2, training loop).
POLY_EXPONENT = 0.9


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`parameters` are name prefixes of what is trained (empty = everything).

    `schedule` "poly" decays from `learning_rate` towards 0 over the stage (over `horizon` epochs where that is given, so that a later
    stage may go on with the decay), "rise" climbs to it linearly, "constant" stays, and "step" multiplies by `factor` after every
    `period` epochs. `optimizer` None is the run's own; every stage begins with a new one.
    Gradients are clipped to the norm `largest_gradient`. With `unlabelled`, as many patches of unlabelled cases follow the
    labelled ones in every batch. `switches` are flags of the model (buffers by name) that hold from this stage on.
    """

    name: str
    epochs: int
    learning_rate: float
    schedule: Schedule = "poly"
    factor: float = 0.5
    period: int = 1
    horizon: int | None = None
    parameters: tuple[str, ...] = ()
    optimizer: Optimizer | None = None
    largest_gradient: float = 12.0
    augment: bool = True
    unlabelled: bool = False
    switches: Mapping[str, bool] = field(default_factory=dict)

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch of this stage, counted from 0."""
        if self.schedule == "poly":
            return self.learning_rate * (1 - epoch / (self.horizon or self.epochs)) ** POLY_EXPONENT
        if self.schedule == "rise":
            return self.learning_rate * (epoch + 1) / self.epochs
        if self.schedule == "step":
            return self.learning_rate * self.factor ** (epoch // self.period)
        return self.learning_rate
