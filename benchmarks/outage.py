"""Training while MLflow's server is away: seconds per epoch against those while it answers, and whether anything is lost.

    python benchmarks/outage.py [--minutes 10]            (about 22 minutes on 2 cores)

One training on the phantom logs every epoch to a server on this machine. The server answers for half of the minutes, is killed (-9) and
away for all of them, and answers again for the other half, so that a machine that grows slower or faster counts for neither side.
Afterwards every epoch must be there once, with the time at which it ended. Bar: 95 % of the speed, nothing lost.
"""

import argparse
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from segsweep import recipes
from segsweep.data.conversion import convert
from segsweep.models.browsing import QUIET
from segsweep.models.tracking import connect
from segsweep.run import Run
from segsweep.sweeps.cluster import connect as start_ray
from segsweep.sweeps.run_folder import request_stop
from segsweep.sweeps.single import train
from segsweep.workspace import Workspace

BAR = 0.95
PARAMS = {
    "epochs": 100_000, "iterations": 10, "validation_iterations": 2, "features": 4, "levels": 3, "batch_size": 2,
    "patch_size": [24, 48, 48],
}  # fmt: skip


class Server:
    """An MLflow server of our own, with its database and artifacts in a folder, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        self.start()

    def start(self) -> None:
        """Start it and wait until it answers."""
        places = ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        places += ["--artifacts-destination", str(self._folder / "artifacts")]
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1", *places]
        log = (self._folder / "server.log").open("ab")
        self._process = subprocess.Popen(
            command, env={**os.environ, **QUIET}, stdout=log, stderr=log, start_new_session=True
        )
        while not self._answers():
            if self._process.poll() is not None:
                raise SystemExit(f"the MLflow server ended by itself; see {self._folder / 'server.log'}")
            time.sleep(0.5)

    def kill(self) -> None:
        """End it as a power failure would, if it runs."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _answers(self) -> bool:
        try:
            with urlopen(f"{self.address}/health", timeout=5) as reply:
                return reply.status == 200
        except (URLError, OSError):
            return False


@dataclass
class Moments:
    """When epochs ended, and from when to when the server answered and was away (monotonic seconds)."""

    epochs: list[float] = field(default_factory=list)
    answering: list[tuple[float, float]] = field(default_factory=list)
    away: list[tuple[float, float]] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)

    def __call__(self, _trial: str, done: int, _total: int, words: str) -> None:
        if done and not words.startswith("ended"):
            self.epochs.append(time.monotonic())
            self.begun.set()
        elif "server" in words:
            print(words)

    def seconds(self, phases: list[tuple[float, float]]) -> list[float]:
        """Seconds of the epochs that lie within phases."""
        pairs = zip(self.epochs, self.epochs[1:], strict=False)
        return [end - begin for begin, end in pairs if any(low <= begin and end <= high for low, high in phases)]


def main() -> None:
    """Train through the outage and print both sides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipes.load("datasets", name="phantom").make(folder / "raw", seed=0)
        start_ray()
        store = convert("phantom", raw=folder / "raw", store=folder / "store").store
        server = Server(folder)
        try:
            os.environ["MLFLOW_TRACKING_URI"] = server.address
            moments, workspace = Moments(), Workspace(root=folder / "workspace")
            weather = threading.Thread(target=go_through, args=(server, moments, workspace, minutes), daemon=True)
            weather.start()
            run = Run(trainable="unet", store=store.uri, params={"preset": "small", **PARAMS})
            trained = train(run, workspace=workspace, report=moments)
            weather.join()
            report(moments, minutes=minutes)
            check(workspace, epochs=trained.result["epoch"], experiment=store.dataset)
        finally:
            server.kill()


def go_through(server: Server, moments: Moments, workspace: Workspace, minutes: float) -> None:
    """Beside the training: the server answers, is away, answers again; then the training is asked to stop."""
    moments.begun.wait()
    half = 30.0 * minutes
    _phase(moments.answering, seconds=half)
    server.kill()
    _phase(moments.away, seconds=2 * half)
    server.start()
    _phase(moments.answering, seconds=half)
    (folder,) = workspace.runs.iterdir()
    request_stop(folder)


def _phase(phases: list[tuple[float, float]], *, seconds: float) -> None:
    begin = time.monotonic()
    time.sleep(seconds)
    phases.append((begin, time.monotonic()))


def report(moments: Moments, *, minutes: float) -> None:
    """Print the seconds an epoch on both sides."""
    answering, away = moments.seconds(moments.answering), moments.seconds(moments.away)
    for words, seconds in (("answers", answering), ("is away", away)):
        print(f"server {words}: {statistics.median(seconds):.3f} s an epoch (median of {len(seconds)})")
    speed = sum(answering) / len(answering) / (sum(away) / len(away))
    verdict = "met" if speed >= BAR else "MISSED"
    print(f"away for {minutes:g} minutes: {100 * speed:.1f} % of the speed (means); bar {100 * BAR:g} %: {verdict}")


def check(workspace: Workspace, *, epochs: int, experiment: str) -> None:
    """Print what the server has of the training, and what still waits."""
    client = connect(workspace)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    points = client.get_metric_history(run.info.run_id, "loss")
    steps = [point.step for point in sorted(points, key=lambda point: point.timestamp)]
    whole = steps == list(range(1, epochs + 1))
    waiting = len(list(workspace.outbox.iterdir()))
    print(
        f"{len(steps)} of {epochs} epochs stored, {'each once and in order' if whole else 'NOT each once and in order'}; "
        f"{waiting} files wait; the run is {run.info.status}: {'met' if whole and not waiting else 'MISSED'}"
    )


if __name__ == "__main__":
    main()
