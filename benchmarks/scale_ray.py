"""What Ray holds for a sweep's trials: on which nodes it puts them, the processes of a trial, and what Tune's own driver takes a trial.

Trials sleep; GPUs are numbers that Ray is told of. Machines are several raylets on this one.
"""

import contextlib
import os
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.tune
from ray.cluster_utils import Cluster
from ray.train.torch import TorchTrainer
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from scale_cost import Figures, megabytes

from segsweep.sweeps import cluster
from segsweep.sweeps.relay import relayed
from segsweep.sweeps.trial import trial_resources

GIGABYTE = 10**9
# A head without work of its own, and machines with 8 GPUs each, one of which has somewhat more memory.
HEAD, MACHINES = 64, (256, 256, 256, 272)
MARKS = (25, 100, 200, 400)


def placement(figures: Figures, *, trials: int) -> None:
    """How many of so many trials Ray puts on the node that gets the most of them."""
    machines = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 0,
            "memory": HEAD * GIGABYTE,
            "object_store_memory": 10**8,
            "include_dashboard": False,
        },
    )
    for size in MACHINES:
        machines.add_node(num_cpus=64, num_gpus=8, memory=size * GIGABYTE, object_store_memory=10**8)
    ray.init(address=machines.address, log_to_driver=False)
    try:
        for words, memory in (("asking for 1 byte", 1), ("as they ask", trial_resources()["memory"])):
            groups = [placement_group([{"memory": memory}]) for _ in range(trials)]
            for group in groups:
                group.wait(60)
            table = placement_group_table()
            nodes = Counter(next(iter(table[group.id.hex()]["bundles_to_node_id"].values())) for group in groups)
            for group in groups:
                remove_placement_group(group)
            figures.add(
                f"most trials on one of {1 + len(MACHINES)} nodes, {words}",
                at=trials,
                value=max(nodes.values()),
                unit="",
            )
            time.sleep(2)
    finally:
        ray.shutdown()
        machines.shutdown()


def processes(figures: Figures, *, at_once: int) -> None:
    """Processes and memory of a trial whose one worker sleeps, by what they are for."""
    cluster.connect()
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(_trial, trial_resources()),
        tune_config=ray.tune.TuneConfig(num_samples=at_once, max_concurrent_trials=at_once, reuse_actors=True),
        run_config=ray.tune.RunConfig(verbose=0, callbacks=[_Look(figures, at_once=at_once)]),
    )
    tuner.fit()
    ray.shutdown()


def launches(figures: Figures, *, folder: Path) -> None:
    """What Tune's own driver takes a trial: trials that report once and end, four at a time."""
    cluster.connect()
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(_nothing, trial_resources()),
        tune_config=ray.tune.TuneConfig(num_samples=MARKS[-1], max_concurrent_trials=4, reuse_actors=True),
        run_config=ray.tune.RunConfig(
            name="tune", storage_path=str(folder), verbose=0, callbacks=[_Count(figures, folder=folder / "tune")]
        ),
    )
    tuner.fit()
    ray.shutdown()


class _Look(ray.tune.Callback):
    """Looks at the processes when every trial has reported twice."""

    def __init__(self, figures: Figures, *, at_once: int) -> None:
        self._figures, self._at_once, self._reports = figures, at_once, Counter()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_result(
        self,
        iteration: int,  # noqa: ARG002
        trials: list[Any],  # noqa: ARG002
        trial: Any,
        result: dict[str, Any],  # noqa: ARG002
        **info: Any,  # noqa: ARG002
    ) -> None:
        """Count and, once, look."""
        self._reports[trial.trial_id] += 1
        if len(self._reports) < self._at_once or min(self._reports.values()) != 2 or self._reports.pop("seen", 0):
            return
        self._reports["seen"] = 10**9
        held: dict[str, list[float]] = defaultdict(list)
        for process in _below(os.getpid()):
            name = (process / "cmdline").read_text().split("\0")[0]
            if name.startswith("ray::") and "IDLE" not in name:
                held[name.split(".")[0].split("(")[0].split()[0]].append(_pss(process))
        for name, sizes in sorted(held.items()):
            self._figures.add(f"{name}: processes a trial", at=self._at_once, value=len(sizes) / self._at_once, unit="")
            self._figures.add(f"{name}: memory (PSS)", at=self._at_once, value=sum(sizes) / len(sizes), unit="MB")


class _Count(ray.tune.Callback):
    """Says what the driver took by so many trials."""

    def __init__(self, figures: Figures, *, folder: Path) -> None:
        self._figures, self._folder, self._ended, self._cpu = figures, folder, 0, time.process_time()

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        """Count."""
        self._ended += 1
        if self._ended in MARKS:
            cpu = 1e3 * (time.process_time() - self._cpu) / self._ended
            self._figures.add("Tune: driver's CPU a trial", at=self._ended, value=cpu, unit="ms each")
            self._figures.add("Tune: driver's memory", at=self._ended, value=megabytes(), unit="MB")
            state = sum(path.stat().st_size for path in self._folder.glob("experiment_state*"))
            self._figures.add("Tune: its record of all trials", at=self._ended, value=state / 1e6, unit="MB")


def _below(root: int) -> list[Path]:
    """The processes that a process began, and those that they began, as folders of /proc."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    below = {root}
    while more := {process for process, parent in parents.items() if parent in below} - below:
        below |= more
    return [Path("/proc", str(process)) for process in below - {root}]


def _pss(process: Path) -> float:
    """Memory of a process in 10^6 bytes, what it shares with others divided among them."""
    line = next(line for line in (process / "smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) * 1024 / 1e6


def _nothing(config: dict[str, Any]) -> None:  # noqa: ARG001
    ray.tune.report({"dice": 0.5})


def _trial(config: dict[str, Any]) -> None:  # noqa: ARG001
    """As `training.as_trainable` makes it, around a worker that sleeps."""
    folder = Path(ray.tune.get_context().get_trial_dir() or ".")

    def fit(relay: Any) -> Mapping[str, Any]:
        scaling = ray.train.ScalingConfig(num_workers=1, resources_per_worker={"CPU": 0.1})
        run = ray.train.RunConfig(name="train", storage_path=str(folder / "ray"), callbacks=[relay])
        TorchTrainer(_sleep, scaling_config=scaling, run_config=run).fit()
        return {}

    relayed(fit, tell=lambda report: ray.tune.report(dict(report)))


def _sleep() -> None:
    for epoch in range(4):
        ray.train.report({"epoch": epoch})
        time.sleep(10)
