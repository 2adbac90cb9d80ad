"""Nodes of a Ray cluster are killed, drained and held up in the middle of the work; what was lost, and how long it took to go on.

    python benchmarks/faults.py [FAULT ...]            (about a minute a fault on 2 cores)

Every fault has a cluster of its own on this machine: a head without cores, on which the driver runs, and nodes of one core. The work is
a sweep of tiny trainings, or a conversion, of the phantom; an undisturbed one says what is to come out. Exit code 1 when it does not.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from raylets import PATIENCE, Raylets, hold, leftovers, nodes_of, raylets, wait_for
from toy import write_project

from segsweep import recipes
from segsweep.data.conversion import convert
from segsweep.learning import checkpoint
from segsweep.sweeps.cluster import connect
from segsweep.sweeps.tuning import tune
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.workspace import Workspace

# Epochs of a trial, and how many seconds longer than they must they take: time to do harm.
EPOCHS, PAUSE = 8, 0.5


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a fault did. `resumed` is the seconds until the work went on; `wrong` lists what is not as without the fault."""

    fault: str
    killed: str
    lost: str
    resumed: float
    wrong: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Lab:
    """The folder of a fault: raw scans and a store (shared by all), a project, a workspace."""

    shared: Path
    folder: Path

    def sweep(self, *, trials: int, workers: int) -> list[str]:
        """Run one to its end; what it said."""
        said: list[str] = []
        options = SweepOptions(name="toy", trials=trials, workers=workers, register=0)
        workspace = Workspace(root=self.folder)
        tune(
            "tiny", store=str(self.shared / "store"), options=options, workspace=workspace,
            report=lambda name, done, total, words: said.append(f"{name} {done}/{total} {words}"),
        )  # fmt: skip
        return said

    def trial(self, number: int = 0) -> Path:
        """A trial's folder."""
        return self.folder / "sweeps" / "toy" / f"trial-{number:04d}"

    def moments(self, what: str) -> list[float]:
        """When first workers of trials wrote that down (seconds of the epoch)."""
        file = self.folder / "project" / "trained.txt"
        lines = [line.split() for line in file.read_text().splitlines()] if file.is_file() else []
        return [float(moment) for _, wrote, moment in lines if wrote == what]

    def reached(self, *, epochs: int) -> bool:
        """Whether so many epochs of the first trial are kept."""
        return any(int(path.name[-5:]) + 1 >= epochs for path in self.trial().glob("checkpoints/epoch-*"))

    def unlike(self, other: "Lab", *, trials: int) -> list[str]:
        """Trials whose weights are not those of another sweep."""
        wrong = []
        for number in range(trials):
            mine, theirs = (checkpoint.load(lab.trial(number) / "model").weights for lab in (self, other))
            if not all(torch.equal(mine[name], weights) for name, weights in theirs.items()):
                wrong.append(f"trial {number} has other weights")
        return wrong


