"""Checkpoints are folders of safetensors and JSON with a manifest of sha256 sums; nothing in them is ever unpickled.

A folder appears under its name only when it is complete: it is written beside it, flushed to disk, and renamed last.
"""

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segsweep.data import storage
from segsweep.errors import ModelError, understood
from segsweep.learning.inference import Inference
from segsweep.learning.method import load_method
from segsweep.learning.precision import Precision
from segsweep.learning.task import Task, task_from_json

MANIFEST = "manifest.json"
WEIGHTS = "weights.safetensors"
RAW = "raw.safetensors"
OPTIMIZER = "optimizer.safetensors"
RUN = "run.json"
METRICS = "metrics.json"
# Sub-folder with the checkpoint of the model that shows this one where to look.
FINDER = "finder"
OPTIMIZER_STATE = "optimizer.json"
# Of a JSON file: those of a network with thousands of tensors have some hundred thousand.
MOST_BYTES = 16 * 2**20
ANOTHER = "use another checkpoint"
# In a message of safetensors.
_SYSTEMS_NUMBER = re.compile(r"\(os error (\d+)\)")


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything a training needs to go on: weights, optimizer, where it was and how it did.

    `weights` are those to predict with; where they are an average, `raw` are those that are trained. `scaler` is a gradient scaler's
    state, empty unless the training is in float16.
    """

    weights: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    epoch: int
    optimizer: Mapping[str, Any] = field(default_factory=dict)
    raw: Mapping[str, Tensor] = field(default_factory=dict)
    scaler: Mapping[str, float] = field(default_factory=dict)

    def final(self) -> "Snapshot":
        """The same without what only a training needs."""
        return Snapshot(weights=self.weights, metrics=self.metrics, epoch=self.epoch)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in evaluation mode with the task it was built for, the run that trained it, and how it segments whole scans.

    `finder` is the checkpoint folder of the model that shows it where to look, if it has one. `precision` is what it was trained in.
    """

    model: nn.Module
    task: Task
    run: Mapping[str, Any]
    inference: Inference
    finder: Path | None
    precision: Precision


