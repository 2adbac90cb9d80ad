"""What a sweep tells while it runs: lines and bars on the terminal, and every trial as a child run in MLflow (driver only)."""

import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray.tune import Callback

from segsweep.models.tracking import DIGEST_TAG, SWEEP_TAG, TRIAL_TAG, Status, Tracker
from segsweep.sweeps.training import RESULT, read_result
from segsweep.sweeps.tuning_objectives import DIRECTIONS

ERROR = "error.txt"
# A tracking server that did not answer is left alone this long (seconds): its client retries for minutes by itself.
PAUSE = 60.0

# Told what happens to trials: trial name, epochs done, epochs in all, a few words.
Report = Callable[[str, int, int, str], None]


def silent(_trial: str, _done: int, _total: int, _words: str) -> None:
    """The Report that says nothing."""


class Follow(Callback):
    """Logs trials under one parent run and reports their progress. `close` it when the trials are over.

    What a tracking server does not take is kept and sent later, in order, with its first timestamp: an outage ends no training.
    """

    def __init__(self, tracker: Tracker, *, parent: str | None, sweep: str, report: Report) -> None:
        self.tracker, self.sweep, self._parent, self._report = tracker, sweep, parent, report
        self._open: dict[str, str] = {}
        self._unsent: deque[Callable[[], None]] = deque()
        self._silent_until = 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a pickled copy for its own restore, which is never used: connections stay out of it."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Open the trial's MLflow run, or the one that an interrupted sweep left."""
        name = trial_name(trial)
        params = {key: value for key, value in trial.config.items() if key != "folder"}
        self._send(lambda: self._begin(name, params))
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
        name, step, moment = trial_name(trial), int(result["epoch"]), int(time.time() * 1000)
        values = measurements(result)
        new = values if result.get("status") == "training" else {k: v for k, v in values.items() if k in DIRECTIONS}
        self._send(lambda: self.tracker.metrics(self._open[name], new, step=step, timestamp_ms=moment))
        words = ", ".join(f"{key} {values[key]:.3f}" for key in ("loss", "patch_dice", "dice") if key in values)
        self._report(name, step, int(result.get("epochs", 0)), words)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Close the trial's run with its status and its table of Dice per structure."""
        name, folder = trial_name(trial), Path(trial.config["folder"])
        if not (folder / RESULT).is_file():
            return
        result = read_result(folder)
        self._send(lambda: self._conclude(name, result))
        words = f"dice {result['dice']:.3f}" if "dice" in result else result["status"].replace("_", " ")
        self._report(name, int(result["epoch"]), int(result["epoch"]), f"ended: {words}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Close the trial's run as failed, keep its log in its folder and say where that is."""
        name, folder = trial_name(trial), Path(trial.config["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        if trial.error_file and Path(trial.error_file).is_file():
            shutil.copyfile(trial.error_file, folder / ERROR)
        self._send(lambda: self._finish(name, status="FAILED"))
        self._report(name, 0, 0, f"failed: {failure(folder)}; see {folder / ERROR}")

    def run_of(self, name: str) -> str | None:
        """MLflow run of a trial, by its name."""
        return self.tracker.find(tags=self.tags(name))

    def tags(self, name: str) -> dict[str, str]:
        """What a trial's MLflow run is found by."""
        return {SWEEP_TAG: self.sweep, TRIAL_TAG: name}

    def close(self) -> None:
        """Send what is left; runs of trials that did not end become KILLED (a later sweep opens them again)."""
        self._silent_until = 0.0
        self._send(lambda: None)
        for name in list(self._open):
            self._send(lambda name=name: self._finish(name, status="KILLED"))
        if self._unsent:
            self._report("MLflow", 0, 0, f"failed: {len(self._unsent)} entries could not be sent")

    def _send(self, act: Callable[[], None]) -> None:
        """Do this after everything that waits. The exceptions of a server that is away are of many kinds."""
        self._unsent.append(act)
        if time.monotonic() < self._silent_until:
            return
        while self._unsent:
            try:
                self._unsent[0]()
            except Exception as error:
                self._silent_until = time.monotonic() + PAUSE
                self._report("MLflow", 0, 0, f"failed, its entries wait: {_last_line(str(error))}")
                return
            self._unsent.popleft()

    def _begin(self, name: str, params: Mapping[str, Any]) -> None:
        run_id = self.run_of(name)
        if run_id is None:
            run_id = self.tracker.start(name, parent=self._parent, params=params, tags=self.tags(name))
        else:
            self.tracker.resume(run_id)
        self._open[name] = run_id

    def _conclude(self, name: str, result: Mapping[str, Any]) -> None:
        run_id = self._open[name]
        rows = [{"structure": key[5:], "dice": value} for key, value in result.items() if key.startswith("dice/")]
        if rows:
            self.tracker.table(run_id, rows, path="dice_per_structure.json")
        self.tracker.tag(run_id, {"segsweep.status": result["status"], DIGEST_TAG: result["digest"]})
        self._finish(name, status="FINISHED")

    def _finish(self, name: str, *, status: Status) -> None:
        if name in self._open:  # a trial may fail before it starts
            self.tracker.finish(self._open[name], status=status)
            del self._open[name]


def trial_name(trial: Any) -> str:
    """`trial-0003`: the name of its folder."""
    return Path(trial.config["folder"]).name


def describe(config: Mapping[str, Any]) -> str:
    """A trial's parameters in one line."""
    return ", ".join(f"{key}={_short(value)}" for key, value in config.items() if key != "folder")


def failure(folder: Path) -> str:
    """Why the trial in a folder failed: the last line of its log."""
    return _last_line((folder / ERROR).read_text()) if (folder / ERROR).is_file() else "no log was written"


def measurements(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result, without Ray's own entries and without per-structure values (those are a table)."""
    keys = ("loss", "learning_rate", "patch_dice", "patch_dice_smoothed", "dice_scan", *DIRECTIONS)
    return {key: float(result[key]) for key in keys if key in result}


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")
