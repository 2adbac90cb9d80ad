"""The driver of a sweep in virtual time: the real search, rule, MLflow runs and outbox, told what trials would tell that nobody trains.

Trials end as `stop=asha` has them end. Whoever reports is next in virtual time, but the driver waits for nothing, so a second of it is
one in which it had work to do all the time.
"""

import base64
import heapq
import json
import math
import random
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import sqlalchemy
from optuna.trial import TrialState
from scale_cost import Figures, megabytes

from segsweep import recipes
from segsweep.data.planning import Normalisation, Plan
from segsweep.models.outbox import Outbox
from segsweep.models.tracking import Tracker
from segsweep.sweeps import tuning_page
from segsweep.sweeps.following import Follow, silent
from segsweep.sweeps.lineage import Lineage
from segsweep.sweeps.record import OVERLAYS, RECORD
from segsweep.sweeps.run_folder import RESULT, STOP, VALIDATION
from segsweep.sweeps.stopping import make_scheduler
from segsweep.sweeps.tuning_study import StudySearch, open_study
from segsweep.workspace import Workspace

PARENT = {"segsweep.sweep": "scale", "segsweep.kind": "sweep"}
PLAN = Plan(
    spacing=(2.5, 1.0, 1.0), patch_size=(64, 160, 160), batch_size=2, median_shape=(128, 400, 400), head="softmax",
    normalisation=(Normalisation(scheme="ct", low=-100.0, high=300.0, mean=80.0, deviation=90.0),),
)  # fmt: skip
STRUCTURES, HELD_OUT, PICTURES = 13, 20, 4
# A grey square: what a picture's bytes show does not matter.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
) + bytes(20_000)
COSTS = ("suggest", "report: study", "report: rule", "report: MLflow", "end")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is simulated. `minute`: virtual seconds of an epoch."""

    trials: int
    concurrent: int
    epochs: int
    sampler: str
    minute: float = 60.0


@dataclass(kw_only=True)
class Clock:
    """Seconds, and CPU seconds of the driver's own thread, by kind of event."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COSTS, 0.0))
    cpu: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COSTS, 0.0))
    events: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COSTS, 0))

    @contextmanager
    def of(self, kind: str) -> Iterator[None]:
        """Add what a block takes."""
        began, cpu = time.monotonic(), time.thread_time()
        yield
        self.seconds[kind] += time.monotonic() - began
        self.cpu[kind] += time.thread_time() - cpu
        self.events[kind] += 1


