import errno
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from segsweep.errors import ModelError, RecipeError
from segsweep.learning import checkpoint
from segsweep.learning.checkpoint import Snapshot

TASK = {
    "channels": ["CT"], "table": {"labels": {"structures": ["a"], "pairs": []}, "atoms": [[], [0]]}, "head": "softmax",
    "patch_size": [16, 16, 16], "spacing": [1, 1, 1], "normalisation": [{"scheme": "z-score"}],
}  # fmt: skip
RUN = {"run": {"trainable": "unet"}, "task": TASK, "params": {}}
DEEP = b'{"epoch": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "epoch-00003"
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4)}
    checkpoint.save(folder, snapshot=Snapshot(weights=weights, metrics={"loss": 0.5}, epoch=3), run={"run": {}})
    return folder


def test_a_snapshot_comes_back(saved: Path) -> None:
    snapshot = checkpoint.load(saved)
    assert snapshot.epoch == 3
    assert snapshot.metrics == {"loss": 0.5}
    assert torch.equal(snapshot.weights["a"], torch.arange(6.0).reshape(2, 3))


def test_what_only_a_training_needs_comes_back_and_is_left_out_of_the_final_model(tmp_path: Path) -> None:
    optimizer = torch.optim.SGD([torch.zeros(2)], lr=0.1).state_dict()
    snapshot = Snapshot(
        weights={"a": torch.ones(2)},
        raw={"a": torch.full((2,), 0.1)},
        metrics={"loss": 0.5},
        epoch=3,
        optimizer=optimizer,
        scaler={"scale": 1024.5, "_growth_tracker": 7},
    )
    checkpoint.save(tmp_path / "c", snapshot=snapshot, run={})
    loaded = checkpoint.load(tmp_path / "c")
    assert loaded.scaler == snapshot.scaler
    assert torch.equal(loaded.raw["a"], snapshot.raw["a"])
    checkpoint.save(tmp_path / "c", snapshot=loaded.final(), run={})
    final = checkpoint.load(tmp_path / "c")
    assert (final.epoch, final.metrics, torch.equal(final.weights["a"], torch.ones(2))) == (3, {"loss": 0.5}, True)
    assert not final.raw and not final.optimizer and not final.scaler


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_optimizer_state_comes_back_exactly(tmp_path: Path, kind: str) -> None:
    def trained(steps: int, *, resume: checkpoint.Snapshot | None = None) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        made = {"sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "adamw": torch.optim.AdamW}
        optimizer = made[kind](model.parameters())
        if resume:
            model.load_state_dict(dict(resume.weights))
            optimizer.load_state_dict(dict(resume.optimizer))
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.full((1, 3), float(step + 1))).sum().backward()
            optimizer.step()
        return model, optimizer

    model, optimizer = trained(3)
    weights, state = model.state_dict(), optimizer.state_dict()
    checkpoint.save(tmp_path / "c", snapshot=Snapshot(weights=weights, metrics={}, epoch=0, optimizer=state), run={})
    resumed, _ = trained(2, resume=checkpoint.load(tmp_path / "c"))
    for step in range(2):
        optimizer.zero_grad()
        model(torch.full((1, 3), float(step + 1))).sum().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value)


@pytest.mark.parametrize("position", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("name", ["weights.safetensors", "run.json", "metrics.json"])
def test_one_flipped_byte_is_refused_and_named(saved: Path, name: str, position: float) -> None:
    data = bytearray((saved / name).read_bytes())
    data[int(position * len(data))] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(ModelError, match=name):
        checkpoint.load(saved)


def test_who_may_read_one_file_may_read_all(saved: Path) -> None:
    """safetensors itself makes files for their owner alone, of no use on a disk that a group shares."""
    assert len({path.stat().st_mode for path in saved.iterdir() if path.is_file()}) == 1


def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match=r"weights\.safetensors") as raised:
        checkpoint.save(
            tmp_path / "c", snapshot=Snapshot(weights=nn.Linear(2, 2).state_dict(), metrics={}, epoch=0), run={}
        )
    assert raised.value.errno == errno.ENOSPC and not (tmp_path / "c").exists()


