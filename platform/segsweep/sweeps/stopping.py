"""Early stopping that asks: the scheduler raises a flag, the training saves, reports and returns, and so frees all it held.

A trial that Tune kills outright leaves its Ray Train workers and placement groups behind (DESIGN.md 7.1).
"""

from pathlib import Path
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from segsweep.sweeps.training import request_stop


class CooperativeASHA(AsyncHyperBandScheduler):
    """ASHA over epochs on the smoothed patch Dice. Where ASHA would stop a trial, the trial's folder gets a stop flag."""

    def __init__(self, *, grace_epochs: int, most_epochs: int, reduction: int = 3) -> None:
        super().__init__(
            time_attr="epoch",
            metric="patch_dice_smoothed",
            mode="max",
            grace_period=grace_epochs,
            max_t=most_epochs,
            reduction_factor=reduction,
            stop_last_trials=False,
        )

    def set_search_properties(self, metric: str | None, mode: str | None, **spec: Any) -> bool:  # noqa: ARG002
        """The sweep optimises the final Dice; this scheduler keeps to the metric that every epoch has."""
        return True

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """CONTINUE always; a verdict of STOP becomes a flag."""
        if super().on_trial_result(tune_controller, trial, result) == TrialScheduler.STOP:
            request_stop(Path(trial.config["folder"]))
        return TrialScheduler.CONTINUE
