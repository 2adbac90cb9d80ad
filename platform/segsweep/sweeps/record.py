"""What a training leaves in its folder for people to look at: `record/` with its run, plan and environment, its epochs and pictures.

record/run.json, plan.json and environment.json are there from the start, epochs.jsonl grows by a line an epoch, overlays/CASE.png come
with the validation at the end.
"""

import contextlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from segsweep.data.manifest import write_json

RECORD, EPOCHS, OVERLAYS = "record", "epochs.jsonl", "overlays"
# What may change a result without any change of ours.
PACKAGES = ("segsweep", "torch", "ray", "numpy", "zarr", "safetensors")


def begin_record(folder: Path, *, run: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    """Write what is known before the first epoch. `run` is what a checkpoint's run.json says, `plan` the store's."""
    (folder / RECORD).mkdir(parents=True, exist_ok=True)
    for name, value in (("run", run), ("plan", plan), ("environment", environment())):
        write_json(folder / RECORD / f"{name}.json", value)


def add_epoch(folder: Path, values: Mapping[str, float]) -> None:
    """Add an epoch, counted from 1 as `epoch`."""
    with (folder / RECORD / EPOCHS).open("a") as stream:
        # The line's end comes first: what a dying worker tore off spoils no other line.
        stream.write(f"\n{json.dumps(dict(values))}")


def epochs_of(folder: Path) -> list[dict[str, float]]:
    """The epochs of a training in their order; of one that was trained again after an interruption the last time."""
    found: dict[float, dict[str, float]] = {}
    path = folder / RECORD / EPOCHS
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, TypeError, LookupError):  # an empty line, or a torn one
            epoch = json.loads(line)
            found[epoch["epoch"]] = epoch
    return [found[number] for number in sorted(found)]


def environment() -> dict[str, str]:
    """Versions of this process's Python, system and packages, and of CUDA and the GPU, where there is one; no name of a machine."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    found |= {name: version(name) for name in PACKAGES}
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "gpu": torch.cuda.get_device_name()}
    return found
