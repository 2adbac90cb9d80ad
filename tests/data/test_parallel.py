import errno
import os
import signal
import sys
from pathlib import Path

import pytest
import ray

from segsweep.data import parallel
from segsweep.data.parallel import Piece, known_nodes, largest_memory, run_all, to_come
from segsweep.errors import InputError

pytestmark = pytest.mark.usefixtures("cluster")


def work(what: str) -> str:
    match what:
        case "bad":
            raise InputError("case a: bad; expected good")
        case "odd":
            raise KeyError("first line\nsecond line")
        case "memory":
            raise MemoryError
        case "disk":
            raise OSError(errno.ENOSPC, "No space left on device", "/secret/folder/file.bin")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    return what


def piece(what: str, *, num_bytes: int = 1) -> Piece:
    return Piece(name=what, arguments=(what,), num_bytes=num_bytes)


def test_every_failure_is_one_sentence_and_the_others_go_on() -> None:
    told: list[tuple[str, int, int]] = []
    whats = ("good", "bad", "odd", "memory", "disk", "die", "better")
    outcomes = run_all([piece(what) for what in whats], work=work, label="cases", progress=lambda *x: told.append(x))
    assert {name: outcome.value for name, outcome in outcomes.items() if not outcome.failure} == {
        "good": "good",
        "better": "better",
    }
    assert outcomes["bad"].failure == "case a: bad; expected good"
    assert outcomes["odd"].failure.startswith("case odd: cannot be converted (KeyError: 'first line")
    assert "\n" not in outcomes["odd"].failure
    assert outcomes["memory"].failure.startswith("case memory: cannot be converted (MemoryError")
    assert outcomes["disk"].failure == "case disk: No space left on device (file.bin)"
    assert outcomes["die"].failure.startswith("case die: its worker died again and again (WorkerCrashedError)")
    assert told == [("cases", done, len(whats)) for done in range(1, len(whats) + 1)]


def test_a_piece_that_no_node_can_hold_is_refused_before_it_starts() -> None:
    outcomes = run_all([piece("good"), piece("better", num_bytes=10**15)], work=work, label="cases")
    assert outcomes["good"].value == "good"
    assert outcomes["better"].failure.startswith(
        "case better: needs about 1000000.0 GB of memory, the largest node has "
    )


def test_pieces_wait_for_memory_rather_than_fail() -> None:
    most = int(max(node["Resources"]["memory"] for node in ray.nodes()))
    pieces = [Piece(name=name, arguments=(name,), num_bytes=most - 1) for name in ("a", "b", "c")]
    assert [outcome.value for outcome in run_all(pieces, work=work, label="cases").values()] == ["a", "b", "c"]


def test_nodes_that_the_autoscaler_may_start_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = known_nodes()
    gpu = {"CPU": 16, "GPU": 1, "memory": 6e10}
    kinds = {
        "head": {"resources": {"CPU": 0}, "max_workers": 0},
        "spot": {"resources": gpu, "max_workers": 3},
        "unknown": {"resources": {}, "max_workers": 5},
    }
    assert to_come({"available_node_types": kinds}, there=[{"CPU": 0}]) == [gpu] * 3
    assert to_come({"available_node_types": kinds}, there=[{"CPU": 0}, {**gpu, "node:1": 1.0}]) == [gpu] * 2
    assert to_come({"provider": {"type": "local"}}, there=there) == []
    kinds["small"] = {"resources": {"CPU": 2}, "max_workers": 2}
    few = {"available_node_types": kinds, "max_workers": 4}
    assert to_come(few, there=[{"CPU": 0}]) == [gpu] * 3 + [{"CPU": 2}]
    assert to_come(few, there=[{"CPU": 0}, gpu, {"CPU": 2}, {"CPU": 2}]) == [gpu]
    assert to_come({**few, "max_workers": 0}, there=[{"CPU": 0}, gpu]) == []
    file = tmp_path / "ray_bootstrap_config.yaml"
    monkeypatch.setattr(parallel, "AUTOSCALED", str(file))
    assert known_nodes() == there
    file.write_text("available_node_types: {spot: {max_workers: 2, resources: {CPU: 99}}}")
    assert known_nodes() == [*there, {"CPU": 99}, {"CPU": 99}]


def test_memory_counts_where_there_is_a_core() -> None:
    assert largest_memory([{"memory": 9e9}, {"CPU": 1, "memory": 2e9}, {"CPU": 1}]) == 2e9
    assert largest_memory([{"CPU": 0, "memory": 9e9}, {"CPU": 4}]) == sys.maxsize
