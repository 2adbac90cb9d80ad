"""What a training leaves for people: whole after an interruption, and without a machine's name."""

import json
import platform
from pathlib import Path

from segsweep.sweeps.record import EPOCHS, RECORD, add_epoch, begin_record, environment, epochs_of


def test_documents_are_there_from_the_start(tmp_path: Path) -> None:
    begin_record(tmp_path, run={"run": {"trainable": "unet"}}, plan={"batch_size": 2})
    found = {path.name: json.loads(path.read_text()) for path in (tmp_path / RECORD).iterdir()}
    assert found == {
        "run.json": {"run": {"trainable": "unet"}}, "plan.json": {"batch_size": 2}, "environment.json": environment(),
    }  # fmt: skip


def test_epochs_survive_a_dying_worker_and_count_once(tmp_path: Path) -> None:
    assert epochs_of(tmp_path) == []
    begin_record(tmp_path, run={}, plan={})
    for number in (1, 2):
        add_epoch(tmp_path, {"epoch": number, "loss": 10.0 - number})
    with (tmp_path / RECORD / EPOCHS).open("a") as stream:
        stream.write('\n{"epoch": 3, "lo')
    with (tmp_path / RECORD / EPOCHS).open("ab") as stream:
        stream.write(b'\n\xff\xfe\n7\n{"loss": 1.0}')
    begin_record(tmp_path, run={}, plan={})
    for number in (2, 3):
        add_epoch(tmp_path, {"epoch": number, "loss": 20.0 - number})
    assert epochs_of(tmp_path) == [{"epoch": 1, "loss": 9.0}, {"epoch": 2, "loss": 18.0}, {"epoch": 3, "loss": 17.0}]


def test_environment_names_versions_and_no_machine() -> None:
    found = environment()
    assert {"python", "system", "segsweep", "torch", "ray"} <= found.keys()
    assert platform.node() not in found.values()
    assert "/" not in "".join(found.values())