def disturbed(
    lab: Lab, *, nodes: int, trials: int, workers: int, disturb: Callable[[Raylets], tuple[str, float]], quick: bool
) -> Row:
    """A sweep that `disturb` meets in another thread once two epochs are kept; it says what it did, and when."""
    done: list[tuple[str, float]] = []
    with raylets(nodes=nodes, quick=quick) as cluster:

        def meet() -> None:
            wait_for(lambda: lab.reached(epochs=2))
            done.append(disturb(cluster))

        thread = threading.Thread(target=meet, daemon=True)
        thread.start()
        said = lab.sweep(trials=trials, workers=workers)
        thread.join()
        left = leftovers()
    ((killed, moment),) = done
    again = len(lab.moments("epoch")) - trials * EPOCHS
    launched = [begun for begun in lab.moments("launch") if begun > moment]
    wrong = [*lab.unlike(Lab(shared=lab.shared, folder=lab.shared / f"undisturbed-{workers}"), trials=trials), *left]
    if again > max(1, trials // workers):
        wrong.append(f"{again} epochs were trained again")
    print("\n".join(line for line in said if "waiting" in line or "died" in line or "failed" in line), file=sys.stderr)
    return Row(
        fault="", killed=killed, lost=f"{again} of {trials * EPOCHS} epochs",
        resumed=min(launched, default=moment) - moment, wrong=tuple(wrong),
    )  # fmt: skip


def undisturbed(lab: Lab, *, workers: int) -> None:
    """What the others are compared with."""
    with raylets(nodes=2):
        lab.sweep(trials=2 if workers == 1 else 1, workers=workers)


def worker_node(lab: Lab) -> Row:
    """Two workers on a node each; the one without the trial's process goes, and there is a third."""

    def disturb(cluster: Raylets) -> tuple[str, float]:
        (trial,) = nodes_of("ImplicitFunc")
        node = next(one for one in nodes_of("RayTrainWorker") if one != trial)
        return "one of the two nodes of a training", cluster.kill(node)

    return disturbed(lab, nodes=3, trials=1, workers=2, disturb=disturb, quick=True)


def trial_node(lab: Lab) -> Row:
    """Two workers on a node each; the one with the trial's process goes, and there is a third."""

    def disturb(cluster: Raylets) -> tuple[str, float]:
        (trial,) = nodes_of("ImplicitFunc")
        return "the node of a trial's process and one of its workers", cluster.kill(trial)

    return disturbed(lab, nodes=3, trials=1, workers=2, disturb=disturb, quick=True)


def node_in_sweep(lab: Lab) -> Row:
    """Two trials at once on two nodes, of which one goes; with Ray's own patience. What it ran waits for the other's end."""

    def disturb(cluster: Raylets) -> tuple[str, float]:
        return "one of two nodes with a trial each", cluster.kill(nodes_of("RayTrainWorker")[0])

    return disturbed(lab, nodes=2, trials=2, workers=1, disturb=disturb, quick=False)


def spot_notice(lab: Lab) -> Row:
    """Two workers on a node each; one node is drained and goes 20 s later. A third is there."""

    def disturb(cluster: Raylets) -> tuple[str, float]:
        (trial,) = nodes_of("ImplicitFunc")
        node = next(one for one in nodes_of("RayTrainWorker") if one != trial)
        moment = cluster.drain(node, seconds=20)
        time.sleep(20)
        cluster.kill(node)
        return "a drained node, 20 s after the notice", moment

    return disturbed(lab, nodes=3, trials=1, workers=2, disturb=disturb, quick=True)


def hang(lab: Lab) -> Row:
    """A worker stops answering; after 30 s (by default 120) it is given up."""

    def disturb(_: Raylets) -> tuple[str, float]:
        hold("RayTrainWorker")
        return "nothing; a worker was stopped (SIGSTOP)", time.time()

    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = "30"
    return disturbed(lab, nodes=2, trials=1, workers=2, disturb=disturb, quick=True)


def conversion(lab: Lab) -> Row:
    """A node goes after three cases of a conversion on two."""
    moments: list[float] = []
    with raylets(nodes=2) as cluster:

        def progress(label: str, done: int, _: int) -> None:
            if label == "cases" and done == 3:
                moments.append(cluster.kill(next(iter(cluster.nodes))))
            elif len(moments) == 1:
                moments.append(time.time())

        converted = convert("phantom", raw=lab.shared / "raw", store=lab.folder / "store", progress=progress)
    same = (lab.folder / "store/index.json").read_bytes() == (lab.shared / "store/index.json").read_bytes()
    wrong = [*([] if same else ["the index is another"]), *converted.failures.values()]
    wrong += [f"{path} was left" for path in (lab.folder / "store").rglob("*.partial*")]
    return Row(
        fault="", killed="one of two nodes, after 3 cases", lost="nothing", resumed=moments[1] - moments[0],
        wrong=tuple(wrong),
    )  # fmt: skip


def head(lab: Lab) -> Row:
    """The head goes with all nodes while `segsweep tune` runs elsewhere; the same command on a new cluster ends the sweep."""
    code = "import sys; from segsweep.cli import main; sys.exit(main())"
    options = ["trials=1", "workers=2", "register=0", "name=toy"]
    command = [sys.executable, "-c", code, "tune", "tiny", str(lab.shared / "store"), *options]
    os.environ["SEGSWEEP_WORKSPACE"] = str(lab.folder)

    def begin() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    with raylets(nodes=2) as cluster:
        driver = begin()
        wait_for(lambda: lab.reached(epochs=2))
        ray.shutdown()
        moment = cluster.kill_head()
        words, _ = driver.communicate(timeout=PATIENCE)
    ended, told = time.time(), words.strip().splitlines()[-1:]
    print(f"{ended - moment:.0f} s after the kill the driver ended with {driver.returncode}: {told}", file=sys.stderr)
    wrong = (
        []
        if driver.returncode == 1 and "Traceback" not in words and told[0].startswith("segsweep: the head of")
        else [words]
    )
    with raylets(nodes=2):
        driver = begin()
        words, _ = driver.communicate(timeout=PATIENCE)
        wrong += [words] if driver.returncode else []
    wrong += lab.unlike(Lab(shared=lab.shared, folder=lab.shared / "undisturbed-2"), trials=1)
    again = len(lab.moments("epoch")) - EPOCHS
    wrong += [f"{again} epochs were trained again"] if again > 1 else []
    launched = [begun for begun in lab.moments("launch") if begun > ended]
    return Row(
        fault="", killed="the head, and its cluster begun anew", lost=f"{again} of {EPOCHS} epochs",
        resumed=min(launched, default=ended) - ended, wrong=tuple(wrong),
    )  # fmt: skip


FAULTS: dict[str, Callable[[Lab], Row]] = {
    "worker-node": worker_node,
    "trial-node": trial_node,
    "node-in-sweep": node_in_sweep,
    "spot-notice": spot_notice,
    "hang": hang,
    "conversion": conversion,
    "head": head,
}
NEEDED = {"worker-node": 2, "trial-node": 2, "node-in-sweep": 1, "spot-notice": 2, "hang": 2, "head": 2}


def run_alone(lab: Lab, *, fault: str) -> Any:
    """In a process of its own, for its own Ray and its own recipes; a Row, if it is one, as JSON."""
    project = write_project(lab.folder / "project", epochs=EPOCHS, pause=PAUSE)
    command = [sys.executable, __file__, "--alone", fault, str(lab.shared), str(lab.folder)]
    done = subprocess.run(
        command, env={**os.environ, "SEGSWEEP_PROJECT": str(project)}, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def prepare(shared: Path, *, workers: set[int]) -> None:
    """The raw scans, their store, and the undisturbed sweeps."""
    recipes.load("datasets", name="phantom").make(shared / "raw", seed=0)
    run_alone(Lab(shared=shared, folder=shared / "converted"), fault="convert")
    for count in sorted(workers):
        run_alone(Lab(shared=shared, folder=shared / f"undisturbed-{count}"), fault=f"undisturbed-{count}")


def alone(fault: str, *, lab: Lab) -> Any:
    """What `run_alone` runs."""
    if fault == "convert":
        connect()
        convert("phantom", raw=lab.shared / "raw", store=lab.shared / "store")
    elif fault.startswith("undisturbed-"):
        undisturbed(lab, workers=int(fault[-1]))
    else:
        return {**asdict(FAULTS[fault](lab)), "fault": fault}
    return None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"any of {', '.join(FAULTS)}")
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.alone:
        fault, shared, folder = given.alone
        print(json.dumps(alone(fault, lab=Lab(shared=Path(shared), folder=Path(folder)))))
        return
    chosen, rows = given.faults or list(FAULTS), []
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), workers={NEEDED[fault] for fault in chosen if fault in NEEDED})
        for fault in chosen:
            try:
                row = run_alone(Lab(shared=Path(name), folder=Path(name) / fault), fault=fault)
            except subprocess.CalledProcessError as error:
                rows.append({"wrong": ["no result"]})
                print(f"| {fault} | no result: its process ended with {error.returncode} | | | |", flush=True)
                continue
            rows.append(row)
            same = "; ".join(row["wrong"]) or "yes"
            print(f"| {fault} | {row['killed']} | {row['lost']} | {row['resumed']:.0f} s | {same} |", flush=True)
    sys.exit(1 if any(row["wrong"] for row in rows) else 0)


if __name__ == "__main__":
    main()
