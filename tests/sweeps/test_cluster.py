"""What fits is counted node by node: a worker cannot lie on two; folders of the environment reach every worker."""

import os
import socket
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray._private.runtime_env.packaging import create_package

from segsweep import recipes
from segsweep.errors import ResourceError
from segsweep.sweeps import cluster
from segsweep.sweeps.cluster import (
    Node,
    Resources,
    _project,
    connect,
    demand_room,
    divide,
    memory_per_worker,
    room,
)

HEAD: Node = {"memory": 1e9, "node:internal": 1.0}
PLAIN: Node = {"CPU": 10.0, "memory": 4e9}
SMALL: Node = {"CPU": 4.0}
EIGHT: Node = {"CPU": 64.0, "GPU": 8.0}
ONE: Node = {"CPU": 2.0, "GPU": 1.0}


@pytest.mark.parametrize(
    ("nodes", "workers", "concurrent", "cpus", "gpus"),
    [
        ([PLAIN], 1, 1, 10, 0),
        ([PLAIN], 3, 1, 3, 0),
        ([PLAIN, PLAIN], 3, 1, 5, 0),  # not 20 // 3: a node holds one worker of 6
        ([PLAIN, SMALL, HEAD], 3, 1, 4, 0),
        ([PLAIN, SMALL], 7, 2, 1, 0),
        ([EIGHT], 1, 1, 8, 1),  # cores of the other GPUs stay free
        ([EIGHT], 4, 2, 8, 1),
        ([EIGHT, ONE], 8, 1, 8, 1),
        ([EIGHT, ONE], 9, 1, 2, 1),
        ([EIGHT, PLAIN], 8, 1, 8, 1),  # cores of nodes without GPUs help no worker
    ],
)
def test_share_is_the_largest_that_nodes_hold(
    nodes: list[Node], workers: int, concurrent: int, cpus: int, gpus: int
) -> None:
    each = divide(nodes, workers=workers, concurrent=concurrent)
    assert each == Resources(cpus=cpus, gpus=gpus)
    assert room(nodes, each=each) >= workers * concurrent


@pytest.mark.parametrize(
    ("nodes", "workers", "concurrent", "sentence"),
    [
        ([PLAIN, SMALL], 15, 1, "15 workers were asked for, one CPU core a worker; the cluster has 14; .* workers=14"),
        ([EIGHT, PLAIN], 3, 3, "3 runs of 3 workers at once .* one GPU a worker; the cluster has 8; .* concurrent=2"),
        ([{"CPU": 2.0, "GPU": 8.0}], 3, 1, "the cluster has 2"),
        ([HEAD], 1, 1, "the cluster has 0; add nodes"),
    ],
)
def test_what_no_nodes_hold_is_refused(nodes: list[Node], workers: int, concurrent: int, sentence: str) -> None:
    with pytest.raises(ResourceError, match=sentence):
        divide(nodes, workers=workers, concurrent=concurrent)


def test_room_counts_whole_workers_on_each_node() -> None:
    assert room([PLAIN, PLAIN, SMALL], each=Resources(cpus=6)) == 2
    assert room([EIGHT, ONE, PLAIN], each=Resources(cpus=4, gpus=1.0)) == 8
    assert room([ONE], each=Resources(cpus=1, gpus=0.5)) == 2


@pytest.mark.parametrize(
    ("nodes", "gpus", "concurrent", "cpus"),
    [
        ([ONE], 0.5, 2, 1),
        ([EIGHT], 0.5, 16, 4),
        ([EIGHT], 0.4, 16, 4),
        ([EIGHT, PLAIN], 0.25, 3, 2),
        ([EIGHT], 1.0, 8, 8),
    ],
)
def test_several_runs_share_a_gpu(nodes: list[Node], gpus: float, concurrent: int, cpus: int) -> None:
    """A share lies on one GPU: of 0.4 each holds two, and what is left is of no use."""
    each = divide(nodes, workers=1, concurrent=concurrent, gpus=gpus)
    assert each == Resources(cpus=cpus, gpus=gpus)
    assert room(nodes, each=Resources(cpus=1, gpus=gpus)) >= concurrent


@pytest.mark.parametrize(
    ("nodes", "workers", "concurrent", "gpus", "sentence"),
    [
        (
            [EIGHT],
            1,
            17,
            0.4,
            "17 runs of 1 workers at once .* 0.4 of a GPU a worker; the cluster has room for 16; .* concurrent=16",
        ),
        (
            [PLAIN, PLAIN, HEAD],
            1,
            1,
            0.5,
            "gpus=0.5 a worker .* no GPU .2 nodes of 10 CPU, 1 node of 0 CPU.; leave gpus=… out",
        ),
        ([EIGHT], 2, 1, 0.5, "2 workers with 0.5 of a GPU each .* one process a GPU.; ask for workers=1"),
        ([EIGHT], 1, 1, 1.5, "1 CPU and 1.5 GPU cannot be started; expected .* at most 1 GPU"),
    ],
)
def test_shares_of_gpus_that_cannot_be_had_are_refused(
    nodes: list[Node], workers: int, concurrent: int, gpus: float, sentence: str
) -> None:
    with pytest.raises(ResourceError, match=sentence):
        divide(nodes, workers=workers, concurrent=concurrent, gpus=gpus)


