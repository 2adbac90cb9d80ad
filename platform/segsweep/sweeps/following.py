"""What a sweep tells while it runs: lines and bars on the terminal, and every trial as a child run in MLflow (driver only)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback

from segsweep.models.tracking import Tracker
from segsweep.sweeps.training import RESULT, read_result

TRIAL_TAG = "segsweep.trial"

# Told what happens to trials: trial name, epochs done, epochs in all, a few words.
Report = Callable[[str, int, int, str], None]


class Follow(Callback):
    """Logs trials under one parent run and reports their progress."""

    def __init__(self, tracker: Tracker, *, parent: str | None, sweep: str, report: Report) -> None:
        self.tracker, self.sweep, self._parent, self._report = tracker, sweep, parent, report
        self._runs: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a pickled copy for its own restore, which is never used: connections stay out of it."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Open the trial's MLflow run, or the one that an interrupted sweep left open."""
        name = trial_name(trial)
        tags = {"segsweep.sweep": self.sweep, TRIAL_TAG: name}
        run_id = self.tracker.find(tags=tags)
        if run_id is None:
            params = {key: value for key, value in trial.config.items() if key != "folder"}
            run_id = self.tracker.start(name, parent=self._parent, params=params, tags=tags)
        else:
            self.tracker.resume(run_id)
        self._runs[trial.trial_id] = run_id
        self._report(name, 0, 0, f"starting {describe(trial.config)}".rstrip())

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:  # noqa: ARG002
        """Log one epoch."""
        if "epoch" not in result:
            return
        values = measurements(result)
        self.tracker.metrics(self._runs[trial.trial_id], values, step=int(result["epoch"]))
        shown = {key: values[key] for key in ("loss", "patch_dice", "dice") if key in values}
        words = ", ".join(f"{key} {value:.3f}" for key, value in shown.items())
        self._report(trial_name(trial), int(result["epoch"]), int(result.get("epochs", 0)), words)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Close the trial's run with its status and its table of Dice per structure."""
        folder, run_id = Path(trial.config["folder"]), self._runs[trial.trial_id]
        if not (folder / RESULT).is_file():
            return
        result = read_result(folder)
        rows = [{"structure": key[5:], "dice": value} for key, value in result.items() if key.startswith("dice/")]
        if rows:
            self.tracker.table(run_id, rows, path="dice_per_structure.json")
        self.tracker.tag(run_id, {"segsweep.status": result["status"], "segsweep.digest": result["digest"]})
        self.tracker.finish(run_id)
        words = f"dice {result['dice']:.3f}" if "dice" in result else "stopped early"
        self._report(trial_name(trial), int(result["epoch"]), int(result["epoch"]), f"ended: {words}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Close the trial's run as failed and say where its log is."""
        self.tracker.finish(self._runs[trial.trial_id], status="FAILED")
        self._report(trial_name(trial), 0, 0, f"failed; see {trial.local_path}/error.txt")

    def run_of(self, name: str) -> str | None:
        """MLflow run of a trial, by its name."""
        return self.tracker.find(tags={"segsweep.sweep": self.sweep, TRIAL_TAG: name})


def trial_name(trial: Any) -> str:
    """`trial-0003`: the name of its folder."""
    return Path(trial.config["folder"]).name


def describe(config: Mapping[str, Any]) -> str:
    """A trial's parameters in one line."""
    return ", ".join(f"{key}={_short(value)}" for key, value in config.items() if key != "folder")


def measurements(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result, without Ray's own entries and without per-structure values (those are a table)."""
    keys = ("loss", "learning_rate", "patch_dice", "patch_dice_smoothed", "dice")
    return {key: float(result[key]) for key in keys if key in result}


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
