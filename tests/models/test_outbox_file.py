"""What a killed driver wrote is there, its torn last line is not, and no two processes send one file."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from segsweep.errors import ModelError
from segsweep.models import outbox_file
from segsweep.models.outbox_file import OutboxFile

HEADER = {"experiment": "toy", "server": "http://there"}
# Sends one of three entries and dies in the middle of the fourth.
DRIVER = """
import os, signal, sys
from pathlib import Path
from segsweep.models.outbox_file import OutboxFile
file = OutboxFile.create(Path(sys.argv[1]), header={"experiment": "toy", "server": "http://there"})
for step in range(3):
    file.append({"step": step})
file.drop_first()
os.write(os.open(file.path, os.O_WRONLY | os.O_APPEND), b'{"step": 3, "va')
os.kill(os.getpid(), signal.SIGKILL)
"""


def drained(file: OutboxFile) -> list[int]:
    steps = []
    while file.waiting:
        steps.append(json.loads(file.first())["step"])
        file.drop_first()
    return steps


def test_killed_driver_leaves_what_it_had_not_sent_without_the_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "1-toy.jsonl"
    done = subprocess.run([sys.executable, "-c", DRIVER, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    left = OutboxFile.left(path)
    assert left is not None
    assert (left.header, left.waiting) == (HEADER, 2)
    left.append({"step": 9})
    assert drained(left) == [1, 2, 9]
    left.close()
    assert list(tmp_path.iterdir()) == []


def test_file_of_a_living_driver_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "1-toy.jsonl"
    file = OutboxFile.create(path, header=HEADER)
    file.append({"step": 0})
    assert OutboxFile.left(path) is None
    file.close()
    assert path.is_file(), "an entry waits"
    left = OutboxFile.left(path)
    assert left is not None
    assert drained(left) == [0]
    left.close()
    assert OutboxFile.left(path) is None


def test_entries_put_aside_are_sent_again_when_their_file_is_renamed(tmp_path: Path) -> None:
    file = OutboxFile.create(tmp_path / "1-toy.jsonl", header=HEADER)
    for step in range(2):
        file.append({"step": step})
        file.set_first_aside(reason="no")
        file.drop_first()
    file.close()
    file.refused.rename(tmp_path / "2-toy.jsonl")
    again = OutboxFile.left(tmp_path / "2-toy.jsonl")
    assert again is not None
    assert json.loads(again.first()) == {"step": 0, "refused": "no"}
    assert (again.header, drained(again)) == (HEADER, [0, 1])
    again.close()


def test_file_of_which_all_was_sent_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_file, "LONGEST_SENT", 1000)
    file = OutboxFile.create(tmp_path / "1-toy.jsonl", header=HEADER)
    longest = 0
    for step in range(0, 300, 3):
        for number in range(3):
            file.append({"step": step + number, "text": "a" * (1 + step)})
        assert drained(file) == [step, step + 1, step + 2]
        longest = max(longest, file.path.stat().st_size)
    assert longest < 2200, "what is sent at once, beside the thousand"
    file.append({"step": 7})
    file.close()
    left = OutboxFile.left(file.path)
    assert left is not None
    assert drained(left) == [7]
    left.close()


def test_driver_killed_while_its_file_begins_anew_left_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbox_file, "LONGEST_SENT", 0)
    file = OutboxFile.create(tmp_path / "1-toy.jsonl", header=HEADER)
    for step in range(2):
        file.append({"step": step})
    file.drop_first()
    with monkeypatch.context() as patch:  # the process dies before the new position is written
        patch.setattr(os, "pwrite", lambda *_: 0)
        file.drop_first()
    copy = shutil.copy(file.path, tmp_path / "2-toy.jsonl")
    left = OutboxFile.left(Path(copy))
    assert left is not None
    assert left.waiting == 0
    left.close()
    file.close()


@pytest.mark.parametrize("content", [b"", b"what is this\n", b"12\n", b"12\n{\n"])
def test_another_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"notes\.jsonl: no file of entries for MLflow"):
        OutboxFile.left(path)


def test_entry_that_cannot_be_written_leaves_the_others_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = OutboxFile.create(tmp_path / "1-toy.jsonl", header=HEADER)
    file.append({"step": 0})
    write = os.pwrite
    with monkeypatch.context() as patch:  # a disk that fills up in the middle of a line
        patch.setattr(os, "pwrite", lambda to, line, at: write(to, line[:5], at))
        with pytest.raises(OSError, match="No space left"):
            file.append({"step": 1, "long": "a" * 100})
    file.append({"step": 2})
    assert drained(file) == [0, 2]
    file.close()