def test_a_request_over_several_nodes_is_told_with_what_exists() -> None:
    demand_room([PLAIN, SMALL], each=Resources(cpus=4), workers=3)
    with pytest.raises(
        ResourceError,
        match=r"4 workers with 4 CPU each .* hold 3 \(1 node of 10 CPU, 1 node of 4 CPU\); ask for fewer workers",
    ):
        demand_room([PLAIN, SMALL], each=Resources(cpus=4), workers=4)
    with pytest.raises(ResourceError, match=r"1 workers with 11 CPU each .* hold 0"):
        demand_room([PLAIN, SMALL], each=Resources(cpus=11), workers=1)
    with pytest.raises(ResourceError, match=r"9 workers with 2 CPU and 1 GPU each .* hold 8 .*8 GPU"):
        demand_room([EIGHT, PLAIN], each=Resources(cpus=2, gpus=1.0), workers=9)
    with pytest.raises(ResourceError, match=r"2 workers with 0\.5 of a GPU each"):
        demand_room([EIGHT], each=Resources(cpus=1, gpus=0.5), workers=2)
    with pytest.raises(ResourceError, match="0 CPU cannot be started"):
        Resources(cpus=0)


@pytest.mark.usefixtures("cluster")
def test_memory_of_a_gpu_is_asked_of_a_node_that_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's machine has none, and main memory of the nodes says nothing of theirs."""
    monkeypatch.setattr(cluster, "known_nodes", lambda: [PLAIN, {**EIGHT, "memory": 9e11}])
    monkeypatch.setattr(cluster, "_gpu_memory", lambda: 0)
    there = [{"NodeID": name, "Alive": name != "b", "Resources": EIGHT if name != "a" else PLAIN} for name in "abc"]
    monkeypatch.setattr(ray, "nodes", lambda: there)
    monkeypatch.setattr(cluster, "_gpu_memory_of", {"c": 24 * 10**9}.__getitem__)
    assert memory_per_worker(workers=16, gpus=0.5) == 12 * 10**9
    monkeypatch.setattr(ray, "nodes", lambda: there[:2])
    assert memory_per_worker(workers=16) == sys.maxsize
    monkeypatch.setattr(cluster, "known_nodes", lambda: [PLAIN, PLAIN, HEAD])
    assert memory_per_worker(workers=4) == 2 * 10**9
    monkeypatch.setattr(cluster, "_gpu_memory", lambda: 80 * 10**9)
    assert memory_per_worker(workers=4) == 80 * 10**9


@pytest.mark.usefixtures("cluster")
def test_a_node_answers_what_memory_its_gpu_has() -> None:
    assert cluster._gpu_memory_of(ray.get_runtime_context().get_node_id()) == cluster._gpu_memory()
    assert cluster._gpu_memory_of("ab" * 28) == 0


def test_folders_of_the_environment_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGSWEEP_PROJECT", "mine")
    monkeypatch.setenv("SEGSWEEP_WORKSPACE", "")
    connect()
    assert os.environ["SEGSWEEP_PROJECT"] == str(tmp_path / "mine")
    assert os.environ["SEGSWEEP_WORKSPACE"] == ""


@pytest.mark.usefixtures("cluster")
def test_our_own_ray_listens_on_loopback_only() -> None:
    (node,) = ray.nodes()
    assert node["NodeManagerAddress"] == "127.0.0.1"
    ports = {int(ray.get_runtime_context().gcs_address.rpartition(":")[2])}
    ports |= {
        node[name] for name in ("NodeManagerPort", "ObjectManagerPort", "MetricsExportPort", "RuntimeEnvAgentPort")
    }
    listening = [(address, port) for address, port in _listening() if port in ports]
    assert {port for _, port in listening} == ports
    assert {address for address, _ in listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_a_machine_that_is_too_busy_for_ray_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    faults = iter([Exception(f"The current node {cluster.TOO_SLOW}."), Exception("another")])

    def init(**_told: object) -> None:
        raise next(faults)

    monkeypatch.setattr(cluster, "ray", SimpleNamespace(init=init))
    with pytest.raises(ResourceError, match="Ray did not start within half a minute"):
        cluster._start()
    with pytest.raises(Exception, match="another"):
        cluster._start()


def _listening() -> list[tuple[str, int]]:
    """Address and port of every socket of this machine that listens; the kernel writes addresses as words of its own byte order."""
    found = []
    for family, path in ((socket.AF_INET, "/proc/net/tcp"), (socket.AF_INET6, "/proc/net/tcp6")):
        for line in Path(path).read_text().splitlines()[1:]:
            _, place, _, state = line.split()[:4]
            address, port = place.split(":")
            words = b"".join(bytes.fromhex(address[at : at + 8])[::-1] for at in range(0, len(address), 8))
            if state == "0A":
                found.append((socket.inet_ntop(family, words), int(port, 16)))
    return found


def test_a_project_is_sent_without_what_lies_beside_its_recipes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray's own packing, and found again where Ray unpacks it."""
    project = tmp_path / "mine"
    for name in (
        "trainables/a.py",
        "datasets/_part/b.py",
        "workspace/mlflow.db",
        "notes.txt",
        "trainables/__pycache__/a.pyc",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("x")
    monkeypatch.setenv("SEGSWEEP_PROJECT", str(project))
    sent = _project()
    assert sent["py_modules"] == [str(project)]
    parcel = tmp_path / "parcel.zip"
    create_package(str(project), parcel, include_gitignore=True, include_parent_dir=True, excludes=sent["excludes"])
    node = tmp_path / "runtime_resources" / recipes.SENT / "parcel"
    with zipfile.ZipFile(parcel) as opened:
        assert sorted(opened.namelist()) == ["mine/datasets/_part/b.py", "mine/trainables/a.py"]
        opened.extractall(node)
    monkeypatch.syspath_prepend(node)
    assert recipes.search_path("trainables", packaged=["packaged"])[0] == str(node / "mine" / "trainables")
    monkeypatch.setenv("SEGSWEEP_PROJECT", str(tmp_path / "absent"))
    assert _project() == {}
