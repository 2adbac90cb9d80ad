"""Faults of whole hosts, each a network, PID and mount namespace with a Ray node of its own (`hosts.sh`): one is cut off for a while."""

import importlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import optuna
import pytest
from optuna.trial import TrialState

from segsweep.sweeps.record import epochs_of

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(1800)]
PREFIX, SUBNET = "fa", "10.92.0"
HEAD, FIRST, SECOND = f"{PREFIX}h", f"{PREFIX}w1", f"{PREFIX}w2"
ADDRESS = f"{SUBNET}.1:6379"
SEGSWEEP = (sys.executable, "-c", "import sys; from segsweep.cli import main; sys.exit(main())")
PATIENCE = 900
STORAGE_PORT = 5555
MAKE_BUCKET = (
    "import os; from pyarrow.fs import S3FileSystem; "
    "S3FileSystem(endpoint_override=os.environ['AWS_ENDPOINT_URL'], allow_bucket_creation=True).create_dir('bucket')"
)
# Where a worker's copy of a run's folder lies whose workspace is a bucket.
COPIES = f"/tmp/segsweep-work-{os.getuid()}"


class Hosts:
    """Three hosts with one disk in common: a head without cores, and two nodes of one core. `environment` is what all know."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {
            "AWS_ACCESS_KEY_ID": "tester",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://{SUBNET}.1:{STORAGE_PORT}",
            "AWS_REGION": "us-east-1",
            "AWS_SECRET_ACCESS_KEY": "tester",
            "HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "RAY_ADDRESS": ADDRESS,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "a-token-of-these-tests-alone-0123456789",
            "SEGSWEEP_PROJECT": str(folder / "project"),
            "SEGSWEEP_WORKSPACE": str(folder),
        }

    def up(self) -> None:
        self._script("up", str(self.folder / "hosts"), PREFIX, SUBNET, "3")
        started = ("start", "--object-store-memory=100000000", "--disable-usage-stats")
        for name, options in (
            (HEAD, ("--head", "--port=6379", f"--node-ip-address={SUBNET}.1", "--num-cpus=0", "--include-dashboard=false")),
            (FIRST, (f"--address={ADDRESS}", f"--node-ip-address={SUBNET}.2", "--num-cpus=1")),
            (SECOND, (f"--address={ADDRESS}", f"--node-ip-address={SUBNET}.3", "--num-cpus=1")),
        ):  # fmt: skip
            words = ""
            for _ in range(3):  # Ray gives a node 30 s to come up, which a busy machine does not always keep
                ray = self.on(name, sys.executable, "-m", "ray.scripts.scripts", *started, *options)
                words, _ = ray.communicate(timeout=PATIENCE)
                if ray.returncode == 0:
                    break
            else:
                raise AssertionError(words)

    def down(self) -> None:
        self._script("down", str(self.folder / "hosts"), PREFIX)

    def on(self, name: str, *command: str) -> "subprocess.Popen[str]":
        """Begin a command on a host."""
        first = self._script("pid", name).strip()
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "AWS_"))}
        if "ray.scripts.scripts" in command:
            environment |= {key: value for key, value in self.environment.items() if key != "RAY_ADDRESS"}
        else:
            environment |= self.environment
        return subprocess.Popen(
            ["nsenter", "-t", first, "-n", "-p", "-m", "-u", *command],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def done(self, name: str, *command: str) -> str:
        """What a command said on a host, which ended well."""
        process = self.on(name, *command)
        words, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, words
        return words

    def cut(self, name: str, *, seconds: float) -> None:
        """Take a host's network away for a while, as a cable that is pulled does."""
        for state in ("down", "up"):
            subprocess.run(["ip", "-n", f"{PREFIX}l", "link", "set", f"v{name}", state], check=True)
            if state == "down":
                time.sleep(seconds)

    def _script(self, *words: str) -> str:
        script = Path(__file__).with_name("hosts.sh")
        return subprocess.run(
            ["bash", str(script), *words], check=True, stdout=subprocess.PIPE, text=True, timeout=PATIENCE
        ).stdout


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
def hosts(faults: ModuleType, tmp_path: Path) -> Iterator[Hosts]:
    found = Hosts(tmp_path)
    faults.write_project(tmp_path / "project", epochs=faults.EPOCHS, pause=faults.PAUSE)
    try:
        found.up()
        yield found
    finally:
        found.down()


