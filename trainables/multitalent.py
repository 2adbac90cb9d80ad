"""MultiTalent: one network learns from many partially labelled datasets, then from one (Ulrich et al., MICCAI 2023, and SegRap2023).

The second is the challenge's poster "Large-Scale Pre-training for Segmentation of Organs-at-Risk and Gross Tumor Volume of NPC".

`preset=pretraining` trains on stores that are joined: a sigmoid output for every structure of every dataset (the livers of two datasets
are two outputs), a loss that is summed over what is annotated, and fewer patches of a case the more its dataset has. `initial=` that
model then fine-tunes on one store by softmax, as the authors did for SegRap2023. At first only the heads, which start new, are trained,
then with a rising rate the whole network, then comes nnU-Net's schedule; `epochs` counts all three. Without `initial` nothing is there
to be warmed up, and the schedule is nnU-Net's alone: the paper's runs without pre-training.

Both trainings need equal patches and spacings, else their networks differ in strides. The poster's best run is the default:
residual encoder, batches of 4, a third of the patches at foreground by chance (`oversampling=deterministic` is its "default").
Where the released code differs: heads rise to 5e-4 (`heads_rate`), whose gradients the residual network's trainer clips to 1
(`heads_gradient`), and `preset=released` is its plan for pre-training. Written from the descriptions; Apache-2.0.
"""
# pyright: reportMissingImports=false

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

from segsweep.data.geometry import Size, Spacing
from segsweep.data.planning import Normalisation
from segsweep.learning.method import default_stages
from segsweep.learning.sampling import Sampling
from segsweep.learning.stages import Stage
from segsweep.learning.task import Task
from segsweep.trainables.resenc_unet import PRESETS as RESIDUAL
from segsweep.trainables.resenc_unet import Params as ResidualParams
from segsweep.trainables.resenc_unet import build as build_residual
from segsweep.trainables.unet import build as build_plain

# Name prefixes of what starts new when datasets change.
HEADS = ("decoder.seg_layers.",)
# nnU-Net's plain network convolves twice on every level of both sides.
PLAIN_CONVOLUTIONS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Params(ResidualParams):
    """`part` decides the head and, of `pretraining`, the loss. `network` "unet" is nnU-Net's plain one, whatever `blocks` and
    `convolutions` say.

    `spacing` (mm z, y, x) and `intensities` (HU: lowest, highest, mean, deviation) replace those of the store's plan: pre-training takes
    those of the store that is fine-tuned on. With `initial`, fine-tuning raises the rate of the heads to `heads_rate` in `heads_epochs`,
    their gradients clipped to `heads_gradient`, then that of the whole network to `learning_rate` in `warmup_epochs`.
    """

    part: Literal["finetuning", "pretraining"] = "finetuning"
    network: Literal["resenc", "unet"] = "resenc"
    epochs: int = 2000
    patch_size: Size | None = (32, 320, 256)
    batch_size: int | None = 4
    oversampling: Literal["deterministic", "probabilistic"] = "probabilistic"
    sampling: Sampling = "sqrt"
    features: int = 30
    blocks: tuple[int, ...] = (1, 2, 3, 4)
    spacing: Spacing | None = None
    intensities: tuple[float, float, float, float] | None = None
    heads_epochs: int = 10
    heads_rate: float = 1e-3
    heads_gradient: float = 12.0
    warmup_epochs: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ValueError(f"spacing={self.spacing} cannot be used: expected lengths in mm above 0 (z, y, x)")
        if self.intensities is not None and (self.intensities[0] >= self.intensities[1] or self.intensities[3] <= 0):
            raise ValueError(
                f"intensities={self.intensities} cannot be used: expected lowest, highest above it, mean, deviation above 0 (HU)"
            )
        for name in ("heads_epochs", "warmup_epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} cannot be used: expected at least 1")
        if not 0 <= self.heads_rate < math.inf or not self.heads_gradient > 0:
            raise ValueError(
                f"heads_rate={self.heads_rate}, heads_gradient={self.heads_gradient} cannot be used: "
                "expected a rate from 0 and a norm above 0"
            )
        if _warms_up(self) and self.epochs <= self.heads_epochs + self.warmup_epochs:
            raise ValueError(
                f"epochs={self.epochs} cannot be used: expected more than the {self.heads_epochs + self.warmup_epochs} of "
                "heads_epochs and warmup_epochs, or fewer of these"
            )
        if self.part == "pretraining" and self.loss not in ("dice_ce", "multitalent"):
            raise ValueError(
                f"loss={self.loss} cannot be used: pre-training has its own, multitalent; choose a loss for fine-tuning only"
            )
        # The part's own, written where a run's record shows them.
        object.__setattr__(self, "head", "sigmoid" if self.part == "pretraining" else "softmax")
        if self.part == "pretraining":
            object.__setattr__(self, "loss", "multitalent")


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "pretraining": {
        "part": "pretraining",
        "batch_size": 2,
        "epochs": 1000,
        "oversampling": "deterministic",
        "spacing": [3.0, 0.542, 0.542],
    },
    "released": {
        "part": "pretraining",
        "patch_size": [96, 192, 192],
        "batch_size": 2,
        "epochs": 1000,
        "oversampling": "deterministic",
        "spacing": [1.5, 1.0, 1.0],
        "intensities": [-927.0, 275.0, 63.44, 175.48],
    },
    "small": {**RESIDUAL["small"], "heads_epochs": 2, "warmup_epochs": 4},
}


def build(params: Params, task: Task) -> nn.Module:
    """The network for a task; its depth and kernels follow from patch and spacing. Raises RecipeError when that leaves one level."""
    if params.network == "resenc":
        return build_residual(params, task)
    return build_plain(dataclasses.replace(params, convolutions=PLAIN_CONVOLUTIONS), task)


def task(params: Params, task: Task) -> Task:
    """The store's task at the given spacing and, for its CT channels, with the given intensities."""
    task = dataclasses.replace(task, spacing=params.spacing or task.spacing)
    if params.intensities is None:
        return task
    low, high, mean, deviation = params.intensities
    given = Normalisation(scheme="ct", low=low, high=high, mean=mean, deviation=deviation)
    return task.renormalised(lambda rule: given if rule.scheme == "ct" else rule)


def adapt(weights: Mapping[str, Tensor], _model: nn.Module) -> Mapping[str, Tensor]:
    """The weights without the heads, which meant other structures even where there are as many: they start new."""
    return {name: value for name, value in weights.items() if not name.startswith(HEADS)}


def stages(params: Params) -> tuple[Stage, ...]:
    """Heads, warm-up and training when another model's weights are fine-tuned; otherwise nnU-Net's one stage."""
    if not _warms_up(params):
        return default_stages(params)
    left = params.epochs - params.heads_epochs - params.warmup_epochs
    return (
        Stage(
            name="heads",
            epochs=params.heads_epochs,
            learning_rate=params.heads_rate,
            schedule="rise",
            parameters=HEADS,
            optimizer="amsgrad",
            largest_gradient=params.heads_gradient,
        ),
        Stage(name="warm-up", epochs=params.warmup_epochs, learning_rate=params.learning_rate, schedule="rise"),
        Stage(name="train", epochs=left, learning_rate=params.learning_rate),
    )


def _warms_up(params: Params) -> bool:
    return params.part == "finetuning" and params.initial != ""
