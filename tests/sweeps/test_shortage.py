"""A lack of memory is told from every other failure, in the words of whoever noticed it."""

import socket
from pathlib import Path

import numpy as np
import pytest
import ray.exceptions
import torch
from ray.train import WorkerGroupError

from segsweep.errors import InputError, ResourceError
from segsweep.sweeps.shortage import full_disks, note, noted, ran_out


def failed(error: Exception, *, words: str = "") -> WorkerGroupError:
    """What Ray Train raises when the first worker's error took the second one along."""
    collateral = RuntimeError("Connection closed by peer")
    return WorkerGroupError(words or "[Rank 1 Error Snippet]:\nConnection closed", {0: error, 1: collateral})


def allocated() -> Exception:
    """torch's error for more memory than there can be."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(1 << 60)
    return raised.value


def numpy_allocated() -> Exception:
    with pytest.raises(MemoryError) as raised:
        np.empty((1 << 59,))
    return raised.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        MemoryError(),
        numpy_allocated(),
        allocated(),
        ray.exceptions.OutOfMemoryError("Task was killed due to the node running low on memory."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_one_workers_lack_of_memory_is_the_trainings(error: Exception) -> None:
    assert ran_out(failed(error))


def test_a_traceback_in_words_is_enough() -> None:
    words = "Traceback:\n  File 'x.py'\n    model(image)\ntorch.OutOfMemoryError: CUDA out of memory."
    assert ran_out(failed(RuntimeError("an actor died"), words=words))


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such loss"),
        RuntimeError("the process may have been killed by SIGKILL by OOM killer due to high memory usage"),
        RuntimeError("this is no MemoryError"),
    ],
)
def test_other_failures_may_be_tried_again(error: Exception) -> None:
    assert not ran_out(failed(error))


def test_a_folder_keeps_what_was_too_large(tmp_path: Path) -> None:
    assert noted(tmp_path) is None
    note(tmp_path, patch_size=(96, 160, 160), batch_size=2)
    assert noted(tmp_path) == {"patch_size": [96, 160, 160], "batch_size": 2}
    (tmp_path / "trial" / "fold-1").mkdir(parents=True)
    note(tmp_path / "trial" / "fold-1", patch_size=(8, 8, 8), batch_size=1)
    assert noted(tmp_path / "trial") == {"patch_size": [8, 8, 8], "batch_size": 1}, "one fold's lack is its trial's"
    (tmp_path / "out_of_memory.json").write_text("{")
    with pytest.raises(InputError, match=r"out_of_memory\.json: cannot be used .*delete it"):
        noted(tmp_path)


def test_a_full_disk_is_told_with_its_node_and_place(tmp_path: Path) -> None:
    with (
        pytest.raises(ResourceError, match=f"^node {socket.gethostname()}: the disk of {tmp_path} is full; free space"),
        full_disks(tmp_path),
        Path("/dev/full").open("w") as stream,
    ):
        stream.write("a checkpoint")
    with pytest.raises(FileNotFoundError), full_disks(tmp_path):
        (tmp_path / "absent").read_text()
