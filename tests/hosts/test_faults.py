"""Faults of whole hosts, each a network, PID and mount namespace with a Ray node of its own (`hosts.sh`): one is cut off for a while."""

import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from segsweep.sweeps.record import epochs_of

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1800)]
RAY_START = (sys.executable, "-m", "ray.scripts.scripts", "start")
SMALL = ("--object-store-memory=100000000", "--disable-usage-stats")
SEGSWEEP = (sys.executable, "-c", "import sys; from segsweep.cli import main; sys.exit(main())")
PATIENCE = 900
STORAGE_PORT = 5555
MAKE_BUCKET = (
    "import os; from pyarrow.fs import S3FileSystem; "
    "S3FileSystem(endpoint_override=os.environ['AWS_ENDPOINT_URL'], allow_bucket_creation=True).create_dir('bucket')"
)
# Where a worker's copy of a run's folder lies whose workspace is a bucket.
COPIES = f"/tmp/segsweep-work-{os.getuid()}"


class Nodes:
    """Three hosts with one disk in common and a Ray node each: a head without cores, two of one core. `environment` is what all know."""

    def __init__(self, hosts: Any) -> None:
        self.hosts, self.folder, self.head = hosts, hosts.shared, hosts.head
        self.first, self.second = hosts.workers
        self.address = hosts.address(self.head)
        self.environment = {
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://{self.address}:{STORAGE_PORT}",
            "AWS_REGION": "us-east-1",
            "AWS_SECRET_ACCESS_KEY": "tester",
            "HOME": str(self.folder / "home"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "RAY_ADDRESS": f"{self.address}:6379",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "a-token-of-these-tests-alone-0123456789",
            "SEGSWEEP_PROJECT": str(self.folder / "project"),
            "SEGSWEEP_WORKSPACE": str(self.folder),
        }

    def start(self) -> None:
        """Start Ray on all of them."""
        for host in (self.head, self.first, self.second):
            self.start_ray(host)

    def start_ray(self, host: str) -> None:
        """Start Ray on one of them."""
        joined = (f"--address={self.environment['RAY_ADDRESS']}", "--num-cpus=1")
        own = ("--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false") if host == self.head else joined
        words = ""
        for _ in range(3):  # Ray gives a node 30 s to come up, which a busy machine does not always keep
            ray = self.on(host, *RAY_START, *SMALL, f"--node-ip-address={self.hosts.address(host)}", *own)
            words, _ = ray.communicate(timeout=PATIENCE)
            if ray.returncode == 0:
                return
        raise AssertionError(words)

    def on(self, host: str, *command: str) -> "subprocess.Popen[str]":
        """Begin a command on a host."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
        environment |= self.environment
        if command[: len(RAY_START)] == RAY_START:
            del environment["RAY_ADDRESS"]
        return subprocess.Popen(
            [*self.hosts.inside(host), *command],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def done(self, host: str, *command: str) -> str:
        """What a command said on a host, which ended well."""
        process = self.on(host, *command)
        words, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, words
        return words


@pytest.fixture(scope="module")
def faults() -> Iterator[ModuleType]:
    """The benchmark that kills nodes, for its tiny sweep."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
        yield importlib.import_module("faults")


@pytest.fixture(scope="module")
def shared(faults: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, and what a sweep gives that nobody disturbs."""
    folder = tmp_path_factory.mktemp("shared")
    faults.prepare(folder, workers={2})
    return folder


@pytest.fixture
def nodes(faults: ModuleType, make_hosts: Callable[..., Any]) -> Iterator[Nodes]:
    with make_hosts(prefix="fa", subnet="10.92.0") as hosts:
        found = Nodes(hosts)
        faults.write_project(found.folder / "project", epochs=faults.EPOCHS, pause=faults.PAUSE)
        found.start()
        yield found


def tuned(nodes: Nodes, *, shared: Path) -> "subprocess.Popen[str]":
    options = ("trials=2", "workers=2", "concurrent=1", "register=0", "name=toy")
    return nodes.on(nodes.head, *SEGSWEEP, "tune", "tiny", str(shared / "store"), *options)


def demand_whole(lab: Any, *, faults: ModuleType, words: str) -> None:
    """Two trials, each with all its epochs once, the first with the weights of an undisturbed one."""
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{lab.folder / 'studies.db'}")
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2, words
    for number in range(2):
        assert [entry["epoch"] for entry in epochs_of(lab.trial(number))] == list(range(1, faults.EPOCHS + 1)), words
    other = faults.Lab(shared=lab.shared, folder=lab.shared / "undisturbed-2")
    assert lab.unlike(other, trials=1) == []


def test_a_node_without_network_for_30_s(nodes: Nodes, faults: ModuleType, shared: Path) -> None:
    lab = faults.Lab(shared=shared, folder=nodes.folder)
    driver = tuned(nodes, shared=shared)
    faults.wait_for(lambda: lab.reached(epochs=2) or driver.poll() is not None)
    nodes.hosts.unplug(nodes.first, seconds=30)
    mended = time.time()

    def goes_on() -> bool:
        """Whether it trains again, on a node whose Ray is started again where it ended: Ray had taken it for dead."""
        if not any("raylet/raylet" in line for line in nodes.hosts.processes(nodes.first)):
            print("Ray ended on the node that was cut off")
            nodes.start_ray(nodes.first)
        return driver.poll() is not None or any(moment > mended for moment in lab.moments("epoch"))

    faults.wait_for(goes_on)
    words, _ = driver.communicate(timeout=PATIENCE)
    moments = [moment for moment in lab.moments("epoch") if moment > mended]
    print(words)
    print(
        f"epochs: {len(lab.moments('epoch'))}, launches: {len(lab.moments('launch'))}, on after {moments[0] - mended:.1f} s"
    )
    assert driver.returncode == 0, words
    demand_whole(lab, faults=faults, words=words)


def test_full_disks_of_hosts_with_everything_in_a_bucket(nodes: Nodes, faults: ModuleType, shared: Path) -> None:
    """Of one host: its trial goes on elsewhere, or ends with a sentence. Of both: a sentence; with room again the same command goes on."""
    log = nodes.folder / "storage.log"
    serve = f"exec {sys.executable} -m moto.server -H {nodes.address} -p {STORAGE_PORT} > {log} 2>&1"
    fill = f"mkdir -p -m 700 {COPIES} && mount -t tmpfs -o size=300k,mode=700 none {COPIES}"
    full = rf"failed: node {nodes.hosts.prefix}w\d: the disk of {COPIES}\S* is full; free space there"
    log.touch()

    def swept(*, trials: int) -> str:
        options = (f"trials={trials}", "workers=1", "concurrent=2", "register=1", "name=toy")
        words = nodes.done(nodes.head, *SEGSWEEP, "tune", "tiny", "s3://bucket/store", *options)
        print(words)
        return words

    storage = nodes.on(nodes.head, "bash", "-c", serve)
    try:
        faults.wait_for(lambda: "Running on" in log.read_text())
        nodes.done(nodes.head, sys.executable, "-c", MAKE_BUCKET)
        nodes.environment["SEGSWEEP_WORKSPACE"] = "s3://bucket/lab"
        print(
            nodes.done(nodes.head, *SEGSWEEP, "convert", "phantom", str(shared / "raw"), "--store", "s3://bucket/store")
        )
        nodes.done(nodes.first, "bash", "-c", fill)
        words = swept(trials=2)
        ended = re.findall(r"trial-000\d +ended", words)
        assert ended and len(ended) + len(re.findall(full, words)) == 2, words
        nodes.done(nodes.second, "bash", "-c", fill)
        assert re.search(full, swept(trials=3))
        for host in (nodes.first, nodes.second):
            nodes.done(host, "umount", COPIES)
        words = swept(trials=3)
        assert not re.search(r"trial-000[01] +starting", words) and re.search(r"trial-000\d +ended", words), words
    finally:
        storage.kill()