class Driver:
    """A sweep's driver without Ray."""

    def __init__(self, sweep: Sweep, *, folder: Path) -> None:
        self.sweep, self._workspace = sweep, Workspace(root=folder)
        self.folder = self._workspace.sweeps / "scale"
        self.folder.mkdir(parents=True)
        recipe = recipes.load("search_spaces", name="default")
        self.study = open_study(
            self._workspace.studies_uri, name="scale", settings={"space": "default"}, seed=0, sampler=sweep.sampler
        )
        self.search = StudySearch(
            self.study, suggest_config=lambda trial: recipe.space(trial, PLAN), sweep=self.folder, trials=sweep.trials,
            report=silent,
        )  # fmt: skip
        self.rule: Any = make_scheduler("asha", grace=0.1, curves={})
        self.outbox = Outbox(Tracker(self._workspace, experiment="scale"), name="scale", say=print)
        self.outbox.begin(PARENT, name="scale")
        inputs = [
            {"name": part, "digest": "0" * 16, "context": part, "source": "store", "profile": {"cases": 100}}
            for part in ("training", "validation")
        ]
        lineage = Lineage(tags={"mlflow.source.name": "segsweep tune default"}, inputs={0: inputs})
        self.follow = Follow(self.outbox, parent=PARENT, sweep="scale", report=silent, lineage=lineage)
        self.clock, self.begun, self.ended, self.virtual = Clock(), 0, 0, 0.0

    @property
    def waiting(self) -> int:
        """Entries that MLflow has not taken yet."""
        return self.outbox._own.waiting

    def run(self) -> Iterator[int]:
        """How many trials have ended, each time that one has."""
        left = [(float(slot), slot, self._begin()) for slot in range(self.sweep.concurrent)]
        heapq.heapify(left)
        while left:
            self.virtual, slot, trial = heapq.heappop(left)
            if self._epoch(trial):
                self.ended += 1
                yield self.ended
                trial = self._begin()
            if trial:
                heapq.heappush(left, (self.virtual + self.sweep.minute * random.uniform(0.8, 1.2), slot, trial))

    def _begin(self) -> Any:
        self.begun += 1
        name = f"t{self.begun}"
        with self.clock.of("suggest"):
            config = self.search.suggest(name)
        if not isinstance(config, dict):
            return None
        trial = SimpleNamespace(trial_id=name, config=config, error_file=None, epoch=0, best=random.random())
        Path(config["folder"]).mkdir()
        with self.clock.of("report: MLflow"):
            self.follow.on_trial_start(0, [], trial)
        self.rule.on_trial_add(None, trial)
        return trial

    def _epoch(self, trial: Any) -> bool:
        """One report of a trial; whether it was its last."""
        trial.epoch += 1
        folder = Path(trial.config["folder"])
        metrics = _metrics(trial, epochs=self.sweep.epochs)
        self._report(trial, {**metrics, "status": "training"})
        stopped = (folder / STOP).exists()
        if trial.epoch < self.sweep.epochs and not stopped:
            return False
        result = _leave(folder, metrics=metrics, status="stopped_early" if stopped else "finished")
        self._report(trial, result)
        with self.clock.of("end"):
            self.rule.on_trial_complete(None, trial, result)
            self.search.on_trial_complete(trial.trial_id, result)
            self.follow.on_trial_complete(0, [], trial)
        return True

    def _report(self, trial: Any, result: dict[str, Any]) -> None:
        with self.clock.of("report: rule"):
            self.rule.on_trial_result(None, trial, result)
        with self.clock.of("report: study"):
            self.search.on_trial_result(trial.trial_id, result)
        with self.clock.of("report: MLflow"):
            self.follow.on_trial_result(0, [], trial, result)


