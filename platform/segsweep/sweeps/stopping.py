"""Early stopping that asks: the scheduler raises a flag, the training saves, reports and returns, and so frees all it held.

A trial that Tune kills outright leaves its Ray Train workers and placement groups behind. No rule changes how long
a trial was meant to train: its learning rates are those of its own epochs. So trials are compared after equal shares of these: at equal
epochs a short training, whose rate has fallen further, would look better than it ends.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from segsweep.data.mirror import HERE, Mirror
from segsweep.errors import RecipeError
from segsweep.sweeps.folds import judged_folder
from segsweep.sweeps.pairing import RATE, fewest_cases, verdict
from segsweep.sweeps.run_folder import light, request_stop

RULES = ("asha", "hyperband", "paired", "none")
# Hyperband's: each gives its trials three times as long as the one before it until the first verdict.
BRACKETS, REDUCTION = 3, 3
# A rung at three tenths is reached by the third epoch of ten, whatever floats make of that.
ROUNDING = 1e-9


class CooperativeASHA(AsyncHyperBandScheduler):
    """ASHA over shares of a trial's epochs, on the smoothed patch Dice. Where ASHA would stop a trial, its folder gets a stop flag.

    With several brackets it is Hyperband, run asynchronously (Li et al., A System for Massively Parallel Hyperparameter Tuning, 2020).
    """

    def __init__(self, *, grace: float, reduction: int = REDUCTION, brackets: int = 1) -> None:
        super().__init__(
            time_attr="share",
            metric="patch_dice_smoothed",
            mode="max",
            grace_period=grace,  # type: ignore[arg-type]  Ray's rungs are numbers of any kind
            max_t=1,
            reduction_factor=reduction,
            brackets=brackets,
            stop_last_trials=False,
        )

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial that is begun again after its process died stays in its bracket."""
        if trial.trial_id not in self._trial_info:
            super().on_trial_add(tune_controller, trial)

    def recall(self, curves: Mapping[str, Mapping[float, float]]) -> None:
        """Judge as if the trials that ended under an earlier driver had been seen: smoothed patch Dice by share, by a trial's name."""
        for name, curve in curves.items():
            past: Any = SimpleNamespace(trial_id=name)
            self.on_trial_add(None, past)  # type: ignore[arg-type]  ASHA asks nothing of Tune
            for share in sorted(curve):
                self._judge(past, share=share, dice=curve[share])

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:  # noqa: ARG002
        """The sweep optimises the final Dice; this scheduler keeps to the metric that every epoch has."""
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """CONTINUE always; a verdict of STOP becomes a flag."""
        if "patch_dice_smoothed" in result and self._judge(
            trial, share=result["epoch"] / result["epochs"], dice=result["patch_dice_smoothed"]
        ):
            request_stop(judged_folder(Path(trial.config["folder"]), report=result))
        return TrialScheduler.CONTINUE

    def _judge(self, trial: Any, *, share: float, dice: float) -> bool:
        """Whether ASHA would stop the trial now."""
        result: Any = {"share": share + ROUNDING, "patch_dice_smoothed": dice}
        return super().on_trial_result(None, trial, result) == TrialScheduler.STOP  # type: ignore[arg-type]


class CooperativePaired(FIFOScheduler):
    """Stops a trial that is significantly worse than the best one on the same scans, whenever whole scans were validated.

    All that it knows lies in the trials' folders, beside each other: a driver that takes over a sweep decides as the one before it.
    `home` is what they are part of.
    """

    def __init__(self, *, grace: float, home: Mirror = HERE) -> None:
        super().__init__()
        self._grace, self._home = grace, home
        self._running: dict[Path, int] = {}
        self._ended: dict[Path, Mapping[str, Any]] = {}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:  # noqa: ARG002
        """CONTINUE always; a trial that is worse gets a flag."""
        folder, epoch = judged_folder(self._folder(trial), report=result), result.get("epoch", 0)
        if "dice_scan" in result:
            self._home.at(folder).fetch(light)
            self._running[folder] = result["epochs"]
            known = {"running": self._running, "ended": self._ended}
            if epoch / result["epochs"] + ROUNDING >= self._grace and verdict(folder, **known):
                request_stop(self._home.at(folder).uri)
        return TrialScheduler.CONTINUE

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:  # noqa: ARG002
        """From now on its folder has a result."""
        self._forget(trial)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:  # noqa: ARG002
        """A trial that failed is no rival."""
        self._forget(trial)

    def _folder(self, trial: Any) -> Path:
        return self._home.at(trial.config["folder"]).folder

    def _forget(self, trial: Any) -> None:
        folder = self._folder(trial)
        self._running = {own: epochs for own, epochs in self._running.items() if folder not in (own, own.parent)}


def make_scheduler(
    rule: str, *, grace: float, curves: Mapping[str, Mapping[float, float]], home: Mirror = HERE
) -> TrialScheduler | None:
    """The scheduler of `stop=RULE`; None where no trial is stopped. `grace`: share of a trial's epochs before it may be stopped
    (above 0 but for `paired`); `curves` as for `recall`, `home` as for `CooperativePaired`.
    """
    if rule == "paired":
        return CooperativePaired(grace=grace, home=home)
    if rule == "none":
        return None
    scheduler = CooperativeASHA(grace=grace, brackets=BRACKETS if rule == "hyperband" else 1)
    scheduler.recall(curves)
    return scheduler


def demand_pairs(*, every: int, epochs: int, cases: int) -> str:
    """What is to be said before trials are compared in pairs; nothing when enough cases are held out.

    `every`: epochs from one validation of whole scans to the next. Raises RecipeError when there is none before the last epoch.
    """
    if not 0 < every < epochs:
        raise RecipeError(
            f"stop=paired compares whole scans between epochs, and scan_validation_every={every} of {epochs} epochs validates none; "
            f"expected a number from 1 to {epochs - 1}"
        )
    needed = fewest_cases(share=every / epochs)
    if cases >= needed:
        return ""
    return (
        f"starting with too few cases to stop any trial: the fold holds out {cases}, and at a rate of {RATE:g} "
        f"stop=paired needs {needed}"
    )
