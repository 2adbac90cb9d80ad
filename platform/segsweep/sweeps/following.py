"""What a sweep tells while it runs: lines and bars on the terminal, every trial as a child run in MLflow (driver only).

A trial of several folds has a run under its own for each of them, with that fold's epochs.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from ray.tune import Callback

from segsweep.data.mirror import shared
from segsweep.models.outbox import Outbox, Tags
from segsweep.models.tracking import DIGEST_TAG, FOLD_TAG, SWEEP_TAG, TRIAL_TAG, Status
from segsweep.sweeps.folds import FOLD, FOLD_FOLDERS, fold_name, judged_folder, told
from segsweep.sweeps.kept import DAMAGED
from segsweep.sweeps.lineage import UNKNOWN, Lineage, publish
from segsweep.sweeps.meter import SYSTEM
from segsweep.sweeps.relay import SINCE, WAITING
from segsweep.sweeps.run_folder import LOGGED, RESULT, light, read_result
from segsweep.sweeps.shortage import noted
from segsweep.sweeps.trial import params_of
from segsweep.sweeps.tuning_objectives import DICE, DIRECTIONS, NSD

# What a trial's folder also holds: the log of a failed one.
ERROR = "error.txt"
_OWN_ERROR = re.compile(r"^segsweep\.errors\.\w+: ")

# Told what happens to trials: trial name, epochs done, epochs in all, a few words.
Report = Callable[[str, int, int, str], None]


def silent(_trial: str, _done: int, _total: int, _words: str) -> None:
    """The Report that says nothing."""


class Follow(Callback):
    """Logs trials under one parent run, through the outbox, and reports their progress. `close` it when the trials are over."""

    def __init__(
        self, outbox: Outbox, *, parent: Tags | None, sweep: str, report: Report, lineage: Lineage = UNKNOWN
    ) -> None:
        self.tracker, self.sweep = outbox.tracker, sweep
        self._outbox, self._parent, self._report, self._lineage = outbox, parent, report, lineage
        self._open: set[str] = set()
        self._home = shared(outbox.tracker.workspace)

    def __getstate__(self) -> dict[str, Any]:
        """Tune keeps a pickled copy for its own restore, which is never used: connections stay out of it."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Open the trial's MLflow run, or the one that an interrupted sweep left."""
        name = trial_name(trial)
        self._begin(name, params=params_of(trial.config))
        (self._home.at(trial.config["folder"]).folder / LOGGED).unlink(missing_ok=True)
        self._report(name, 0, 0, f"starting {describe(trial.config)}".rstrip())

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Log one epoch; of the last report only what the epoch before it did not have. It closes the run of a fold."""
        own = told(result)
        if WAITING in own:
            since = datetime.fromtimestamp(own[SINCE]).strftime("%H:%M")
            self._report(trial_name(trial), 0, 0, f"waiting for room for {own[WAITING]} workers since {since}")
        if DAMAGED in own:
            self._report(self._run_told_of(trial, result), 0, 0, own[DAMAGED])
        if "epoch" not in own:
            return
        name, step, values = self._run_told_of(trial, result), int(own["epoch"]), measurements(own)
        training = own.get("status") == "training"
        new = values if training else {k: v for k, v in values.items() if k in DIRECTIONS}
        self._outbox.metrics(self.tags(name), new, step=step)
        words = ", ".join(f"{key} {values[key]:.3f}" for key in ("loss", "patch_dice", "dice") if key in values)
        self._report(name, step, int(own.get("epochs", 0)), words)
        if FOLD in result and not training:
            place = judged_folder(self._seen(trial), report=result)
            publish(place, outbox=self._outbox, run=self.tags(name))
            self._conclude(name, own)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Close the trial's run with its status, its table of Dice per structure and what its folder keeps for people."""
        name, folder = trial_name(trial), self._seen(trial)
        if not (folder / RESULT).is_file():
            return
        result = read_result(folder)
        publish(folder, outbox=self._outbox, run=self.tags(name))
        self._conclude(name, result)
        (folder / LOGGED).touch()
        words = f"dice {result['dice']:.3f}" if "dice" in result else result["status"].replace("_", " ")
        self._report(name, int(result["epoch"]), int(result["epoch"]), f"ended: {words}")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Close the trial's run as failed, keep its log in its folder and say where that is."""
        name, folder = trial_name(trial), self._seen(trial)
        folder.mkdir(parents=True, exist_ok=True)
        if trial.error_file and Path(trial.error_file).is_file():
            shutil.copyfile(trial.error_file, folder / ERROR)
            self._home.at(folder).send(lambda name: name == ERROR)
        # None where it failed before it started, and that of a fold besides.
        for run in [one for one in self._open if one.partition("/")[0] == name]:
            publish(folder.parent / run, outbox=self._outbox, run=self.tags(run))
            self._finish(run, status="FAILED")
        (folder / LOGGED).touch()
        self._report(name, 0, 0, f"failed: {failure(folder)}; see {folder / ERROR}")

    def settle(self, folder: Path, *, params: Mapping[str, Any]) -> None:
        """Log how the trial of a folder ended, unless that was done: its driver may have died before it could.

        A trial that was refused before it began has neither parameters nor a result, and no run.
        """
        if (folder / LOGGED).exists() or not (params or (folder / RESULT).is_file()):
            return
        self._settle(folder, name=folder.name, params=params)
        for own in sorted(folder.glob(FOLD_FOLDERS)):
            self._settle(own, name=f"{folder.name}/{own.name}", params=params)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LOGGED).touch()

    def run_of(self, name: str) -> str | None:
        """MLflow run of a trial (`trial-0003`) or of one of its folds (`trial-0003/fold-1`), by its name."""
        return self.tracker.find(tags=self.tags(name))

    def tags(self, name: str) -> dict[str, str]:
        """What the MLflow run of that name is found by."""
        return {SWEEP_TAG: self.sweep, TRIAL_TAG: name}

    def close(self) -> None:
        """Runs of trials that did not end become KILLED; a later sweep opens them again."""
        for name in list(self._open):
            self._finish(name, status="KILLED")

    def _seen(self, trial: Any) -> Path:
        """A trial's folder with all that its workers left in it, but for weights."""
        place = self._home.at(trial.config["folder"])
        place.fetch(light)
        return place.folder

    def _begin(self, name: str, *, params: Mapping[str, Any]) -> None:
        """Open the run of a trial, or of a fold below its trial's, with where it comes from; or the one that an earlier driver left."""
        trial_run, _, fold = name.partition(f"/{FOLD}-")
        run = self.tags(name)
        if fold:
            self._outbox.begin(run, name=name, parent=self.tags(trial_run), params={FOLD: fold, **params})
            self._outbox.tag(run, {FOLD_TAG: fold})
        else:
            self._outbox.begin(run, name=name, parent=self._parent, params=params)
        self._lineage.tell(self._outbox, run=run, fold=int(fold) if fold else None)
        self._open.add(name)

    def _settle(self, folder: Path, *, name: str, params: Mapping[str, Any]) -> None:
        """Log the end of one run, a trial's or a fold's."""
        run = self.tags(name)
        self._begin(name, params=params)
        publish(folder, outbox=self._outbox, run=run)
        if (folder / RESULT).is_file():
            result = read_result(folder)
            values = {key: value for key, value in measurements(result).items() if key in DIRECTIONS}
            self._outbox.metrics(run, values, step=int(result["epoch"]))
            self._conclude(name, result)
        else:
            self._finish(name, status="FAILED")

    def _run_told_of(self, trial: Any, report: Mapping[str, Any]) -> str:
        """The name of the run that a report belongs to. A fold's is begun with its first one."""
        trial_run = trial_name(trial)
        if FOLD not in report:
            return trial_run
        name = f"{trial_run}/{fold_name(report[FOLD])}"
        if name not in self._open:
            self._begin(name, params=params_of(trial.config))
        return name

    def _conclude(self, name: str, result: Mapping[str, Any]) -> None:
        run = self.tags(name)
        structures = [key.removeprefix("dice/") for key in result if key.startswith("dice/")]
        rows = [
            {"structure": one, **{key: result[f"{key}/{one}"] for key in (DICE, NSD) if f"{key}/{one}" in result}}
            for one in structures
        ]
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
    return ", ".join(f"{key}={_short(value)}" for key, value in params_of(config).items())


def failure(folder: Path) -> str:
    """Why the trial in a folder failed: what its memory did not hold, or the last line of its log; an error of ours as its sentence."""
    lacking = noted(folder)
    if lacking:
        return f"out of memory with {describe(lacking)}"
    said = _last_line((folder / ERROR).read_text()) if (folder / ERROR).is_file() else "no log was written"
    return _OWN_ERROR.sub("", said)


def measurements(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a result, without Ray's own entries and without per-structure values (those are a table)."""
    keys = ("loss", "learning_rate", "patch_dice", "patch_dice_smoothed", "dice_scan", *DIRECTIONS)
    return {key: float(value) for key, value in result.items() if key in keys or key.startswith(SYSTEM)}


def _short(value: Any) -> str:
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")
