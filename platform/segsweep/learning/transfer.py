"""Starts a network from the weights of another one: what fits by name and shape is copied, and a report says what was not.

As nnU-Net's fine-tuning does (v2, load_pretrained_weights), with four freedoms more: weights of another network may lack or exceed
some, a first convolution of other input channels is adapted, a method may say how its weights fit into other networks, and heads are
copied where their outputs mean the same.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segsweep.data import storage
from segsweep.data.downloads import download_cache
from segsweep.errors import ModelError, ResourceError
from segsweep.learning import checkpoint
from segsweep.learning.method import load_method
from segsweep.learning.task import Task, task_from_json

# A checkpoint folder and the sha256 of its manifest.
PINNED = re.compile(r"(?P<folder>.+)@(?P<digest>[0-9a-f]{64})")
CONVOLUTION_DIMENSIONS = 5
# Modules that hold segmentation heads, as the recipes and MONAI name them.
HEADS = re.compile(r"(.*\.)?(seg_layers|heads?|out|out_0|out_blocks)\..*")
# More modules than this are not named in a sentence.
MOST_MODULES = 4


@dataclass(frozen=True, kw_only=True)
class Report:
    """Names of tensors: copied as they were, changed to fit, left out because the model has no place for them, and the model's own
    that start new. A segmentation head of another class count is both dropped and new."""

    loaded: tuple[str, ...]
    adapted: tuple[str, ...]
    dropped: tuple[str, ...]
    new: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able dictionary; `Report(**values)` takes it back, with lists for tuples."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    def __str__(self) -> str:
        counts = f"loaded {len(self.loaded)} tensors, adapted {len(self.adapted)}"
        return f"{counts}, dropped {_named(self.dropped)}, new {_named(self.new)}"


def pinned(folder: Path) -> str:
    """A checkpoint folder as the parameter `initial` that workers take: its address and what it must still hold. Raises ModelError."""
    return f"{folder.resolve()}@{checkpoint.verify(folder)}"


def transfer_from(model: nn.Module, *, initial: str, task: Task) -> Report:
    """Copy the weights of a checkpoint, given as `pinned` wrote it, into a model for a task.

    The recipe that trained the checkpoint first fits its weights to the model (`adapt`, where it has one); heads that meant other
    structures start new, even where there are as many. Raises ModelError when the checkpoint is absent or changed since, or when
    nothing fits.
    """
    folder = unpinned(initial)
    weights = checkpoint.load(folder).weights
    document = checkpoint.run_document(folder)
    fitted = load_method(document["run"]["trainable"]).adapt(weights, model=model)
    if _meanings(task_from_json(document["task"])) != _meanings(task):
        fitted = {name: value for name, value in fitted.items() if not HEADS.fullmatch(name)}
    return transfer(model, weights=weights, fitted=fitted)


def unpinned(initial: str) -> Path:
    """The checkpoint folder that `pinned` wrote; of one in a bucket the copy in this machine's cache.

    Raises ModelError when it is absent or changed since, ResourceError when the cache has no room.
    """
    address = PINNED.fullmatch(initial)
    if address is None:
        raise ModelError(
            f"initial={initial!r} is no checkpoint with its digest; start the run by `segsweep train` or `tune`"
        )
    remote = storage.is_remote(address["folder"])
    folder = _downloaded(address["folder"], digest=address["digest"]) if remote else Path(address["folder"])
    if checkpoint.verify(folder) != address["digest"]:
        raise ModelError(f"{folder}: the checkpoint changed since the run began; restore it, or start another run")
    return folder


def _downloaded(uri: str, *, digest: str) -> Path:
    def fill(folder: Path) -> None:
        storage.download(uri, folder=folder)
        checkpoint.verify(folder)

    size = sum(storage.sizes(uri).values())
    if not size:
        raise ModelError(f"{uri}: no checkpoint found; expected the one that the run began with: restore it")
    found = download_cache().entry(digest, size=size, fill=fill)
    if found is None:
        raise ResourceError(
            f"{uri}: its {size / 1e9:.3g} GB find no room in the cache; set SEGSWEEP_CACHE_GB higher, or SEGSWEEP_CACHE to a larger disk"
        )
    return found


def transfer(model: nn.Module, *, weights: Mapping[str, Tensor], fitted: Mapping[str, Tensor] | None = None) -> Report:
    """Copy weights into a model in place, by name and shape; a layer's weight and bias fit together or not at all.

    `fitted` are the weights as a method changed them for this model. The model's first convolution takes weights for n instead of its m
    input channels as their sum over n, divided by m: an image that all channels share gives the same response. Raises ModelError when
    no tensor fits.
    """
    own, given = model.state_dict(), weights if fitted is None else fitted
    changed = {name for name, value in given.items() if value is not weights.get(name)}
    stem = next((name for name, value in own.items() if value.dim() == CONVOLUTION_DIMENSIONS), None)
    values = {name: given[name] for name in own if name in given}
    if stem in values and _other_channels(values[stem], target=own[stem]):
        values[stem] = values[stem].sum(dim=1, keepdim=True).expand_as(own[stem]) / own[stem].shape[1]
        changed.add(stem)
    misfits = {_module(name) for name, value in values.items() if value.shape != own[name].shape}
    used = [name for name in values if _module(name) not in misfits]
    with torch.no_grad():
        for name in used:
            own[name].copy_(values[name])
    if not used:
        raise ModelError(
            f"none of the {len(weights)} initial tensors fits the network by name and shape; "
            "choose the architecture that the initial model has, with its features and levels"
        )
    return Report(
        loaded=tuple(name for name in used if name not in changed),
        adapted=tuple(name for name in used if name in changed),
        dropped=tuple(name for name in weights if name not in used),
        new=tuple(name for name in own if name not in used),
    )


def _meanings(task: Task) -> tuple[frozenset[str], ...]:
    """The structures that each output of a head stands for; only softmax has one that stands for none."""
    names = task.table.labels.structures
    atoms = task.table.atoms if task.head == "softmax" else [(index,) for index in range(len(names))]
    return tuple(frozenset(names[index] for index in atom) for atom in atoms)


def _other_channels(value: Tensor, *, target: Tensor) -> bool:
    """Whether a convolution's weights (out, in, z, y, x) differ from the target's in their input channels alone."""
    alike = value.dim() == target.dim() and value.shape[0] == target.shape[0] and value.shape[2:] == target.shape[2:]
    return alike and value.shape[1] != target.shape[1]


def _module(name: str) -> str:
    """The module that a tensor belongs to; a tensor of the network's own stands for itself."""
    return name.rpartition(".")[0] or name


def _named(names: tuple[str, ...]) -> str:
    """How many, and which modules: `4 (decoder.seg_layers.0, decoder.seg_layers.1)`."""
    modules = list(dict.fromkeys(map(_module, names)))
    shown = ", ".join(modules[:MOST_MODULES]) + (", …" if len(modules) > MOST_MODULES else "")
    return f"{len(names)} ({shown})" if names else "0"
