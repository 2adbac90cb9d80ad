"""A residual U-Net that is trained without its skip connections first, then with them (Zhu, FLARE24 challenge, task 1).

Paper: intensities clipped to [-200, 200] HU, slices halved from 512 to 256 pixels an edge, only slices within 20 of an annotated one, Dice
loss, skip connections removed and then reintroduced. It gives no network, patch, optimizer, rate, epochs or lengths of the phases, nor what
the second phase starts from. Its preprocessing is that of lee-zq/3DUNet-Pytorch, so what it leaves open is taken from that code: the
ResUNet (9,498,744 parameters for one CT and two classes), intensities in [-1, 1], two patches of 48 whole slices a batch, Adam at 1e-4 that
falls to a tenth every 20 epochs, 200 epochs, flips alone as augmentation, and supervision of the three coarser heads at full resolution.

Our own: each phase is half of the epochs with an optimizer of its own, and the second starts from the first's weights; removed skips are
tensors of zeros, so both phases have the same weights; the short ways around each block stay in both; a case without annotated voxels is
trained on whole. The code's slices of 1 mm are `slice_mm=1.0`, and the margin then 20 mm. Not taken over: it drops scans of fewer than 48
slices, halts after 30 epochs without progress, and squares the probabilities in Dice. The paper reports a Dice of 0.017 (nnU-Net: 0.331).
Written from the description; Apache-2.0.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segsweep.data.geometry import Size
from segsweep.data.planning import Normalisation
from segsweep.learning.crop import cropped
from segsweep.learning.divisible import demand_divisible
from segsweep.learning.intensity import Level
from segsweep.learning.losses import Loss, build_loss
from segsweep.learning.params import LossName, TrainingParams
from segsweep.learning.patches import TrainingCase
from segsweep.learning.stages import Optimizer, Stage
from segsweep.learning.task import Task

WINDOW = 200.0
# Convolutions of each level by their dilations; the deepest encoder level replaces the resolution that it does not go down to.
ENCODER = ((1, 1), (1, 1, 1), (1, 2, 4), (3, 4, 5))
DECODER = ((1, 1, 1), (1, 1, 1), (1, 1))
DIVISOR = (8, 8, 8)
RATE_FACTOR = 0.1
# The coarser heads' share of the loss, and how it falls: every 30 of the code's 200 epochs.
SHARE, SHARE_FACTOR, SHARE_FALLS = 0.4, 0.8, 200 / 30


@dataclass(frozen=True, kw_only=True)
class Params(TrainingParams):
    """`first_phase` is the share of the epochs without skip connections; 0 trains the plain ResUNet. The rate of each phase falls to a
    tenth every `rate_period` epochs.

    `features` at the first level double down to 16 times as many. Voxels are `coarsening` times as wide as the plan's, in-plane, and
    `slice_mm` mm thick (none: as the plan's). Training sees `slice_margin` slices on either side of the annotated ones. With `supervision`
    "code" the coarser heads are compared at full resolution and weigh ever less; "nnunet" weighs them as nnU-Net does.
    """

    epochs: int = 200
    patch_size: Size | None = (48, 256, 256)
    batch_size: int | None = 2
    loss: LossName = "dice"
    optimizer: Optimizer = "adam"
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    augmentation: Level = "flips"
    first_phase: float = 0.5
    rate_period: int = 20
    features: int = 16
    dropout: float = 0.2
    coarsening: float = 2.0
    slice_mm: float | None = None
    slice_margin: int = 20
    supervision: Literal["code", "nnunet"] = "code"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rate_period", "features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} cannot be used: expected at least 1")
        if not 0.0 <= self.first_phase <= 1.0 or not 0.0 <= self.dropout < 1.0:
            raise ValueError(
                f"first_phase={self.first_phase}, dropout={self.dropout} cannot be used: expected a share from 0 to 1, dropout below 1"
            )
        if self.coarsening < 1 or self.slice_margin < 0 or (self.slice_mm is not None and self.slice_mm <= 0):
            raise ValueError(
                f"coarsening={self.coarsening}, slice_margin={self.slice_margin}, slice_mm={self.slice_mm} cannot be used: "
                "expected coarsening from 1, a margin from 0 and slices above 0 mm"
            )


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "small": {
        "features": 8,
        "dropout": 0.0,
        "coarsening": 1.0,
        "patch_size": [32, 64, 64],
        "batch_size": 2,
        # By Dice alone a network without norms stays at all background for many small structures.
        "loss": "dice_ce",
        "epochs": 40,
        "iterations": 50,
        "validation_iterations": 8,
        "learning_rate": 1e-3,
        "augmentation": "none",
        "oversampling": "probabilistic",
        "foreground": 0.67,
        "supervision": "nnunet",
    },
}


def task(params: Params, task: Task) -> Task:
    """The store's task with CT clipped to [-1, 1], voxels coarser in-plane and, if asked for, other slices; other channels keep their
    rule."""
    z, y, x = task.spacing
    rule = Normalisation(scheme="ct", low=-WINDOW, high=WINDOW, mean=0.0, deviation=WINDOW)
    spacing = (params.slice_mm or z, y * params.coarsening, x * params.coarsening)
    return dataclasses.replace(task, spacing=spacing).renormalised(
        lambda planned: rule if planned.scheme == "ct" else planned
    )


def build(params: Params, task: Task) -> nn.Module:
    """The network for a task. Raises RecipeError for a patch that is no multiple of 8 voxels."""
    demand_divisible(task, by=DIVISOR, network="phased_resunet")
    return ResUNet(channels=len(task.channels), outputs=task.outputs, features=params.features, dropout=params.dropout)


def stages(params: Params) -> tuple[Stage, ...]:
    """The phases, of which one may have no epochs."""
    first = round(params.first_phase * params.epochs)
    lengths = {"without skips": first, "with skips": params.epochs - first}
    return tuple(
        Stage(
            name=name,
            epochs=epochs,
            learning_rate=params.learning_rate,
            schedule="step",
            factor=RATE_FACTOR,
            period=params.rate_period,
            switches={"skips": name == "with skips"},
        )
        for name, epochs in lengths.items()
        if epochs
    )


def loss(params: Params, task: Task) -> Loss:
    """The named loss over all heads, weighed as `supervision` says."""
    named = build_loss(params.loss, task=task, batch_dice=params.batch_dice)
    if params.supervision == "nnunet":
        return named

    def weighed(levels: list[Tensor], atoms: Tensor, annotated: Tensor, *, progress: float = 0.0) -> Tensor:
        share = SHARE * SHARE_FACTOR ** int(progress * SHARE_FALLS)
        total = named(levels[:1], atoms, annotated, progress=progress)
        for level in levels[1:]:
            enlarged = interpolate(level.float(), size=atoms.shape[1:], mode="trilinear", align_corners=False)
            total = total + share * named([enlarged], atoms, annotated, progress=progress)
        return total

    return weighed


def trained_part(case: TrainingCase, params: Params, task: Task) -> TrainingCase:
    """The slices within the margin of an annotated one; all slices of a case without annotated voxels."""
    return cropped(case, task=task, margin=(params.slice_margin, None, None))


class ResUNet(nn.Module):
    """Logits (B, outputs, z, y, x), full resolution first; in training also those of the levels at 1/2, 1/4 and 1/8.

    The flag `skips`, a buffer, says whether the decoder sees the encoder's levels; without it zeros stand in their place.
    """

    def __init__(self, *, channels: int, outputs: int, features: int, dropout: float) -> None:
        super().__init__()
        self.encoder = Encoder(channels, features=features, dropout=dropout)
        self.decoder = Decoder(outputs, features=features, dropout=dropout)
        self.skips = nn.Buffer(torch.tensor(True))
        self.apply(initialise)

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        *levels, deepest = self.encoder(x_BCZYX)
        # Chosen by the tensor, not by an `if`, so that data-parallel training finds every weight in the graph.
        return self.decoder(deepest, skips=[torch.where(self.skips, level, 0) for level in levels])


class Encoder(nn.Module):
    """Four levels of dilated convolutions, each added to what goes into it, with strided convolutions between them."""

    def __init__(self, channels: int, *, features: int, dropout: float) -> None:
        super().__init__()
        widths = [features * 2**level for level in range(len(ENCODER))]
        self.stages = nn.ModuleList(
            convolutions(i, o, dilations=d) for i, o, d in zip((channels, *widths[1:]), widths, ENCODER, strict=True)
        )
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv3d(width, 2 * width, 2, stride=2), nn.PReLU(2 * width)) for width in widths[:-1]
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        # The mean: one channel is added to all features, as in the code, and several need a rule.
        levels = [self.stages[0](x_BCZYX) + x_BCZYX.mean(dim=1, keepdim=True)]
        for down, stage in zip(self.downs, self.stages[1:], strict=True):
            x_BCZYX = down(levels[-1])
            levels.append(self.dropout(stage(x_BCZYX) + x_BCZYX))
        return levels


class Decoder(nn.Module):
    """A bottleneck of twice the deepest level's features, then three levels up, each of which is added to what was enlarged."""

    def __init__(self, outputs: int, *, features: int, dropout: float) -> None:
        super().__init__()
        widths = [features * 2**level for level in (4, 3, 2, 1)]
        deepest = widths[0] // 2
        self.bottleneck = convolutions(deepest, widths[0], dilations=(1, 1, 1))
        self.around = convolutions(deepest, widths[0], dilations=(1,))
        self.ups = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose3d(2 * width, width, 2, stride=2), nn.PReLU(width)) for width in widths[1:]
        )
        self.stages = nn.ModuleList(
            convolutions(width + width // 2, width, dilations=d) for width, d in zip(widths[1:], DECODER, strict=True)
        )
        self.heads = nn.ModuleList(nn.Conv3d(width, outputs, 1) for width in widths)
        self.dropout = nn.Dropout(dropout)

    def forward(self, deepest: Tensor, *, skips: Sequence[Tensor]) -> list[Tensor]:
        levels = [self.dropout(self.bottleneck(deepest) + self.around(deepest))]
        for level, (up, stage) in enumerate(zip(self.ups, self.stages, strict=True), start=1):
            enlarged = up(levels[-1])
            added = stage(torch.cat((enlarged, skips[-level]), dim=1)) + enlarged
            levels.append(added if level == len(self.stages) else self.dropout(added))
        seen = zip(self.heads, levels, strict=True) if self.training else [(self.heads[-1], levels[-1])]
        return [head(level) for head, level in seen][::-1]


def convolutions(inputs: int, outputs: int, *, dilations: Sequence[int]) -> nn.Sequential:
    """3 x 3 x 3 convolutions, each followed by a ReLU with a learned slope, without norm."""
    layers: list[nn.Module] = []
    for number, dilation in enumerate(dilations):
        convolution = nn.Conv3d(outputs if number else inputs, outputs, 3, padding=dilation, dilation=dilation)
        layers += [convolution, nn.PReLU(outputs)]
    return nn.Sequential(*layers)


def initialise(module: nn.Module) -> None:
    """He initialisation for the slope that PReLU starts with, zero biases."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=0.25)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
