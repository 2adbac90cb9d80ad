"""A stage is one stretch of a training: how long, at which learning rate, which parameters, with or without augmentation."""

from dataclasses import dataclass
from typing import Literal

Schedule = Literal["poly", "constant", "rise"]

# nnU-Net's polynomial decay (v2, training loop).
POLY_EXPONENT = 0.9


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`parameters` are name prefixes of what is trained (empty = everything).

    `schedule` "poly" decays from `learning_rate` towards 0 over the stage, "rise" climbs to it linearly, "constant" stays.
    """

    name: str
    epochs: int
    learning_rate: float
    schedule: Schedule = "poly"
    parameters: tuple[str, ...] = ()
    augment: bool = True

    def rate(self, epoch: int) -> float:
        """Learning rate of an epoch of this stage, counted from 0."""
        if self.schedule == "poly":
            return self.learning_rate * (1 - epoch / self.epochs) ** POLY_EXPONENT
        if self.schedule == "rise":
            return self.learning_rate * (epoch + 1) / self.epochs
        return self.learning_rate
