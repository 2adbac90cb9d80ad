"""Swin UNETR: a shifted-window transformer as encoder of a convolutional decoder (Hatamizadeh et al., BrainLes 2021).

The network is MONAI's SwinUNETR (Apache-2.0; extra `monai`), and its weights keep MONAI's names. It has one head, so there is no deep
supervision, and patches are multiples of 32 voxels. Patch and AdamW's rate are those of MONAI's own scripts for it; all else is nnU-Net's.
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

# The first stage's attention heads, each of as many channels: 3, and so on doubled.
HEADS = (3, 6, 12, 24)
# Tokens of 2 voxels, halved four times.
DIVISOR = (32, 32, 32)


@dataclass(frozen=True, kw_only=True)
class Params(TrainingParams):
    """`feature_size` is the channels of the first stage, a multiple of 12; `depths` the transformer blocks of the four stages.

    `window` is the edge of the cubes within which tokens see each other.
    """

    patch_size: Size | None = (96, 96, 96)
    batch_size: int | None = 2
    optimizer: Optimizer = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-5
    feature_size: int = 48
    depths: tuple[int, int, int, int] = (2, 2, 2, 2)
    window: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.feature_size < 12 or self.feature_size % 12:
            raise ValueError(f"feature_size={self.feature_size} cannot be used: expected a multiple of 12")
        if min(self.depths) < 1 or self.window < 2:
            raise ValueError(
                f"depths={self.depths}, window={self.window} cannot be used: expected depths from 1, a window from 2"
            )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "small": {
        "feature_size": 12,
        "depths": (1, 1, 1, 1),
        "window": 4,
        "patch_size": [64, 64, 64],
        "batch_size": 2,
        "epochs": 40,
        "iterations": 50,
        "validation_iterations": 8,
        "learning_rate": 1e-3,
        "augmentation": "light",
    },
}


def build(params: Params, task: Task) -> nn.Module:
    """The network for a task. Raises RecipeError without MONAI, and for a patch that is no multiple of 32 voxels."""
    demand_divisible(task, by=DIVISOR, network="swin_unetr")
    return network(
        "SwinUNETR",
        recipe="swin_unetr",
        in_channels=len(task.channels),
        out_channels=task.outputs,
        feature_size=params.feature_size,
        depths=params.depths,
        num_heads=HEADS,
        window_size=params.window,
    )
