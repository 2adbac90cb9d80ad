"""A plain 3D U-Net with four heads, trained by Dice plus focal loss (Yang et al., SegRap2023's poster of HUST).

Poster ("Accurate and Efficient Segmentation for Gross Tumor Volume in Head and Neck CT"): the plain and the contrast-enhanced CT as two
channels; seven levels; Dice written with weights alpha and beta, background included; focal with gamma 2; one model from scratch; the mean
over a patch's eight flips at prediction. It gives no optimizer, epochs, patch, weights of the heads, alpha or beta.

Here: nnU-Net's training (whose plan for SegRap, two patches of 28 x 256 x 256, has the poster's seven feature maps), all four heads count,
each half as much as the finer one, and alpha = beta = 0.5, since the poster calls the loss Dice. Each scan is normalised by its own mean
and deviation, as by the challenge's nnU-Net baseline, whose channels are not named CT. Whole scans are segmented over the flips that were
trained with (`mirror`: all eight), whose logits are averaged. The poster's legend names another block than its text; this is the text's.
Any number of channels is taken. Weights carry nnU-Net's names. Written from the poster; Apache-2.0.
"""
# pyright: reportMissingImports=false

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from segsweep.data.geometry import Size
from segsweep.data.planning import Normalisation
from segsweep.learning.inference import Inference
from segsweep.learning.losses import RECIPES, Loss, build_loss
from segsweep.learning.params import LossName
from segsweep.learning.supervision import Supervision
from segsweep.learning.task import Task
from segsweep.trainables.unet import PRESETS as PLAIN
from segsweep.trainables.unet import Decoder, Encoder, Levels, plan_levels, shape_of
from segsweep.trainables.unet import Params as PlainParams

HEADS = 4


@dataclass(frozen=True, kw_only=True)
class Params(PlainParams):
    """`alpha` weighs false positives and `beta` false negatives in the overlap term, whichever `loss` has one: 0.5 both is Dice.

    `normalisation` "z-score" takes each scan's own mean and deviation, "plan" what the store plans.
    """

    loss: LossName = "dice_focal"
    alpha: float = 0.5
    beta: float = 0.5
    normalisation: Literal["z-score", "plan"] = "z-score"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha < 0 or self.beta < 0:
            raise ValueError(f"alpha={self.alpha}, beta={self.beta} cannot be used: expected weights from 0")


PRESETS: Mapping[str, Mapping[str, Any]] = {"small": PLAIN["small"]}


def task(params: Params, task: Task) -> Task:
    """The store's task with the recipe's normalisation."""
    if params.normalisation == "plan":
        return task
    return task.renormalised(lambda _: Normalisation(scheme="z-score"))


def build(params: Params, task: Task) -> nn.Module:
    """The network for a task; its depth and kernels follow from patch and spacing. Raises RecipeError when that leaves one level."""
    levels = plan_levels(params, task=task)
    shape = {**shape_of(params, levels=levels), "convolutions": params.convolutions}
    return Levels(
        Encoder(len(task.channels), **shape),
        decoder=FourHeads(task.outputs, **shape),
        stem_stride=levels.strides[0],
        backwards=params.backwards,
    )


def loss(params: Params, task: Task) -> Loss:
    """The named loss with the recipe's weights of false voxels, over all four heads."""
    recipe = dataclasses.replace(RECIPES[params.loss], alpha=params.alpha, beta=params.beta)
    return build_loss(recipe, task=task, batch_dice=params.batch_dice, supervision=Supervision(heads=HEADS))


def inference(params: Params, task: Task) -> Inference:  # noqa: ARG001
    """The mean over the flips that were trained with."""
    return Inference(mirror=params.mirror)


class FourHeads(Decoder):
    """The plain U-Net's decoder without heads at the resolutions below the four finest."""

    def __init__(
        self,
        outputs: int,
        *,
        features: Sequence[int],
        strides: Sequence[Size],
        kernels: Sequence[Size],
        convolutions: int,
    ) -> None:
        super().__init__(outputs, features=features, strides=strides, kernels=kernels, convolutions=convolutions)
        for level in range(len(self.seg_layers) - HEADS):
            self.seg_layers[level] = nn.Identity()

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        return super().forward(skips)[:HEADS]
