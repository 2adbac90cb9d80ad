"""What a training step needs in memory, before anything is allocated: the model runs once on shapes alone."""

import copy
import math
import os

import torch
from torch import Tensor, nn

from segsweep.data.geometry import Size
from segsweep.learning.recompute import stages_of

# Kept for the backward pass: every leaf's output, once more as gradient while it flows back.
PASSES = 2
# Weights, gradients and up to two optimizer moments.
WEIGHT_COPIES = 4


def training_bytes(
    model: nn.Module, *, patch_size: Size, channels: int, batch_size: int, recompute: bool = False
) -> int:
    """Estimated peak bytes of one float32 training step on a batch of patches (voxels z, y, x).

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
    return 4 * (PASSES * elements + WEIGHT_COPIES * weights)


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


def machine_bytes() -> int:
    """What one process can hold on this machine at most: its GPU's memory, or all of the main memory without one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def describe(size: int) -> str:
    """Bytes as a person reads them."""
    power = min(4, int(math.log(max(size, 1), 1024)))
    return f"{size / 1024**power:.3g} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"