def tuned(hosts: Hosts, *, shared: Path) -> "subprocess.Popen[str]":
    options = ("trials=2", "workers=2", "concurrent=1", "register=0", "name=toy")
    return hosts.on(HEAD, *SEGSWEEP, "tune", "tiny", str(shared / "store"), *options)


def demand_whole(lab: "object", *, faults: ModuleType, words: str) -> None:
    """Two trials, each with all its epochs once, the first with the weights of an undisturbed one."""
    study = optuna.load_study(study_name="toy", storage=f"sqlite:///{lab.folder / 'studies.db'}")  # type: ignore[attr-defined]
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2, words
    for number in range(2):
        epochs = [entry["epoch"] for entry in epochs_of(lab.trial(number))]  # type: ignore[attr-defined]
        assert epochs == list(range(1, faults.EPOCHS + 1)), words
    other = faults.Lab(shared=lab.shared, folder=lab.shared / "undisturbed-2")  # type: ignore[attr-defined]
    assert lab.unlike(other, trials=1) == []  # type: ignore[attr-defined]


def test_a_node_without_network_for_30_s(hosts: Hosts, faults: ModuleType, shared: Path) -> None:
    lab = faults.Lab(shared=shared, folder=hosts.folder)
    driver = tuned(hosts, shared=shared)
    faults.wait_for(lambda: lab.reached(epochs=2) or driver.poll() is not None)
    hosts.cut(FIRST, seconds=30)
    mended = time.time()
    words, _ = driver.communicate(timeout=PATIENCE)
    moments = [moment for moment in lab.moments("epoch") if moment > mended]
    print(words)
    print(
        f"epochs: {len(lab.moments('epoch'))}, launches: {len(lab.moments('launch'))}, on after {moments[0] - mended:.1f} s"
    )
    assert driver.returncode == 0, words
    demand_whole(lab, faults=faults, words=words)


def test_full_disks_of_hosts_with_everything_in_a_bucket(hosts: Hosts, faults: ModuleType, shared: Path) -> None:
    """Of one host: its trial goes on elsewhere, or ends with a sentence. Of both: a sentence; with room again the same command goes on."""
    log = hosts.folder / "storage.log"
    serve = f"exec {sys.executable} -m moto.server -H {SUBNET}.1 -p {STORAGE_PORT} > {log} 2>&1"
    fill = f"mkdir -p -m 700 {COPIES} && mount -t tmpfs -o size=300k,mode=700 none {COPIES}"
    full = rf"failed: node {PREFIX}w\d: the disk of {COPIES}\S* is full; free space there"
    log.touch()

    def swept(*, trials: int) -> str:
        options = (f"trials={trials}", "workers=1", "concurrent=2", "register=1", "name=toy")
        words = hosts.done(HEAD, *SEGSWEEP, "tune", "tiny", "s3://bucket/store", *options)
        print(words)
        return words

    storage = hosts.on(HEAD, "bash", "-c", serve)
    try:
        faults.wait_for(lambda: "Running on" in log.read_text())
        hosts.done(HEAD, sys.executable, "-c", MAKE_BUCKET)
        hosts.environment["SEGSWEEP_WORKSPACE"] = "s3://bucket/lab"
        print(hosts.done(HEAD, *SEGSWEEP, "convert", "phantom", str(shared / "raw"), "--store", "s3://bucket/store"))
        hosts.done(FIRST, "bash", "-c", fill)
        words = swept(trials=2)
        ended = re.findall(r"trial-000\d +ended", words)
        assert ended and len(ended) + len(re.findall(full, words)) == 2, words
        hosts.done(SECOND, "bash", "-c", fill)
        assert re.search(full, swept(trials=3))
        for host in (FIRST, SECOND):
            hosts.done(host, "umount", COPIES)
        words = swept(trials=3)
        assert not re.search(r"trial-000[01] +starting", words) and re.search(r"trial-000\d +ended", words), words
    finally:
        storage.kill()