def measure(figures: Figures, *, sweep: Sweep, marks: tuple[int, ...], folder: Path) -> None:
    """Run the sweep and say at each mark what a suggestion, a report and an end cost since the mark before, and what there is by then."""
    driver = Driver(sweep, folder=folder)
    reports, virtual = 0, 0.0
    for ended in driver.run():
        if ended not in marks:
            continue
        clock, driver.clock = driver.clock, Clock()
        for kind in COSTS:
            count = max(1, clock.events[kind])
            figures.add(f"{kind}", at=ended, value=1e3 * clock.seconds[kind] / count, unit="ms each")
            figures.add(f"{kind}, CPU", at=ended, value=1e3 * clock.cpu[kind] / count, unit="ms each")
        reports += clock.events["report: study"]
        figures.add("reports so far", at=ended, value=reports, unit="")
        busy = sum(clock.cpu.values()) / (driver.virtual - virtual)
        figures.add("driver's CPU, share of the virtual time", at=ended, value=100 * busy, unit="%")
        virtual = driver.virtual
        figures.add("outbox: entries behind a driver that waits for nothing", at=ended, value=driver.waiting, unit="")
        behind, began = driver.waiting, time.monotonic()
        driver.outbox.flush(patience=3600.0)
        rate = behind / (time.monotonic() - began)
        figures.add("outbox: entries sent, driver idle", at=ended, value=rate, unit="1/s")
        figures.add("driver's memory", at=ended, value=megabytes(), unit="MB")
        figures.add("open files", at=ended, value=len(list(Path("/proc/self/fd").iterdir())), unit="")
        _databases(figures, at=ended, workspace=driver._workspace)
    figures.add("virtual hours", at=driver.ended, value=driver.virtual / 3600, unit="h")
    with figures.cost("sweep.html and sweep.json", at=driver.ended):
        page = tuning_page.write(driver.study, sweep=driver.folder, title="scale", folds=(0,))
    figures.add("sweep.html", at=driver.ended, value=page.stat().st_size / 1e6, unit="MB")
    driver.outbox.close()


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study in which so many trials run, each of which has told so many points of its curve."""

    sampler: str
    running: int
    points: int
    folder: Path


def suggestions(figures: Figures, *, study: Study, marks: tuple[int, ...]) -> None:
    """What one suggestion costs beside so many finished trials."""
    for known in marks:
        search = _filled(study, known=known)
        search.suggest("first")  # reads all trials, once
        words = f"one suggestion: {study.sampler}, {study.running} trials run, {study.points} points of each"
        with figures.cost(words, at=known):
            search.suggest("second")


def _filled(wanted: Study, *, known: int) -> StudySearch:
    place = wanted.folder / f"{known}.db"
    study = open_study(f"sqlite:///{place}", name="scale", settings={}, seed=0, sampler=wanted.sampler)
    space = recipes.load("search_spaces", name="default").space
    search = StudySearch(
        study, suggest_config=lambda trial: space(trial, PLAN), sweep=wanted.folder, trials=10 * known, report=silent
    )
    drawing = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for number in range(known + wanted.running):
        trial = drawing.ask()
        space(trial, PLAN)
        finished = number < known
        study.add_trial(
            optuna.trial.create_trial(
                state=TrialState.COMPLETE if finished else TrialState.RUNNING,
                value=random.random() if finished else None,
                params=trial.params,
                distributions=trial.distributions,
            )
        )
    unfinished = [trial._trial_id for trial in study.get_trials(deepcopy=False) if not trial.state.is_finished()]
    rows = [(trial, step) for trial in unfinished for step in range(1, wanted.points + 1)]
    with sqlite3.connect(place) as database:  # Optuna would take minutes
        database.executemany("insert into trial_intermediate_values values (null, ?, ?, 0.5, 'FINITE')", rows)
    return search


def _metrics(trial: Any, *, epochs: int) -> dict[str, Any]:
    """Ten numbers, as a training reports them."""
    dice = trial.best * (1 - math.exp(-4 * trial.epoch / epochs)) + random.gauss(0, 0.01)
    system = {f"system/{name}": random.random() for name in ("cpu", "gpu", "memory", "gpu_memory", "disk", "network")}
    own = {"loss": 1 - dice, "learning_rate": 0.01, "patch_dice": dice, "patch_dice_smoothed": dice}
    return {**own, **system, "epoch": trial.epoch, "epochs": epochs}


def _leave(folder: Path, *, metrics: Mapping[str, Any], status: str) -> dict[str, Any]:
    """What a training leaves in its folder; its result."""
    (folder / RECORD / OVERLAYS).mkdir(parents=True)
    for name in ("run", "plan", "environment"):
        (folder / RECORD / f"{name}.json").write_text(json.dumps({f"key {number}": "value" for number in range(60)}))
    lines = [json.dumps({**metrics, "epoch": epoch}) for epoch in range(1, metrics["epoch"] + 1)]
    (folder / RECORD / "epochs.jsonl").write_text("\n".join(lines))
    names = [f"organ_{number:02}" for number in range(STRUCTURES)]
    result = {**metrics, "status": status, "digest": "0" * 64}
    if status == "finished":
        result |= {"dice": metrics["patch_dice"], **{f"dice/{name}": metrics["patch_dice"] for name in names}}
        scores = {f"case-{number}": dict.fromkeys(names, metrics["patch_dice"]) for number in range(HELD_OUT)}
        (folder / VALIDATION).write_text(json.dumps(scores))
        for number in range(PICTURES):
            (folder / RECORD / OVERLAYS / f"case-{number}.png").write_bytes(PICTURE)
    (folder / RESULT).write_text(json.dumps(result))
    return result


def _databases(figures: Figures, *, at: int, workspace: Workspace) -> None:
    """Rows and bytes of both; of MLflow where it is not behind a server."""
    for name, uri in (("Optuna", workspace.studies_uri), ("MLflow", workspace.tracking_uri)):
        if uri.startswith("http"):
            continue
        engine = sqlalchemy.create_engine(uri)
        with engine.connect() as connection:
            tables = sqlalchemy.inspect(engine).get_table_names()
            rows = sum(
                connection.execute(sqlalchemy.text(f'select count(*) from "{one}"')).scalar_one() for one in tables
            )
            if uri.startswith("sqlite"):
                held = Path(uri.removeprefix("sqlite:///")).stat().st_size
            else:
                held = connection.execute(sqlalchemy.text("select pg_database_size(current_database())")).scalar_one()
        engine.dispose()
        figures.add(f"{name}: rows", at=at, value=rows, unit="")
        figures.add(f"{name}: database", at=at, value=held / 1e6, unit="MB")
