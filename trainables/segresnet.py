"""SegResNet with deep supervision, as in MONAI's Auto3DSeg (Myronenko, BrainLes 2018, without its autoencoder branch).

The network is MONAI's SegResNetDS (Apache-2.0; extra `monai`), and its weights keep MONAI's names. Along thick slices it convolves and
halves only in-plane until voxels are about cubes. Widths, blocks, instance norm and AdamW's rate are Auto3DSeg's, patch and batch our own
(a plan's patch need not suit the network); all else is nnU-Net's.
"""
# pyright: reportMissingImports=false

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from segsweep.data.geometry import Size
from segsweep.learning.divisible import demand_divisible
from segsweep.learning.params import TrainingParams
from segsweep.learning.stages import Optimizer
from segsweep.learning.task import Task
from segsweep.trainables._monai import network


@dataclass(frozen=True, kw_only=True)
class Params(TrainingParams):
    """`features` at the first level double at each; `blocks` are the residual blocks of each level on the way down (one each on the
    way up). The `heads` finest levels have a segmentation head."""

    patch_size: Size | None = (128, 128, 128)
    batch_size: int | None = 2
    optimizer: Optimizer = "adamw"
    learning_rate: float = 2e-4
    weight_decay: float = 1e-5
    features: int = 32
    blocks: tuple[int, ...] = (1, 2, 2, 4, 4)
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.features < 1 or self.heads < 1:
            raise ValueError(
                f"features={self.features}, heads={self.heads} cannot be used: expected at least 1 of both"
            )
        if len(self.blocks) < 2 or min(self.blocks) < 1:
            raise ValueError(f"blocks={self.blocks} cannot be used: expected at least 2 levels of at least 1 block")


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "small": {
        "features": 8,
        "blocks": (1, 1, 1, 1),
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
    """The network for a task's spacing. Raises RecipeError without MONAI, and for a patch that it cannot halve."""
    model: Any = network(
        "SegResNetDS",
        recipe="segresnet",
        init_filters=params.features,
        in_channels=len(task.channels),
        out_channels=task.outputs,
        norm="instance",
        blocks_down=params.blocks,
        dsdepth=params.heads,
        resolution=task.spacing,
    )
    z, y, x = (int(factor) for factor in model.shape_factor())
    demand_divisible(task, by=(z, y, x), network="segresnet")
    return model
