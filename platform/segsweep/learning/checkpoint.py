"""Checkpoints are folders of safetensors and JSON with a manifest of sha256 sums; nothing in them is ever unpickled.

A folder appears under its name only when it is complete: it is written beside it, flushed to disk, and renamed last.
"""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segsweep.data import storage
from segsweep.errors import ModelError
from segsweep.learning.method import load_method
from segsweep.learning.task import Task, task_from_json

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
OPTIMIZER = "optimizer.safetensors"
RUN = "run.json"
METRICS = "metrics.json"
OPTIMIZER_STATE = "optimizer.json"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything a training needs to go on: weights, optimizer, where it was and how it did."""

    weights: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    epoch: int
    optimizer: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode with the task it was built for and the run that trained it."""

    model: nn.Module
    task: Task
    run: Mapping[str, Any]


def save(folder: Path, *, snapshot: Snapshot, run: Mapping[str, Any]) -> str:
    """Write a checkpoint and return its digest. `run` is the content of run.json (run, task, params).

    Afterwards `folder` holds weights, run, metrics, optimizer state (if any) and the manifest; a folder that was there is replaced.
    """
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: value.detach().cpu().contiguous() for name, value in snapshot.weights.items()}, partial / WEIGHTS)
    _write_json(partial / RUN, run)
    _write_json(partial / METRICS, {"epoch": snapshot.epoch, **snapshot.metrics})
    if snapshot.optimizer:
        tensors, values = _split(snapshot.optimizer)
        save_file(tensors, partial / OPTIMIZER)
        _write_json(partial / OPTIMIZER_STATE, values)
    digest = write_manifest(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return digest


def load(folder: Path) -> Snapshot:
    """The snapshot in a folder, after its sums were verified. Raises ModelError when it is damaged."""
    verify(folder)
    metrics = json.loads((folder / METRICS).read_text())
    optimizer: dict[str, Any] = {}
    if (folder / OPTIMIZER).exists():
        optimizer = _join(load_file(folder / OPTIMIZER), json.loads((folder / OPTIMIZER_STATE).read_text()))
    epoch = int(metrics.pop("epoch"))
    return Snapshot(weights=load_file(folder / WEIGHTS), metrics=metrics, epoch=epoch, optimizer=optimizer)


def load_model(folder: Path) -> LoadedModel:
    """The model of a checkpoint folder, built by its recipe, weights loaded, in evaluation mode. Raises ModelError."""
    snapshot = load(folder)
    document = json.loads((folder / RUN).read_text())
    task = task_from_json(document["task"])
    method = load_method(document["run"]["trainable"])
    model = method.build(method.params(document["params"]), task=task)
    try:
        model.load_state_dict(dict(snapshot.weights))
    except RuntimeError as error:
        raise ModelError(f"{folder.name}: weights do not fit the recipe {method.name!r}: {error}") from None
    return LoadedModel(model=model.eval(), task=task, run=document["run"])


def latest(folder: Path) -> Path | None:
    """The checkpoint of the highest epoch among `epoch-NNNNN` folders that is intact, or None."""
    for candidate in sorted(folder.glob("epoch-[0-9]*"), reverse=True):
        try:
            verify(candidate)
        except ModelError:
            continue
        return candidate
    return None


def epoch_folder(folder: Path, *, epoch: int) -> Path:
    """Where the checkpoint after an epoch (counted from 0) lies."""
    return folder / f"epoch-{epoch:05d}"


def write_manifest(folder: Path) -> str:
    """Flush every file of a folder, write its manifest last and return the folder's digest."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name == MANIFEST or not path.is_file():
            continue
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
        files[path.name] = {"bytes": path.stat().st_size, "sha256": storage.sha256(path)}
    _write_json(folder / MANIFEST, {"format": 1, "files": files})
    return storage.sha256(folder / MANIFEST)


def verify(folder: Path) -> str:
    """Check every file against the manifest and return the digest. Raises ModelError that names folder and file."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ModelError(f"{folder}: no {MANIFEST} found; expected a checkpoint or ensemble folder")
    for name, (size, digest) in _listed(manifest).items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ModelError(
                f"{folder.name}: file {name!r} is missing; expected it from the manifest; copy the folder again"
            )
        if path.stat().st_size != size or storage.sha256(path) != digest:
            raise ModelError(
                f"{folder.name}: file {name!r} is damaged (its sha256 differs from the manifest); use another checkpoint"
            )
    return storage.sha256(manifest)


def _listed(manifest: Path) -> dict[str, tuple[int, str]]:
    """Bytes and sha256 of every file that a manifest names."""
    try:
        files = json.loads(manifest.read_text())["files"]
        return {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{manifest.parent.name}: {MANIFEST} is damaged (it lists no files with their sums); use another checkpoint"
        ) from None


def _split(optimizer: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A torch optimizer's state_dict as named tensors and a JSON-able rest."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                scalars.setdefault(str(index), {})[name] = value
    return tensors, {"scalars": scalars, "param_groups": optimizer["param_groups"]}


def _join(tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(entries) for index, entries in values["scalars"].items()}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    return {"state": state, "param_groups": values["param_groups"]}


def _write_json(path: Path, value: Any) -> None:
    with path.open("w") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
