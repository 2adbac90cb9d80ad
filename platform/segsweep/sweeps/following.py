"""What a sweep tells while it runs: lines and bars on the terminal, and every trial as a child run in MLflow (driver only)."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback

from segsweep.models.outbox import Outbox, Tags
from segsweep.models.tracking import DIGEST_TAG, SWEEP_TAG, TRIAL_TAG, Status
from segsweep.sweeps.shortage import noted
from segsweep.sweeps.training import RESULT, read_result
from segsweep.sweeps.tuning_objectives import DIRECTIONS

# What a trial's folder also holds: the log of a failed one, and a mark once MLflow was told how it ended.
ERROR, LOGGED = "error.txt", "logged"

# Told what happens to trials: trial name, epochs done, epochs in all, a few words.
Report = Callable[[str, int, int, str], None]


def silent(_trial: str, _done: int, _total: int, _words: str) -> None:
    """The Report that says nothing."""


class Follow(Callback):
    """Logs trials under one parent run, through the outbox, and reports their progress. `close` it when the trials are over."""

    def __init__(self, outbox: Outbox, *, parent: Tags | None, sweep: str, report: Report) -> None:
        self.tracker, self.sweep = outbox.tracker, sweep
        self._outbox, self._parent, self._report = outbox, parent, report
        self._open: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a pickled copy for its own restore, which is never used: connections stay out of it."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Open the trial's MLflow run, or the one that an interrupted sweep left."""
        name = trial_name(trial)
        params = {key: value for key, value in trial.config.items() if key != "folder"}
        self._outbox.begin(self.tags(name), name=name, parent=self._parent, params=params)
        (Path(trial.config["folder"]) / LOGGED).unlink(missing_ok=True)
        self._open.add(name)
        self._report(name, 0, 0, f"starting {describe(trial.config)}".rstrip())

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Log one epoch; of the last report only what the epoch before it did not have."""
        if "epoch" not in result:
            return
        name, step, values = trial_name(trial), int(result["epoch"]), measurements(result)
        new = values if result.get("status") == "training" else {k: v for k, v in values.items() if k in DIRECTIONS}
        self._outbox.metrics(self.tags(name), new, step=step)
        words = ", ".join(f"{key} {values[key]:.3f}" for key in ("loss", "patch_dice", "dice") if key in values)
        self._report(name, step, int(result.get("epochs", 0)), words)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Close the trial's run with its status and its table of Dice per structure."""
        name, folder = trial_name(trial), Path(trial.config["folder"])
        if not (folder / RESULT).is_file():
            return
        result = read_result(folder)
        self._conclude(name, result)
        (folder / LOGGED).touch()
        words = f"dice {result['dice']:.3f}" if "dice" in result else result["status"].replace("_", " ")
        self._report(name, int(result["epoch"]), int(result["epoch"]), f"ended: {words}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Close the trial's run as failed, keep its log in its folder and say where that is."""
        name, folder = trial_name(trial), Path(trial.config["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        if trial.error_file and Path(trial.error_file).is_file():
            shutil.copyfile(trial.error_file, folder / ERROR)
        if name in self._open:  # a trial may fail before it starts
            self._finish(name, status="FAILED")
        (folder / LOGGED).touch()
        self._report(name, 0, 0, f"failed: {failure(folder)}; see {folder / ERROR}")

    def settle(self, folder: Path, *, params: Mapping[str, Any]) -> None:
        """Log how the trial of a folder ended, unless that was done: its driver may have died before it could.

        A trial that was refused before it began has neither parameters nor a result, and no run.
        """
        run, ended = self.tags(folder.name), (folder / RESULT).is_file()
        if (folder / LOGGED).exists() or not (ended or params):
            return
        self._outbox.begin(run, name=folder.name, parent=self._parent, params=params)
        if ended:
            result = read_result(folder)
            values = {key: value for key, value in measurements(result).items() if key in DIRECTIONS}
            self._outbox.metrics(run, values, step=int(result["epoch"]))
            self._conclude(folder.name, result)
        else:
            self._finish(folder.name, status="FAILED")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOGGED).touch()

    def run_of(self, name: str) -> str | None:
        """MLflow run of a trial, by its name."""
        return self.tracker.find(tags=self.tags(name))

    def tags(self, name: str) -> dict[str, str]:
        """What a trial's MLflow run is found by."""
        return {SWEEP_TAG: self.sweep, TRIAL_TAG: name}

    def close(self) -> None:
        """Runs of trials that did not end become KILLED; a later sweep opens them again."""
        for name in list(self._open):
            self._finish(name, status="KILLED")

    def _conclude(self, name: str, result: Mapping[str, Any]) -> None:
        run = self.tags(name)
        rows = [{"structure": key[5:], "dice": value} for key, value in result.items() if key.startswith("dice/")]
        if rows:
            self._outbox.table(run, rows, path="dice_per_structure.json")
        self._outbox.tag(run, {"segsweep.status": result["status"], DIGEST_TAG: result["digest"]})
        self._finish(name, status="FINISHED")

    def _finish(self, name: str, *, status: Status) -> None:
        self._outbox.finish(self.tags(name), status=status)
        self._open.discard(name)


def trial_name(trial: Any) -> str:
    """`trial-0003`: the name of its folder."""
    return Path(trial.config["folder"]).name


def describe(config: Mapping[str, Any]) -> str:
    """A trial's parameters in one line."""
    return ", ".join(f"{key}={_short(value)}" for key, value in config.items() if key != "folder")


def failure(folder: Path) -> str:
    """Why the trial in a folder failed: what its memory did not hold, or the last line of its log."""
    lacking = noted(folder)
    if lacking:
        return f"out of memory with {describe(lacking)}"
    return _last_line((folder / ERROR).read_text()) if (folder / ERROR).is_file() else "no log was written"


def measurements(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result, without Ray's own entries and without per-structure values (those are a table)."""
    keys = ("loss", "learning_rate", "patch_dice", "patch_dice_smoothed", "dice_scan", *DIRECTIONS)
    return {key: float(result[key]) for key in keys if key in result}


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")
