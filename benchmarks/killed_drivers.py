"""A toy sweep whose driver is killed (SIGKILL) at seeded moments and begun again each time; what was lost or done twice is counted.

    python benchmarks/killed_drivers.py [--kills 20] [--seed 0]            (about 15 minutes on 2 cores)

The moments lie before the first trial, in an epoch, in an epoch after one whose worker was killed, around a trial's end, and in the
registration, each as often. All drivers join one Ray that outlives them, as on a cluster, and are forked from one process that has
imported everything. Their trainable writes down every launch and epoch. Exit code 1 when anything is not as it should be.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import optuna
import ray
from optuna.trial import TrialState
from ray._private.state import actors
from ray.util import placement_group_table
from toy import write_project

from segsweep import recipes
from segsweep.data.conversion import convert
from segsweep.models.catalogue import models
from segsweep.models.tracking import TRIAL_TAG
from segsweep.models.tracking import connect as connect_mlflow
from segsweep.sweeps.cluster import connect
from segsweep.sweeps.following import LOGGED
from segsweep.sweeps.run_folder import RESULT, STOP
from segsweep.sweeps.tuning import tune
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.sweeps.tuning_study import CONFIG
from segsweep.workspace import Workspace

PHASES = ("starting", "training", "recovering", "ending", "registering")
# The longest delay after a phase began, in seconds: most moments are still in it.
LONGEST = {"starting": 4.0, "training": 0.6, "recovering": 0.6, "ending": 3.0, "registering": 0.6}
PATIENCE = 240.0
EPOCHS = 10


@dataclass(frozen=True, kw_only=True)
class Toy:
    """A sweep of tiny trials on a store. `project` is the folder of its recipes, and of what they write down."""

    store: Path
    project: Path
    workspace: Workspace
    trials: int
    name: str = "toy"

    @property
    def sweep(self) -> Path:
        """Where its trials lie."""
        return self.workspace.sweeps / self.name

    @property
    def options(self) -> SweepOptions:
        """What its command says."""
        return SweepOptions(name=self.name, trials=self.trials, concurrent=1, register=self.trials)

    def ended(self) -> int:
        """How many trials have a result."""
        return len(list(self.sweep.glob(f"trial-*/{RESULT}")))

    def reached(self) -> frozenset[str]:
        """Checkpoints of trials that have no result."""
        found = (path for path in self.sweep.glob("trial-*/checkpoints/epoch-*"))
        return frozenset(str(path) for path in found if not (path.parents[1] / RESULT).is_file())

    def drivers(self) -> frozenset[str]:
        """Drivers that got so far as to tell MLflow something that it has not got yet, by their outboxes."""
        return frozenset(path.name for path in self.workspace.outbox.glob("*"))

    def study(self) -> optuna.Study:
        """Its record."""
        return optuna.load_study(study_name=self.name, storage=self.workspace.studies_uri)


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A driver is killed `delay` seconds after it got into a phase; a worker before that, if it is to recover."""

    phase: str
    delay: float


def seeded(kills: int, *, seed: int, phases: Sequence[str] = PHASES) -> list[Moment]:
    """As many moments of each phase; the first before any trial, those of the registration last."""
    generator = random.Random(seed)
    drawn = [phases[number % len(phases)] for number in range(kills)]
    early = [phase for phase in drawn[1:] if phase != "registering"]
    generator.shuffle(early)
    ordered = [*drawn[:1], *early, *(phase for phase in drawn[1:] if phase == "registering")]
    return [Moment(phase=phase, delay=generator.uniform(0.0, LONGEST[phase])) for phase in ordered]