def test_a_missing_file_is_refused(saved: Path) -> None:
    (saved / "weights.safetensors").unlink()
    with pytest.raises(ModelError, match="missing"):
        checkpoint.verify(saved)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"files": ',
        b"[]",
        b"{}",
        b'{"files": []}',
        b'{"files": {"run.json": {}}}',
        b'{"files": {"a": 1}}',
        b"\xff",
    ],
)
def test_a_damaged_manifest_is_refused(saved: Path, content: bytes) -> None:
    (saved / "manifest.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"^epoch-00003: manifest\.json is damaged"):
        checkpoint.verify(saved)
    assert checkpoint.latest(saved.parent) is None


def test_a_manifest_cannot_point_outside(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"]["../secret"] = {"bytes": 0, "sha256": ""}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    (saved.parent / "secret").write_text("")
    with pytest.raises(ModelError, match=r"\.\./secret"):
        checkpoint.verify(saved)


def test_the_latest_intact_checkpoint_is_found(tmp_path: Path) -> None:
    for epoch in (1, 2):
        snapshot = Snapshot(weights={"w": torch.ones(1)}, metrics={}, epoch=epoch)
        checkpoint.save(checkpoint.epoch_folder(tmp_path, epoch=epoch), snapshot=snapshot, run={})
    (tmp_path / ".epoch-00003.partial-1").mkdir()
    assert checkpoint.latest(tmp_path) == tmp_path / "epoch-00002"
    (tmp_path / "epoch-00002" / "weights.safetensors").write_bytes(b"cut")
    assert checkpoint.latest(tmp_path) == tmp_path / "epoch-00001"
    assert checkpoint.latest(tmp_path / "nothing") is None


class Bomb:
    """A pickle of this makes a folder when it is loaded."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def bombs(marker: Path) -> dict[str, bytes]:
    """Files that run code where they are unpickled."""
    found = {f"pickle {number}": pickle.dumps({"a": Bomb(marker)}, protocol=number) for number in range(6)}
    for name, legacy in (("zip", False), ("legacy", True)):
        stream = io.BytesIO()
        state = {"state": {0: {"momentum_buffer": Bomb(marker)}}, "param_groups": []}
        torch.save(state, stream, _use_new_zipfile_serialization=not legacy)
        found[f"torch {name}"] = stream.getvalue()
    return found


def put(folder: Path, *, name: str, content: bytes) -> None:
    """A file with a manifest that fits it: whoever makes a checkpoint makes that too."""
    (folder / name).write_bytes(content)
    if name != checkpoint.MANIFEST:
        checkpoint.write_manifest(folder)


FILES = (
    "weights.safetensors", "raw.safetensors", "optimizer.safetensors", "optimizer.json", "metrics.json", "run.json", "manifest.json",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_code_in_a_checkpoint_is_never_run(tmp_path: Path, name: str) -> None:
    marker, weights = tmp_path / "executed", {"a": torch.ones(2)}
    state = torch.optim.SGD([torch.zeros(2)], lr=0.1).state_dict()
    for number, content in enumerate(bombs(marker).values()):
        folder = tmp_path / str(number)
        snapshot = Snapshot(weights=weights, raw=weights, metrics={}, epoch=0, optimizer=state)
        checkpoint.save(folder, snapshot=snapshot, run=RUN)
        put(folder, name=name, content=content)
        with pytest.raises(ModelError) as raised:
            checkpoint.load_model(folder)
        assert name in str(raised.value) and "\n" not in str(raised.value)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", DEEP),
        ("metrics.json", b"[1]"),
        ("metrics.json", b"{}"),
        ("metrics.json", b'{"epoch": 1e999}'),
        ("metrics.json", b'{"epoch": NaN}'),
        ("metrics.json", b'{"epoch": ' + b"9" * 5000 + b"}"),
        ("metrics.json", b" " * (checkpoint.MOST_BYTES + 1)),
        ("metrics.json", b"\xff\xfe"),
        ("run.json", DEEP),
        ("run.json", b'{"run": 1, "task": {}, "params": {}}'),
        ("run.json", json.dumps({**RUN, "params": [1]}).encode()),
        ("run.json", json.dumps({**RUN, "run": {"trainable": ["unet"]}}).encode()),
        ("run.json", json.dumps({**RUN, "task": {**TASK, "patch_size": 1}}).encode()),
        ("run.json", json.dumps({**RUN, "task": {**TASK, "table": {**TASK["table"], "atoms": [[], [7]]}}}).encode()),
        ("manifest.json", DEEP),
        ("manifest.json", b'{"files": {"run.json": {"bytes": 1e999, "sha256": ""}}}'),
        ("manifest.json", b'{"files": {}}'),
    ],
)
def test_a_hostile_document_is_one_sentence(saved: Path, name: str, content: bytes) -> None:
    put(saved, name="run.json", content=json.dumps(RUN).encode())
    put(saved, name=name, content=content)
    with pytest.raises(ModelError) as raised:
        checkpoint.load_model(saved)
    assert len(str(raised.value)) < 500 and "\n" not in str(raised.value)


@pytest.mark.parametrize("trainable", ["../unet", "unet.os", "os", "_monai", "", "/etc/passwd"])
def test_a_checkpoint_names_no_code_but_recipes(saved: Path, trainable: str) -> None:
    put(saved, name="run.json", content=json.dumps({**RUN, "run": {"trainable": trainable}}).encode())
    with pytest.raises(RecipeError, match="among trainables/"):
        checkpoint.load_model(saved)
