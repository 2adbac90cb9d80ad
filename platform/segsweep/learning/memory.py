"""What a training step needs in memory, before anything is allocated: the model runs once on shapes alone."""

import copy
import math
import os

import torch
from torch import Tensor, nn

from segsweep.data.geometry import Size

# Kept for the backward pass: every leaf's output, once more as gradient while it flows back.
PASSES = 2
# Weights, gradients and up to two optimizer moments.
WEIGHT_COPIES = 4


def training_bytes(model: nn.Module, *, patch_size: Size, channels: int, batch_size: int) -> int:
    """Estimated peak bytes of one float32 training step on a batch of patches (voxels z, y, x)."""
    elements = 0

    def count(module: nn.Module, _inputs: object, output: object) -> None:
        nonlocal elements
        if isinstance(output, Tensor) and not any(module.children()) and not getattr(module, "inplace", False):
            elements += output.numel()

    shadow = copy.deepcopy(model).to("meta").train()
    for module in shadow.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        image = torch.empty(batch_size, channels, *patch_size, device="meta")
        shadow(image, torch.zeros(batch_size, dtype=torch.int64)) if getattr(model, "takes_source", False) else shadow(
            image
        )
    weights = sum(parameter.numel() for parameter in model.parameters())
    return 4 * (PASSES * elements + WEIGHT_COPIES * weights)


def machine_bytes() -> int:
    """What one process can hold on this machine at most: its GPU's memory, or all of the main memory without one."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def describe(size: int) -> str:
    """Bytes as a person reads them."""
    power = min(4, int(math.log(max(size, 1), 1024)))
    return f"{size / 1024**power:.3g} {('B', 'KB', 'MB', 'GB', 'TB')[power]}"
