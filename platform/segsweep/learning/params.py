"""Training parameters that every trainable shares; a recipe's `Params` adds its architecture's own."""

import math
from dataclasses import dataclass
from typing import Literal

from segsweep.data.geometry import Size
from segsweep.learning.intensity import Level
from segsweep.learning.precision import Precision
from segsweep.learning.sampling import Sampling
from segsweep.learning.stages import Optimizer
from segsweep.learning.task import Head

LossName = Literal["dice_ce", "dice_focal", "dice_topk", "ce", "focal", "dice", "tversky", "multitalent"]


@dataclass(frozen=True, kw_only=True)
class TrainingParams:
    """The recommended run is the default: nnU-Net's recipe (v2: training loop, loss, patch sampling, augmentation).

    `patch_size` (voxels z, y, x), `batch_size` (patches per worker) and `head` come from the store's plan unless given.
    `batch_dice` pools Dice over the batch and over workers. `foreground` is the share of patches that are forced to hold foreground,
    `sampling` how joined datasets share the patches: as they have cases, by the square root of that, or batch by batch in turns.
    `mirror` names the axes along which patches are flipped, unless `augmentation` is "none"; at "flips" nothing else is done. `initial`
    is a model whose weights the training starts from: models:/NAME/3, a checkpoint folder or the folder of a finished run.

    `precision` "auto" computes in bfloat16 on a GPU and in float32 on a CPU. `accumulate` batches make one step of the weights, as one
    batch so many times as large (which batch Dice sees in parts; of MultiTalent's sum it is the mean). `recompute` keeps only what
    goes into each stage of the network and computes the rest twice, for large patches; `compile` lets torch.compile fuse the network,
    which pays off on a GPU. `ema` is the decay of a moving average of the weights, which is then validated and kept instead of them;
    0 for none. Every `scan_validation_every` epochs whole scans are validated too (0: only after the last). `nsd_tolerance` (mm) adds the
    normalised surface Dice to the last validation; 0 for none. `select` says which epoch becomes the model: the last or that of the best
    smoothed patch Dice.
    """

    epochs: int = 1000
    iterations: int = 250
    patch_size: Size | None = None
    batch_size: int | None = None
    head: Head | None = None
    loss: LossName = "dice_ce"
    batch_dice: bool = False
    oversampling: Literal["deterministic", "probabilistic"] = "deterministic"
    foreground: float = 0.33
    sampling: Sampling = "uniform"
    optimizer: Optimizer = "sgd"
    learning_rate: float = 1e-2
    weight_decay: float = 3e-5
    augmentation: Level = "nnunet"
    mirror: Literal["zyx", "zy", "zx", "yx", "z", "y", "x", "none"] = "zyx"
    validation_iterations: int = 50
    initial: str = ""
    precision: Precision = "auto"
    accumulate: int = 1
    recompute: bool = False
    compile: bool = False
    ema: float = 0.0
    scan_validation_every: int = 0
    nsd_tolerance: float = 0.0
    select: Literal["last", "best"] = "last"

    def __post_init__(self) -> None:
        for name in ("epochs", "iterations", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} cannot be used: expected at least 1")
        for name in ("learning_rate", "weight_decay"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} cannot be used: expected a number from 0")
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"ema={self.ema} cannot be used: expected a decay from 0 to below 1, such as 0.999")
        for name, expected in (
            ("scan_validation_every", "epochs, or 0 for only the end"),
            ("validation_iterations", "batches, or 0 for none"),
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} cannot be used: expected {expected}")
        if not 0.0 <= self.nsd_tolerance < math.inf:
            raise ValueError(
                f"nsd_tolerance={self.nsd_tolerance} cannot be used: expected a length in mm, or 0 for none"
            )
        if not 0.0 <= self.foreground <= 1.0:
            raise ValueError(f"foreground={self.foreground} cannot be used: expected a share from 0 to 1")
        if self.patch_size is not None and min(self.patch_size) < 8:
            raise ValueError(
                f"patch_size={self.patch_size} cannot be used: expected at least 8 voxels an axis (z, y, x)"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} cannot be used: expected at least 1")
