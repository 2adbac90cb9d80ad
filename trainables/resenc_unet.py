"""nnU-Net's U-Net with a residual encoder and deep supervision (Isensee et al., MICCAI 2024, "nnU-Net Revisited").

Parameter names and shapes equal nnU-Net v2's ResidualEncoderUNet, so its weights fit. Presets M, L and XL take the patch and batch that
nnU-Net plans for GPUs of 8, 24 and 40 GB; `blocks=1,2,3,4` is the encoder of MultiTalent (Ulrich et al., MICCAI 2023). `preset=small` is a
network for a machine without a GPU: its stem halves the resolution. Written from the descriptions; Apache-2.0.
"""
# pyright: reportMissingImports=false

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from segsweep.data.geometry import Size
from segsweep.data.topology import RESIDUAL_BLOCKS
from segsweep.learning.task import Task
from segsweep.trainables.unet import PRESETS as PLAIN
from segsweep.trainables.unet import Block, ConvNormAct, Decoder, Levels, plan_levels, shape_of, skips_of
from segsweep.trainables.unet import Params as PlainParams


@dataclass(frozen=True, kw_only=True)
class Params(PlainParams):
    """`blocks` are the residual blocks of each level of the encoder; deeper levels have as many as the last one named.

    `convolutions` counts those of a level of the decoder.
    """

    convolutions: int = 1
    blocks: tuple[int, ...] = RESIDUAL_BLOCKS

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"blocks={self.blocks} cannot be used: expected at least 1 block a level")


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "M": {"planner": "resenc_m"},
    "L": {"planner": "resenc_l"},
    "XL": {"planner": "resenc_xl"},
    "small": {**PLAIN["small"], "blocks": (1, 1, 2, 2)},
}


def build(params: Params, task: Task) -> nn.Module:
    """The network for a task; its depth and kernels are those of the plain U-Net for the same patch and spacing.

    Raises RecipeError when that leaves one level.
    """
    levels = plan_levels(params, task=task)
    count = len(levels.strides)
    shape = shape_of(params, levels=levels)
    blocks = (*params.blocks, *[params.blocks[-1]] * count)[:count]
    return Levels(
        ResidualEncoder(len(task.channels), **shape, blocks=blocks),
        decoder=Decoder(task.outputs, **shape, convolutions=params.convolutions),
        stem_stride=levels.strides[0],
        backwards=params.backwards,
    )


class Around(nn.Sequential):
    """The way around a residual block: a mean over the stride, a 1x1x1 convolution with norm where the channels change, or nothing."""

    def __init__(self, inputs: int, outputs: int, *, stride: Size) -> None:
        mean = [nn.AvgPool3d(stride, stride)] if max(stride) > 1 else []
        widen = [Projection(inputs, outputs)] if inputs != outputs else []
        super().__init__(*mean, *widen)


class Projection(nn.Module):
    """A 1x1x1 convolution without bias, and a norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, 1, bias=False)
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        return self.norm(self.conv(x_BCZYX))


class Residual(nn.Module):
    """Two convolutions added to the block's own input. The last norm starts at zero: every new block passes on what it gets."""

    def __init__(self, inputs: int, outputs: int, *, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(inputs, outputs, kernel=kernel, stride=stride)
        self.conv2 = ConvNormAct(outputs, outputs, kernel=kernel, stride=(1, 1, 1))
        self.conv2.nonlin = nn.Identity()
        self.skip = Around(inputs, outputs, stride=stride)
        self.nonlin2 = nn.LeakyReLU(0.01, inplace=True)
        nn.init.zeros_(self.conv2.norm.weight)
        nn.init.zeros_(self.conv2.norm.bias)

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        return self.nonlin2(self.conv2(self.conv1(x_BCZYX)) + self.skip(x_BCZYX))


class Stage(nn.Module):
    """The residual blocks of one level; the first one may be strided."""

    def __init__(self, inputs: int, outputs: int, *, kernel: Size, stride: Size, blocks: int) -> None:
        super().__init__()
        first = Residual(inputs, outputs, kernel=kernel, stride=stride)
        others = [Residual(outputs, outputs, kernel=kernel, stride=(1, 1, 1)) for _ in range(blocks - 1)]
        self.blocks = nn.Sequential(first, *others)

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        return self.blocks(x_BCZYX)


class ResidualEncoder(nn.Module):
    """A stem of one convolution, then residual blocks level by level. The first stride is taken by the stem."""

    def __init__(
        self,
        channels: int,
        *,
        features: Sequence[int],
        strides: Sequence[Size],
        kernels: Sequence[Size],
        blocks: Sequence[int],
    ) -> None:
        super().__init__()
        self.stem = Block(channels, features[0], kernel=kernels[0], stride=strides[0], convolutions=1)
        inputs, inside = [features[0], *features[:-1]], [(1, 1, 1), *strides[1:]]
        self.stages = nn.ModuleList(
            Stage(i, o, kernel=k, stride=s, blocks=n)
            for i, o, k, s, n in zip(inputs, features, kernels, inside, blocks, strict=True)
        )

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        return skips_of(self.stages, x_BCZYX=self.stem(x_BCZYX))
