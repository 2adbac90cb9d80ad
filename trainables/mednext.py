"""MedNeXt: a U-Net of ConvNeXt blocks with large kernels and deep supervision (Roy et al., MICCAI 2023).

The network is MONAI's MedNeXt (Apache-2.0; extra `monai`), and its weights keep MONAI's names. `size` S, B, M or L are the paper's four;
L, its best, needs twice the memory of B. Patches are multiples of 16 voxels. Patch, batch and AdamW's rate are the paper's, which resamples
to 1 mm; all else is nnU-Net's.
"""
# pyright: reportMissingImports=false

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from segsweep.data.geometry import Size
from segsweep.learning.divisible import demand_divisible
from segsweep.learning.params import TrainingParams
from segsweep.learning.stages import Optimizer
from segsweep.learning.task import Task
from segsweep.trainables._monai import network

# Expansion ratios and blocks of the five levels on the way down (the last is the bottleneck); the way up mirrors them (table 1).
EXPANSIONS = {"S": (2, 2, 2, 2, 2), "B": (2, 3, 4, 4, 4), "M": (2, 3, 4, 4, 4), "L": (3, 4, 8, 8, 8)}
BLOCKS = {"S": (2, 2, 2, 2, 2), "B": (2, 2, 2, 2, 2), "M": (3, 4, 4, 4, 4), "L": (3, 4, 8, 8, 8)}
DIVISOR = (16, 16, 16)


@dataclass(frozen=True, kw_only=True)
class Params(TrainingParams):
    """`size` gives blocks and their expansion; `features` at the first level double at each; `kernel` is 3 or 5 in the paper."""

    patch_size: Size | None = (128, 128, 128)
    batch_size: int | None = 2
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-3
    size: Literal["S", "B", "M", "L"] = "B"
    features: int = 32
    kernel: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features < 1 or self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(
                f"features={self.features}, kernel={self.kernel} cannot be used: expected features from 1, an odd kernel from 3"
            )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "small": {
        "size": "S",
        "features": 8,
        "patch_size": [64, 64, 64],
        "batch_size": 2,
        "epochs": 40,
        "iterations": 50,
        "validation_iterations": 8,
        "learning_rate": 2e-3,
        "augmentation": "light",
    },
}


def build(params: Params, task: Task) -> nn.Module:
    """The network for a task. Raises RecipeError without MONAI, and for a patch that is no multiple of 16 voxels."""
    demand_divisible(task, by=DIVISOR, network="mednext")
    (*expansions, widest), (*blocks, deepest) = EXPANSIONS[params.size], BLOCKS[params.size]
    return network(
        "MedNeXt",
        recipe="mednext",
        init_filters=params.features,
        in_channels=len(task.channels),
        out_channels=task.outputs,
        encoder_expansion_ratio=expansions,
        decoder_expansion_ratio=expansions[::-1],
        bottleneck_expansion_ratio=widest,
        kernel_size=params.kernel,
        deep_supervision=True,
        use_residual_connection=True,
        blocks_down=blocks,
        blocks_bottleneck=deepest,
        blocks_up=blocks[::-1],
    )
