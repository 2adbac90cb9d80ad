"""What a sweep may be asked for, checked as soon as it is said."""

from dataclasses import dataclass

from segsweep.errors import unknown
from segsweep.run import Fold
from segsweep.sweeps.stopping import RULES
from segsweep.sweeps.tuning_objectives import DICE, parse_objectives
from segsweep.sweeps.tuning_sampling import SAMPLERS


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How a sweep runs. `concurrent` 0 means as many trials at once as fit; `gpus` is the share of a GPU that each worker gets
    where there are any; `register` is how many of the best trials become versions of the registered model.

    `sampler` proposes (tpe, gp, random, grid, nsga2) for what `objective` names, and knows the finished trials of the sweeps in `warm`;
    both may be several names with commas. `stop` is the rule by which bad trials end early (asha, hyperband, paired, none), `grace`
    the epochs before one may: with 0 only `paired` ever stops any.

    A published comparison has one trial a row, whatever `trials` is. `scale` below 1 shrinks its epochs and patches, `pretrained` is the
    model that its pre-trained rows start from.
    """

    name: str = ""
    trials: int = 20
    concurrent: int = 0
    workers: int = 1
    gpus: float = 1.0
    fold: Fold = 0
    seed: int = 0
    grace: int = 0
    register: int = 3
    sampler: str = "tpe"
    objective: str = DICE
    warm: str = ""
    stop: str = "asha"
    scale: float = 1.0
    pretrained: str = ""

    def __post_init__(self) -> None:
        for key, least in (("trials", 1), ("concurrent", 0), ("workers", 1), ("grace", 0), ("register", 0)):
            if getattr(self, key) < least:
                raise ValueError(f"{key}={getattr(self, key)} cannot be used: expected at least {least}")
        for key in ("scale", "gpus"):
            if not 0.0 < getattr(self, key) <= 1.0:
                raise ValueError(f"{key}={getattr(self, key)} cannot be used: expected a share above 0, at most 1")
        for key, known in (("sampler", SAMPLERS), ("stop", RULES)):
            if getattr(self, key) not in known:
                raise ValueError(unknown(getattr(self, key), kind=f"values of {key}", known=known))
        parse_objectives(self.objective)
        if self.stop == "hyperband" and not self.grace:
            raise ValueError(
                "stop=hyperband cannot be used with grace=0: expected at least one epoch before the first verdict"
            )

    @property
    def earlier(self) -> tuple[str, ...]:
        """Names of the sweeps in `warm`."""
        return tuple(self.warm.split(",")) if self.warm else ()
