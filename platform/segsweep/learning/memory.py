"""What a training step or a prediction needs in memory, before anything is allocated: the model runs once on shapes alone."""

import copy
import math
import os
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segsweep.data.geometry import Size
from segsweep.errors import InputError
from segsweep.learning.precision import Precision, number_format
from segsweep.learning.recompute import stages_of

# Kept for the backward pass: every leaf's output, once more as gradient while it flows back.
PASSES = 2
# Weights, gradients and up to two optimizer moments.
WEIGHT_COPIES = 4


def training_bytes(
    model: nn.Module,
    *,
    patch_size: Size,
    channels: int,
    batch_size: int,
    recompute: bool = False,
    precision: Precision = "float32",
    gpu: bool = False,
) -> int:
    """Estimated peak bytes of one training step, on a `gpu` or a CPU, on a batch of patches (voxels z, y, x).

    With `recompute`, of all stages only what they give is kept, and besides what is inside the largest one.
    """
    shadow = copy.deepcopy(model).to("meta").train()
    stages = stages_of(shadow) if recompute else []
    everything, inside, given = (
        _counted(shadow),
        [_counted(stage) for stage in stages],
        [_given(stage) for stage in stages],
    )
    with torch.no_grad():
        image = torch.empty(batch_size, channels, *patch_size, device="meta")
        shadow(image, torch.zeros(batch_size, dtype=torch.int64)) if getattr(model, "takes_source", False) else shadow(
            image
        )
    again = [sum(sizes) for sizes in inside]
    elements = sum(everything) - sum(again) + max(again, default=0) + sum(map(sum, given))
    weights = sum(parameter.numel() for parameter in model.parameters())
    computed = number_format(precision, device=torch.device("cuda" if gpu else "cpu"))
    return computed.itemsize * PASSES * elements + 4 * WEIGHT_COPIES * weights


def forward_bytes(model: nn.Module, *, patch_size: Size, channels: int, batch_size: int) -> int:
    """Estimated peak bytes of one float32 prediction of a batch of patches (voxels z, y, x), without the weights.

    Those of the tensors that live at once, and of the largest one once more: a processor's convolutions turn around what they read.
    """
    shadow = copy.deepcopy(model).to("meta").eval()
    living = _Living()
    # The device is also that of what the model makes on its way.
    with torch.no_grad(), torch.device("meta"), living:
        shadow(torch.empty(batch_size, channels, *patch_size))
    return living.most + living.largest


class _Living(TorchDispatchMode):
    """Counts the bytes of tensors that are made within it and live at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = self.largest = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, memory: torch.UntypedStorage) -> None:
        key = memory._cdata
        if key not in self._known:
            self._known.add(key)
            self.now += memory.nbytes()
            self.most, self.largest = max(self.most, self.now), max(self.largest, memory.nbytes())
            weakref.finalize(memory, self._forget, key, memory.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _counted(model: nn.Module) -> list[int]:
    """Filled in the next forward pass: how many values each leaf of a model gives, unless it works in place."""
    sizes: list[int] = []

    def count(_module: nn.Module, _inputs: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(output.numel())

    for module in model.modules():
        if not any(module.children()) and not getattr(module, "inplace", False):
            module.register_forward_hook(count)
    return sizes


def _given(stage: nn.Module) -> list[int]:
    """Filled in the next forward pass: how many values a stage gives."""
    sizes: list[int] = []
    stage.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.numel()))
    return sizes


def has_gpu() -> bool:
    """Whether this machine has a GPU."""
    return torch.cuda.is_available()


def machine_bytes() -> int:
    """What one process can hold on this machine at most: its GPU's memory, or all of the main memory without one."""
    if has_gpu():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """What this process holds of the main memory now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def available_bytes() -> int:
    """What processes can still get of the main memory without harm to others, within a container's limit; all where it is unknown."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(min(available, _left_in_container()))


def _left_in_container(group: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes below the limit of control groups (version 2); infinite without one. Cached files make room when it is needed."""
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
    except (OSError, ValueError, KeyError):  # no such group, or "max"
        return math.inf
    return max(0, limit - used + int(cached))


def read_size(text: str) -> int:
    """Bytes of a size as a person writes it ("8GB", "500 MB"; 1 GB is 1024 MB, as in `describe`). Raises InputError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)B?", text.strip(), flags=re.IGNORECASE)
    if match is None or not float(match[1]):
        raise InputError(f"{text!r} is no size of memory; expected a number above 0 and a unit, such as 8GB")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def describe(size: int) -> str:
    """Bytes as a person reads them."""
    power = min(4, int(math.log(max(size, 1), 1024)))
    return f"{size / 1024**power:.3g} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"