def begin_driver(toy: Toy) -> Any:
    """`segsweep tune`'s work in a process of its own, which joins this process's Ray."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["segsweep.sweeps.tuning"])
    joined = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, "SEGSWEEP_PROJECT": str(toy.project)}
    before = dict(os.environ)
    os.environ |= joined
    forkserver.ensure_running()
    os.environ.clear()
    os.environ |= before
    driver = context.Process(
        target=tune,
        args=("tiny",),
        kwargs={"store": str(toy.store), "options": toy.options, "workspace": toy.workspace},
        daemon=True,
    )
    driver.start()
    return driver


def kill(toy: Toy, *, moment: Moment) -> bool:
    """Begin a driver and kill it at that moment; False when it had ended by then."""
    ended, drivers = toy.ended(), toy.drivers()
    trained = _trained_on(toy)
    begun: Mapping[str, Callable[[], object]] = {
        "starting": lambda: True,
        "training": trained,
        "recovering": trained,
        "ending": lambda: toy.ended() > ended,
        "registering": lambda: toy.ended() == toy.trials and (ended < toy.trials or toy.drivers() - drivers),
    }
    driver = begin_driver(toy)
    _wait(begun[moment.phase], driver=driver)
    if moment.phase == "recovering":
        for actor in actors().values():
            if actor["State"] == "ALIVE" and actor["ActorClassName"] == "RayTrainWorker":
                os.kill(actor["Pid"], signal.SIGKILL)
        _wait(_trained_on(toy), driver=driver)
    time.sleep(moment.delay)
    alive = driver.is_alive()
    driver.kill()
    driver.join()
    return alive


def _trained_on(toy: Toy) -> Callable[[], bool]:
    """Tells whether an epoch or a trial ended since now."""
    reached, ended = toy.reached(), toy.ended()
    return lambda: bool(toy.reached() - reached) or toy.ended() > ended


def _wait(begun: Callable[[], object], *, driver: Any) -> None:
    end = time.monotonic() + PATIENCE
    while not begun() and driver.is_alive() and time.monotonic() < end:
        time.sleep(0.02)


def finish(toy: Toy) -> None:
    """A driver that nobody kills."""
    driver = begin_driver(toy)
    driver.join(2 * PATIENCE)
    if driver.exitcode != 0:
        driver.kill()
        raise SystemExit(f"the last driver ended with {driver.exitcode}")


def faults(toy: Toy, *, kills: int) -> list[str]:
    """What is not as if the sweep had run at once; at most the epoch that was being trained is trained again after each kill."""
    found = [*_in_study(toy), *_in_mlflow(toy), *_in_folders(toy), *_in_trainings(toy, kills=kills)]
    end = time.monotonic() + 30
    while (left := _in_ray()) and time.monotonic() < end:
        time.sleep(0.2)
    return found + left


def _in_study(toy: Toy) -> list[str]:
    states = [trial.state for trial in toy.study().get_trials(deepcopy=False)]
    return [] if states == [TrialState.COMPLETE] * toy.trials else [f"Optuna has {states}"]


def _in_mlflow(toy: Toy) -> list[str]:
    client = connect_mlflow(toy.workspace)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    statuses = sorted((run.data.tags.get(TRIAL_TAG, "sweep"), run.info.status) for run in found)
    expected = [("sweep", "FINISHED"), *((f"trial-{number:04d}", "FINISHED") for number in range(toy.trials))]
    faults = [] if statuses == expected else [f"MLflow has {statuses}"]
    for run in found:
        steps = [point.step for point in client.get_metric_history(run.info.run_id, "loss")]
        if len(set(steps)) < len(steps):
            faults.append(f"{run.info.run_name}: epochs {steps} were logged")
    digests = [version.digest for version in models(toy.workspace)]
    if len(digests) != toy.trials or len(set(digests)) != toy.trials:
        faults.append(f"{len(digests)} versions of {len(set(digests))} models are registered")
    if left := sorted(toy.drivers()):
        faults.append(f"MLflow did not get what is in {left}")
    return faults


def _in_folders(toy: Toy) -> list[str]:
    """What a killed driver or worker left there belongs to no folder of a trial that ended."""
    expected, files = {f"trial-{number:04d}" for number in range(toy.trials)}, {"model", RESULT, LOGGED}
    folders = {
        folder.name: {path.name for path in folder.iterdir()} for folder in toy.sweep.iterdir() if folder.is_dir()
    }
    faults = [] if set(folders) == expected else [f"the sweep's folder has {sorted(folders)}"]
    left = [
        path.relative_to(toy.sweep)
        for path in toy.sweep.rglob("*")
        if path.name in ("ray", STOP) or ".partial" in path.name
    ]
    faults += [f"{name} has {sorted(found)}" for name, found in folders.items() if not files <= found]
    return [*faults, *(f"{path} was left" for path in left)]


def _in_trainings(toy: Toy, *, kills: int) -> list[str]:
    """By what the trainable wrote down."""
    lines = [line.split() for line in (toy.project / "trained.txt").read_text().splitlines()]
    counts = Counter((trial, what) for trial, what, _ in lines)
    faults = []
    for trial in toy.study().get_trials(deepcopy=False):
        key, name = repr(trial.user_attrs[CONFIG]["foreground"]), f"trial-{trial.number:04d}"
        launches, epochs = counts[key, "launch"], counts[key, "epoch"]
        if not EPOCHS <= epochs < EPOCHS + launches:
            faults.append(f"{name} was launched {launches} times and trained for {epochs} epochs instead of {EPOCHS}")
        last = max(float(moment) for trained, _, moment in lines if trained == key)
        if last > (toy.sweep / name / RESULT).stat().st_mtime:
            faults.append(f"{name} was trained after its end")
    launches = sum(count for (_, what), count in counts.items() if what == "launch")
    return faults if launches <= toy.trials + kills else [*faults, f"{launches} launches of {toy.trials} trials"]


def _in_ray() -> list[str]:
    """Placement groups and processes that no driver wants any more. (Ray's own autoscaling coordinator stays, one a cluster.)"""
    groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    own = ray.get_runtime_context().get_job_id()
    living = [
        actor["ActorClassName"]
        for actor in actors().values()
        if actor["State"] != "DEAD" and actor["JobID"] != own and "Coordinator" not in actor["ActorClassName"]
    ]
    return [*(f"a placement group is {group['state']}" for group in groups), *(f"{name} is alive" for name in living)]


def main() -> None:
    """Run the sweep with all its kills, and print what they did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipes.load("datasets", name="phantom").make(folder / "raw", seed=0)
        connect()
        convert("phantom", raw=folder / "raw", store=folder / "store")
        toy = Toy(
            store=folder / "store",
            project=write_project(folder / "project", epochs=EPOCHS),
            workspace=Workspace(root=folder),
            trials=1 + given.kills // len(PHASES),
        )
        begun, moments, alive = time.monotonic(), seeded(given.kills, seed=given.seed), 0
        for number, moment in enumerate(moments, start=1):
            hit = kill(toy, moment=moment)
            alive += hit
            words = f"{toy.ended()} of {toy.trials} trials had ended" if hit else "too late, the sweep was over"
            print(f"kill {number:2}: {moment.phase} + {moment.delay:.2f} s; {words}", flush=True)
        finish(toy)
        workers = sum(moment.phase == "recovering" for moment in moments)
        found = faults(toy, kills=alive + workers)
        print(
            f"{alive} drivers and {workers} workers killed in {time.monotonic() - begun:.0f} s, {toy.trials} trials: {len(found)} faults"
        )
        for fault in found:
            print(f"  {fault}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
