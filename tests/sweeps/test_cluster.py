"""What fits is counted node by node: a worker cannot lie on two; folders of the environment reach every worker."""

import os
from pathlib import Path

import pytest

from segsweep.errors import ResourceError
from segsweep.sweeps.cluster import Node, Resources, connect, divide, room

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
        ([HEAD], 1, 1, "the cluster has 0"),
    ],
)
def test_what_no_nodes_hold_is_refused(nodes: list[Node], workers: int, concurrent: int, sentence: str) -> None:
    with pytest.raises(ResourceError, match=sentence):
        divide(nodes, workers=workers, concurrent=concurrent)


def test_room_counts_whole_workers_on_each_node() -> None:
    assert room([PLAIN, PLAIN, SMALL], each=Resources(cpus=6)) == 2
    assert room([EIGHT, ONE, PLAIN], each=Resources(cpus=4, gpus=1.0)) == 8
    assert room([ONE], each=Resources(cpus=1, gpus=0.5)) == 2


@pytest.mark.usefixtures("cluster")
def test_folders_of_the_environment_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SEGSWEEP_PROJECT", "mine")
    monkeypatch.setenv("SEGSWEEP_WORKSPACE", "")
    connect()
    assert os.environ["SEGSWEEP_PROJECT"] == str(tmp_path / "mine")
    assert os.environ["SEGSWEEP_WORKSPACE"] == ""
