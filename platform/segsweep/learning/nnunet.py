"""Reads what nnU-Net v2 trained (checkpoint, plans.json, dataset.json) as a recipe of ours with parameters, task and weights.

A checkpoint is a pickle, so it is read by torch's restricted unpickler, which calls nothing that the file names but torch's own
builders of tensors. nnU-Net plans with its axes transposed; here everything is turned back to (z, y, x), which is exact.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from segsweep.errors import ModelError, RecipeError
from segsweep.learning.method import load_method
from segsweep.learning.nnunet_plans import read_architecture, read_configuration, read_task
from segsweep.learning.params import TrainingParams
from segsweep.learning.task import Task
from segsweep.run import Fold

# Canonical orientation as letters for x, y and z, and the ends that each of them may grow to.
CANONICAL, ENDS = "LPS", ("LR", "PA", "SI")
# Second names of the same weights in nnU-Net's networks.
DUPLICATES = (".all_modules.", "decoder.encoder.")


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A network of nnU-Net in our terms, all axes (z, y, x). `dataset` is nnU-Net's name, `epoch` the last one trained, from 0."""

    trainable: str
    params: TrainingParams
    task: Task
    weights: Mapping[str, Tensor]
    dataset: str
    fold: Fold
    epoch: int


class Skipped:
    """Stands where a checkpoint's log holds numpy's numbers: takes whatever they are made from and keeps nothing."""

    def __init__(self, *_parts: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


SKIPPED = [
    (Skipped, name)
    for name in ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "_codecs.encode")
]


def read_nnunet(
    checkpoint: Path, *, plans: Path | None = None, dataset_json: Path | None = None, orientation: str = CANONICAL
) -> Imported:
    """A checkpoint as nnU-Net's trainer saves it; plans.json and dataset.json lie two folders above unless they are named.

    `orientation` says where the x, y and z axes of the stored training scans grow to (R or L, A or P, S or I), for nnU-Net's networks
    see scans as they are stored, and ours in canonical orientation.
    Raises ModelError when a file cannot be read, wants code to be run, or holds what our recipes or tasks cannot express.
    """
    backwards = _backwards(orientation)
    saved = _load(checkpoint)
    results = checkpoint.resolve().parent.parent
    plans_file, dataset_file = plans or results / "plans.json", dataset_json or results / "dataset.json"
    plan, dataset = _json(plans_file), _json(dataset_file)
    try:
        start = saved["init_args"]
        configuration = read_configuration(plan, name=start["configuration"])
        return _imported(saved, plan=plan, configuration=configuration, dataset=dataset, backwards=backwards)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = f"{error!r}" if isinstance(error, KeyError) else f"{error}"
        raise ModelError(
            f"{checkpoint}: {plans_file.name}, {dataset_file.name} and checkpoint do not describe a network together ({reason}); "
            "expected the three files of one folder of nnU-Net v2's results"
        ) from None


def _backwards(orientation: str) -> str:
    """The axes, out of "zyx", that grow the other way than canonical ones."""
    if len(orientation) != len(ENDS) or any(end not in ends for end, ends in zip(orientation, ENDS, strict=True)):
        raise ModelError(
            f"orientation {orientation!r} cannot be used; expected R or L, A or P, S or I, as in RAS or LPS"
        )
    flipped = {axis for axis, end, usual in zip("xyz", orientation, CANONICAL, strict=True) if end != usual}
    return "".join(axis for axis in "zyx" if axis in flipped)


def _load(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's dictionary, without running anything that it names."""
    if not checkpoint.is_file():
        raise ModelError(f"{checkpoint}: no such file; expected a checkpoint of nnU-Net v2 (.pth)")
    try:
        with torch.serialization.safe_globals(list(SKIPPED)):
            saved = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
    except (UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{checkpoint}: is damaged, or holds other things than tensors, numbers and texts, which are never unpickled; "
            "expected a checkpoint of nnU-Net v2"
        ) from None
    if not isinstance(saved, dict) or not {"network_weights", "init_args"} <= saved.keys():
        raise ModelError(f"{checkpoint}: holds no network_weights and init_args; expected a checkpoint of nnU-Net v2")
    return saved


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); expected the file of nnU-Net v2's results") from None
    if not isinstance(values, dict):
        raise ModelError(f"{path}: holds no JSON object; expected the file of nnU-Net v2's results")
    return values


def _imported(
    saved: Mapping[str, Any],
    *,
    plan: Mapping[str, Any],
    configuration: Mapping[str, Any],
    dataset: Mapping[str, Any],
    backwards: str,
) -> Imported:
    forward = [int(axis) for axis in plan["transpose_forward"]]
    axes = [forward.index(axis) for axis in range(3)]
    trainable, built = read_architecture(configuration, axes=axes)
    task = read_task(plan, configuration=configuration, dataset=dataset, axes=axes)
    method, epoch = load_method(trainable), int(saved.get("current_epoch", 1))
    values = {
        **built,
        "patch_size": task.patch_size,
        "batch_size": configuration["batch_size"],
        "head": task.head,
        "epochs": max(1, epoch),
        "backwards": backwards,
    }
    try:
        params = method.params(values)
    except RecipeError as error:
        raise ValueError(str(error)) from None
    model = method.build(params, task=task)
    weights = _weights(saved["network_weights"], known=model.state_dict(), axes=axes)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(" ".join(str(error).split())) from None
    fold = saved["init_args"].get("fold", 0)
    return Imported(
        trainable=trainable,
        params=params,
        task=task,
        weights=weights,
        dataset=str(plan["dataset_name"]),
        fold=fold if fold == "all" else int(fold),
        epoch=max(1, epoch) - 1,
    )


def _weights(given: Mapping[str, Any], *, known: Mapping[str, Tensor], axes: Sequence[int]) -> dict[str, Tensor]:
    """Under the names that the recipe knows, kernels turned to (z, y, x)."""
    plain = {name.removeprefix("module."): value for name, value in given.items()}
    foreign = [name for name in plain if name not in known and not any(part in name for part in DUPLICATES)]
    if foreign:
        raise ValueError(f"the weights {foreign[:3]} belong to no part of such a network")
    turn = (0, 1, *(2 + axis for axis in axes))
    return {
        name: (value.permute(turn) if value.dim() == len(turn) else value).float().contiguous()
        for name, value in plain.items()
        if name in known
    }
