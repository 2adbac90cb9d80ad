"""nnU-Net's plain 3D U-Net with deep supervision (Isensee et al., Nature Methods 2021).

Parameter names and shapes equal nnU-Net v2's PlainConvUNet, so its weights fit. `preset=small` is a network for a machine without a
GPU: its first level works at half resolution, which costs an eighth of the arithmetic. Written from the description; Apache-2.0.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from segsweep.data.geometry import Size
from segsweep.data.topology import Topology, features, topology
from segsweep.errors import RecipeError
from segsweep.learning.params import TrainingParams
from segsweep.learning.task import Task

AXES = "zyx"


@dataclass(frozen=True, kw_only=True)
class Params(TrainingParams):
    """`features` at the first level double at each level up to `most_features`; the first level works at 1/`stem_stride` resolution.

    `strides` and `kernels` (one z, y, x triple a level, full resolution first) replace those that follow from patch and spacing.
    `backwards` names axes, out of "zyx", along which the network sees images from their other end, as an imported one may have to.
    `planner` (plain, resenc_m, resenc_l, resenc_xl) replaces the store's patch and batch by those for such a network.
    """

    features: int = 32
    most_features: int = 320
    convolutions: int = 2
    stem_stride: int = 1
    levels: int = 7
    strides: tuple[Size, ...] = ()
    kernels: tuple[Size, ...] = ()
    backwards: Literal["", "z", "y", "x", "zy", "zx", "yx", "zyx"] = ""
    planner: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("features", "most_features", "convolutions", "stem_stride", "levels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} cannot be used: expected at least 1")
        if len(self.strides) != len(self.kernels) or len(self.strides) == 1:
            raise ValueError(
                f"strides and kernels of {len(self.strides)} and {len(self.kernels)} levels cannot be used: "
                "expected as many of both, for at least 2 levels"
            )
        if any(size < 1 for triple in (*self.strides, *self.kernels) for size in triple):
            raise ValueError("strides and kernels cannot be used: expected at least 1 along every axis")
        # With an even kernel feature maps outgrow the patch, unseen by any check of shapes.
        if any(size % 2 == 0 for kernel in self.kernels for size in kernel):
            raise ValueError(f"kernels={self.kernels} cannot be used: expected odd sizes along every axis")


# How the small presets of several recipes are trained.
QUICK: Mapping[str, Any] = {
    "epochs": 40,
    "iterations": 50,
    "validation_iterations": 8,
    "optimizer": "adamw",
    "learning_rate": 2e-3,
    "oversampling": "probabilistic",
    "foreground": 0.67,
}
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "small": {
        "features": 16,
        "most_features": 128,
        "stem_stride": 2,
        "levels": 5,
        "patch_size": [96, 96, 96],
        "batch_size": 2,
        **QUICK,
        "augmentation": "light",
    },
}


def build(params: Params, task: Task) -> nn.Module:
    """The network for a task; its depth and kernels follow from the patch size and the spacing (nnU-Net v2, experiment planner).

    Raises RecipeError when that leaves one level: a U-Net has at least two.
    """
    levels = plan_levels(params, task=task)
    shape = {**shape_of(params, levels=levels), "convolutions": params.convolutions}
    return Levels(
        Encoder(len(task.channels), **shape),
        decoder=Decoder(task.outputs, **shape),
        stem_stride=levels.strides[0],
        backwards=params.backwards,
    )


def plan_levels(params: Params, *, task: Task) -> Topology:
    """Strides and kernels of the levels, the first stride being the stem's. Raises RecipeError when there is but one level."""
    stem = params.stem_stride
    if params.strides:
        return Topology(strides=params.strides, kernels=params.kernels)
    z, y, x = (size // stem for size in task.patch_size)
    mm_z, mm_y, mm_x = (mm * stem for mm in task.spacing)
    shape = topology((z, y, x), spacing=(mm_z, mm_y, mm_x), deepest=params.levels)
    if len(shape.strides) < 2:
        raise RecipeError(
            f"patch_size={task.patch_size} with stem_stride={stem} and levels={params.levels} makes a network of one level; "
            f"expected at least 2: choose levels=2 or more and a patch of at least {12 * stem} voxels along an axis"
        )
    return Topology(strides=((stem, stem, stem), *shape.strides[1:]), kernels=shape.kernels)


def features_of(params: Params, *, levels: Topology) -> tuple[int, ...]:
    """Channels of each level."""
    return features(levels, base=params.features, largest=params.most_features)


def shape_of(params: Params, *, levels: Topology) -> dict[str, Any]:
    """What encoder and decoder share: channels, strides and kernels of each level."""
    return {
        "features": features_of(params, levels=levels),
        "strides": levels.strides,
        "kernels": levels.kernels,
    }


class ConvNormAct(nn.Module):
    """Convolution, instance norm, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, *, kernel: Size, stride: Size) -> None:
        super().__init__()
        z, y, x = (k // 2 for k in kernel)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride=stride, padding=(z, y, x))
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        self.nonlin = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        return self.nonlin(self.norm(self.conv(x_BCZYX)))


class Block(nn.Module):
    """Several convolutions; the first one may be strided."""

    def __init__(self, inputs: int, outputs: int, *, kernel: Size, stride: Size, convolutions: int) -> None:
        super().__init__()
        first = ConvNormAct(inputs, outputs, kernel=kernel, stride=stride)
        others = [ConvNormAct(outputs, outputs, kernel=kernel, stride=(1, 1, 1)) for _ in range(convolutions - 1)]
        self.convs = nn.Sequential(first, *others)

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        return self.convs(x_BCZYX)


class Encoder(nn.Module):
    """One block a level, each level at its stride."""

    def __init__(
        self,
        channels: int,
        *,
        features: Sequence[int],
        strides: Sequence[Size],
        kernels: Sequence[Size],
        convolutions: int,
    ):
        super().__init__()
        inputs = [channels, *features[:-1]]
        self.stages = nn.ModuleList(
            nn.Sequential(Block(i, o, kernel=k, stride=s, convolutions=convolutions))
            for i, o, k, s in zip(inputs, features, kernels, strides, strict=True)
        )

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        return skips_of(self.stages, x_BCZYX=x_BCZYX)


def skips_of(stages: Iterable[nn.Module], *, x_BCZYX: Tensor) -> list[Tensor]:
    """What each stage makes of what the one before it made."""
    skips = []
    for stage in stages:
        x_BCZYX = stage(x_BCZYX)
        skips.append(x_BCZYX)
    return skips


class Decoder(nn.Module):
    """Transposed convolution, concatenation with the skip, block and a segmentation head at every resolution, deepest first."""

    def __init__(
        self,
        outputs: int,
        *,
        features: Sequence[int],
        strides: Sequence[Size],
        kernels: Sequence[Size],
        convolutions: int,
    ):
        super().__init__()
        ups, blocks, heads = [], [], []
        for level in range(len(features) - 1, 0, -1):
            below, above = features[level], features[level - 1]
            ups.append(nn.ConvTranspose3d(below, above, strides[level], stride=strides[level]))
            blocks.append(
                Block(2 * above, above, kernel=kernels[level - 1], stride=(1, 1, 1), convolutions=convolutions)
            )
            heads.append(nn.Conv3d(above, outputs, 1))
        self.transpconvs, self.stages, self.seg_layers = nn.ModuleList(ups), nn.ModuleList(blocks), nn.ModuleList(heads)

    def forward(self, skips: list[Tensor]) -> list[Tensor]:
        x_BCZYX = skips[-1]
        logits = []
        for level, (up, block, head) in enumerate(zip(self.transpconvs, self.stages, self.seg_layers, strict=True)):
            x_BCZYX = block(torch.cat((up(x_BCZYX), skips[-(level + 2)]), dim=1))
            if self.training or level == len(self.stages) - 1:
                logits.append(head(x_BCZYX))
        return logits[::-1]


class Levels(nn.Module):
    """Encoder and decoder as one network: logits (B, outputs, z, y, x), full resolution first; in training also those of every
    lower level of the decoder. Behind a strided stem, the first ones are brought back to the image's resolution."""

    def __init__(self, encoder: nn.Module, *, decoder: nn.Module, stem_stride: Size, backwards: str = "") -> None:
        super().__init__()
        self.backwards = tuple(2 + AXES.index(axis) for axis in backwards)
        self.stem_stride = stem_stride
        self.encoder, self.decoder = encoder, decoder
        self.apply(initialise)

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        logits = self.decoder(self.encoder(x_BCZYX.flip(self.backwards) if self.backwards else x_BCZYX))
        logits = [level.flip(self.backwards) for level in logits] if self.backwards else logits
        if max(self.stem_stride) == 1:
            return logits
        size = x_BCZYX.shape[2:]
        return [interpolate(logits[0], size=size, mode="trilinear", align_corners=False), *logits[1:]]


def initialise(module: nn.Module) -> None:
    """He initialisation for the leaky ReLU, zero biases."""
    if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
        nn.init.kaiming_normal_(module.weight, a=1e-2)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
