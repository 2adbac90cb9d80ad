"""What a sweep may be asked for, checked as soon as it is said."""

from dataclasses import dataclass

from segsweep.errors import unknown
from segsweep.models.registry import NAME
from segsweep.sweeps.stopping import RULES
from segsweep.sweeps.tuning_objectives import DICE, parse_objectives
from segsweep.sweeps.tuning_sampling import SAMPLERS


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How a sweep runs. `concurrent` 0 means as many trials at once as fit; `gpus` is the share of a GPU that each worker gets
    where there are any; `register` is how many of the best trials become versions of the registered model.

    `sampler` proposes (tpe, gp, random, grid, nsga2) for what `objective` names, and knows the finished trials of the sweeps in `warm`;
    both may be several names with commas. `stop` is the rule by which bad trials end early (asha, hyperband, paired, none), `grace`
    the share of its epochs that a trial is left alone before.

    Every trial trains the store's `folds`, numbers with commas or all of them, one after another, and is judged by what they hold out
    together; rules that stop trials judge it by its first one. (A run's fold="all" is something else: it holds nothing out.)

    A published comparison has one trial a row, whatever `trials` is. `scale` below 1 shrinks its epochs and patches, `pretrained` is the
    model that its pre-trained rows start from.
    """

    name: str = ""
    trials: int = 20
    concurrent: int = 0
    workers: int = 1
    gpus: float = 1.0
    folds: str = "0"
    seed: int = 0
    grace: float = 0.1
    register: int = 3
    sampler: str = "tpe"
    objective: str = DICE
    warm: str = ""
    stop: str = "none"
    scale: float = 1.0
    pretrained: str = ""

    def __post_init__(self) -> None:
        if self.name and not NAME.fullmatch(self.name):
            raise ValueError(
                f"name={self.name} cannot be used: expected a letter or digit, then at most 127 letters, digits, spaces and . _ + -"
            )
        for key, least in (("trials", 1), ("concurrent", 0), ("workers", 1), ("register", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)} cannot be used: expected at least {least}")
        for key in ("scale", "gpus"):
            if not 0.0 < getattr(self, key) <= 1.0:
                raise ValueError(f"{key}={getattr(self, key)} cannot be used: expected a share above 0, at most 1")
        if not 0.0 <= self.grace < 1.0:
            raise ValueError(
                f"grace={self.grace} cannot be used: expected a share of a trial's epochs, from 0 to below 1"
            )
        for key, known in (("sampler", SAMPLERS), ("stop", RULES)):
            if getattr(self, key) not in known:
                raise ValueError(unknown(getattr(self, key), kind=f"values of {key}", known=known))
        parse_objectives(self.objective)
        parse_folds(self.folds)
        if self.stop in ("asha", "hyperband") and not self.grace:
            raise ValueError(
                f"stop={self.stop} cannot be used with grace=0: expected the share of a trial's epochs before the first verdict"
            )

    @property
    def earlier(self) -> tuple[str, ...]:
        """Names of the sweeps in `warm`."""
        return tuple(self.warm.split(",")) if self.warm else ()


def parse_folds(text: str) -> tuple[int, ...]:
    """`0,1,2` as numbers; none for "all". Raises ValueError for other words, and for a fold that is named twice."""
    if text == "all":
        return ()
    parts = text.split(",")
    numbers = tuple(int(part) for part in parts if part.isdecimal())
    if len(set(numbers)) < len(parts):
        raise ValueError(f"folds={text} cannot be used: expected all, or numbers with commas between them, each once")
    return numbers