def save(folder: Path, *, snapshot: Snapshot, run: Mapping[str, Any], finder: Path | None = None) -> str:
    """Write a checkpoint and return its digest. `run` is the content of run.json (run, task, params).

    Afterwards `folder` holds weights, run, metrics, what else the snapshot has and the manifest; a folder that was there is replaced.
    """
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write_weights(partial / WEIGHTS, snapshot.weights)
    _write_json(partial / RUN, run)
    _write_json(partial / METRICS, {"epoch": snapshot.epoch, **snapshot.metrics})
    if snapshot.optimizer:
        tensors, values = _split(snapshot.optimizer)
        _write_tensors(partial / OPTIMIZER, tensors)
        _write_json(partial / OPTIMIZER_STATE, {**values, "scaler": snapshot.scaler})
    if snapshot.raw:
        _write_weights(partial / RAW, snapshot.raw)
    if finder is not None:
        save_plain(finder, to=partial / FINDER)
    digest = write_manifest(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return digest


def save_plain(source: Path, *, to: Path) -> str:
    """Write another checkpoint's model, without what only its training needs, and return the copy's digest. Raises ModelError."""
    return save(to, snapshot=load(source).final(), run=read_json(source / RUN))


def load(folder: Path) -> Snapshot:
    """The snapshot in a folder, after its sums were verified. Raises ModelError when it is damaged."""
    verify(folder)
    metrics = read_json(folder / METRICS)
    optimizer: dict[str, Any] = {}
    scaler: dict[str, float] = {}
    if (folder / OPTIMIZER).exists():
        values = read_json(folder / OPTIMIZER_STATE)
        with understood(f"{folder.name}: {OPTIMIZER_STATE}", otherwise=ModelError, do=ANOTHER):
            optimizer, scaler = _join(_tensors(folder / OPTIMIZER), values), values.get("scaler", {})
    with understood(f"{folder.name}: {METRICS}", otherwise=ModelError, do=ANOTHER):
        epoch = int(metrics.pop("epoch"))
    return Snapshot(
        weights=_tensors(folder / WEIGHTS),
        raw=_tensors(folder / RAW) if (folder / RAW).exists() else {},
        metrics=metrics,
        epoch=epoch,
        optimizer=optimizer,
        scaler=scaler,
    )


def load_model(folder: Path) -> LoadedModel:
    """The model of a checkpoint folder, built by its recipe, weights loaded, in evaluation mode. Raises ModelError."""
    snapshot = load(folder)
    document = run_document(folder)
    task = task_from_json(document["task"])
    method = load_method(document["run"]["trainable"])
    params = method.params(document["params"])
    model = method.build(params, task=task)
    _demand_fitting(snapshot.weights, model=model, folder=folder, recipe=method.name)
    model.load_state_dict(dict(snapshot.weights))
    return LoadedModel(
        model=model.eval(),
        task=task,
        run=document["run"],
        inference=method.inference(params, task=task).recorded(document),
        finder=finder_of(folder),
        precision=params.precision,
    )


def run_document(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint's run.json (run, task, params), all of which can be read. Raises ModelError."""
    document = read_json(folder / RUN)
    with understood(f"{folder.name}: {RUN}", otherwise=ModelError, do=ANOTHER):
        task_from_json(document["task"])
        if not (isinstance(document["run"]["trainable"], str) and isinstance(document["params"], dict)):
            raise TypeError("it names no trainable and its parameters")
    return document


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model, which anyone may have written. Raises ModelError."""
    with understood(f"{path.parent.name}: {path.name}", otherwise=ModelError, do=ANOTHER):
        if not path.is_file():
            raise ValueError("there is none")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise TypeError(f"it holds {str(content)[:20]!r} and no object")
        return content


def finder_of(folder: Path) -> Path | None:
    """The checkpoint of the finder that a checkpoint's manifest lists, or None."""
    return folder / FINDER if f"{FINDER}/{MANIFEST}" in _listed(folder / MANIFEST) else None


def latest(folder: Path) -> Path | None:
    """The checkpoint of the highest epoch among `epoch-NNNNN` folders that is intact, or None."""
    for candidate in reversed(epoch_folders(folder)):
        try:
            verify(candidate)
        except ModelError:
            continue
        return candidate
    return None


def epoch_folders(folder: Path) -> list[Path]:
    """All `epoch-NNNNN` folders, damaged ones too, in the order of their epochs."""
    return sorted(folder.glob("epoch-[0-9]*"))


def epoch_folder(folder: Path, *, epoch: int) -> Path:
    """Where the checkpoint after an epoch (counted from 0) lies."""
    return folder / f"epoch-{epoch:05d}"


def write_manifest(folder: Path) -> str:
    """Flush every file of a folder and of a finder below it, write the manifest last and return the folder's digest."""
    files = {}
    for path in sorted((*folder.iterdir(), *(folder / FINDER).glob("*"))):
        name = path.relative_to(folder).as_posix()
        if name == MANIFEST or not path.is_file():
            continue
        with path.open("rb+") as stream:
            os.fsync(stream.fileno())
        files[name] = {"bytes": path.stat().st_size, "sha256": storage.sha256(path)}
    _write_json(folder / MANIFEST, {"format": 1, "files": files})
    return storage.sha256(folder / MANIFEST)


def verify(folder: Path) -> str:
    """Check every file against the manifest and return the digest. Raises ModelError that names folder and file."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise ModelError(f"{folder}: no {MANIFEST} found; expected a checkpoint or ensemble folder")
    for name, (size, digest) in _listed(manifest).items():
        path = folder / name
        if not _lies_within(name) or not path.is_file():
            raise ModelError(
                f"{folder.name}: file {name!r} is missing; expected it from the manifest; copy the folder again"
            )
        if path.stat().st_size != size or storage.sha256(path) != digest:
            raise ModelError(
                f"{folder.name}: file {name!r} is damaged (its sha256 differs from the manifest); use another checkpoint"
            )
    return storage.sha256(manifest)


def _lies_within(name: str) -> bool:
    """Whether a manifest's file is one of its folder or of its finder's, and nowhere else."""
    own = name.removeprefix(f"{FINDER}/")
    return Path(own).name == own


def _listed(manifest: Path) -> dict[str, tuple[int, str]]:
    """Bytes and sha256 of every file that a manifest names."""
    try:
        files = read_json(manifest)["files"]
        return {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ModelError, ValueError, LookupError, TypeError, AttributeError, OverflowError):
        raise ModelError(
            f"{manifest.parent.name}: {MANIFEST} is damaged (it lists no files with their sums); {ANOTHER}"
        ) from None


def _demand_fitting(weights: Mapping[str, Tensor], *, model: nn.Module, folder: Path, recipe: str) -> None:
    found, expected = (
        {name: tuple(value.shape) for name, value in given.items()} for given in (weights, model.state_dict())
    )
    odd = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
    if odd:
        shapes = f"{found.get(odd[0], 'nothing')}, expected {expected.get(odd[0], 'nothing')}"
        raise ModelError(
            f"{folder.name}: weights do not fit the recipe {recipe!r}: {len(odd)} tensors differ, the first, {odd[0][:100]!r}, is "
            f"{shapes}; use the recipe that trained them"
        )


def _tensors(path: Path) -> dict[str, Tensor]:
    """Those of a safetensors file. Whatever else is in it, a pickle for one, is refused and not read by other means."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path.parent.name}: {path.name} holds no safetensors ({error}); {ANOTHER}") from None


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


def _write_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    _write_tensors(path, {name: value.detach().cpu().contiguous() for name, value in weights.items()})


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raises OSError with the system's number and the path, where safetensors has only words; it also lets nobody else read its files."""
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(tensors, path)
        path.chmod(mode)
    except SafetensorError as error:
        number = _SYSTEMS_NUMBER.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def _write_json(path: Path, value: Any) -> None:
    with path.open("w") as stream:
        json.dump(value, stream, indent=1, sort_keys=True)
        stream.flush()
        os.fsync(stream.fileno())
