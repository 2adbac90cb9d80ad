"""UniSeg: one network for many datasets, told by a learned prompt which one it segments (Ye et al., MICCAI 2023), and its fine-tuning.

`preset=upstream` trains it on stores that are joined; `initial=` that model then fine-tunes the encoder and decoder on one store, without
prompt, as the authors did for SegRap2023: on all cases, once for 1500 epochs and once for 2000, and both in one ensemble.
SegRap's settings are printed, the rest is as in the released code. Written from the descriptions; Apache-2.0.

Joined stores may differ in their scans, as the paper's eleven datasets do (CT, MR, four MR sequences, CT and PET): each is normalised by
its own rules and enters by the stem's convolution for as many channels. All are trained at one spacing.
"""
# pyright: reportMissingImports=false

import dataclasses
from collections.abc import Mapping, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from segsweep.data.geometry import Size, Spacing
from segsweep.data.topology import Topology, features
from segsweep.errors import RecipeError
from segsweep.learning.params import TrainingParams
from segsweep.learning.sampling import Sampling
from segsweep.learning.task import Head, Normalisation, Task
from segsweep.trainables.unet import QUICK, Block, ConvNormAct, Decoder, Levels, initialise
from segsweep.trainables.unet import Encoder as PlainEncoder

# Strides and kernels (z, y, x) of the six levels, whatever the spacing.
STRIDES: tuple[Size, ...] = ((1, 1, 1), (1, 2, 2), *((2, 2, 2),) * 4)
KERNELS: tuple[Size, ...] = ((1, 3, 3), *((3, 3, 3),) * 5)
CONVOLUTIONS = 2
# Numbers of input channels that the stem has a convolution for.
STEMS = (1, 2, 4)
ANY_CHANNELS = True
# Most upstream datasets are resampled to this (mm, z, y, x); CT is clipped in HU and scaled to [0, 1].
UPSTREAM_SPACING: Spacing = (3.0, 1.5, 1.5)
UPSTREAM_CT = Normalisation(scheme="ct", low=-325.0, high=325.0, mean=-325.0, deviation=650.0)
# Logit of what another dataset knows: no probability is left of it, and half precision holds it.
IMPOSSIBLE = -1e4
FIRST_UP = "decoder.transpconvs.0.weight"
UPSTREAM_ONLY = ("prompt", "fuse.", "decoder.seg_layers.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Params(TrainingParams):
    """`part` "upstream" trains encoder, decoder and prompt on joined stores, one of them a batch; "downstream" fine-tunes on one store.

    `epochs` 2000 is the longer of the two trainings for SegRap. `features` at the first level double at each level up to
    `most_features`. Upstream only: `spacing` (mm z, y, x) instead of the paper's 3, 1.5, 1.5, and `window` false to normalise CT as the
    store's plan says instead of clipping it to [-325, 325] HU.
    """

    part: Literal["downstream", "upstream"] = "downstream"
    epochs: int = 2000
    patch_size: Size | None = (32, 192, 192)
    batch_size: int | None = 2
    head: Head | None = "softmax"
    sampling: Sampling = "quota"
    features: int = 32
    most_features: int = 320
    spacing: Spacing | None = None
    window: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("features", "most_features"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} cannot be used: expected at least 1")
        if self.spacing is not None and min(self.spacing) <= 0:
            raise ValueError(f"spacing={self.spacing} cannot be used: expected lengths in mm above 0 (z, y, x)")


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "upstream": {
        "part": "upstream",
        "patch_size": [64, 192, 192],
        "epochs": 1000,
        "iterations": 550,
    },
    "small": {
        "features": 8,
        "most_features": 64,
        "patch_size": [32, 96, 96],
        **QUICK,
        "augmentation": "light",
    },
}


def build(params: Params, task: Task) -> nn.Module:
    """The network for a task: with prompt upstream, without it downstream.

    Raises RecipeError for another number of channels than 1, 2 and 4.
    """
    for width in set(task.widths) - set(STEMS):
        raise RecipeError(
            f"the store has {width} channels; uniseg has first convolutions for 1, 2 and 4 alone: choose another trainable"
        )
    levels = Topology(strides=fitting_strides(task.patch_size), kernels=KERNELS)
    widths = features(levels, base=params.features, largest=params.most_features)
    if params.part == "upstream":
        return PromptedUNet(task, features=widths, levels=levels)
    encoder = Encoder(features=widths, levels=levels)
    decoder = make_decoder(task.outputs, features=widths, levels=levels)
    return Levels(encoder, decoder=decoder, stem_stride=STRIDES[0])


def task(params: Params, task: Task) -> Task:
    """Upstream at the paper's spacing and CT window; other channels keep their rule (z-score over the scan). Downstream as it is."""
    if params.part == "downstream":
        return task
    task = dataclasses.replace(task, spacing=params.spacing or UPSTREAM_SPACING)
    return task.renormalised(lambda rule: UPSTREAM_CT if params.window and rule.scheme == "ct" else rule)


def adapt(weights: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """Upstream weights for a network without prompt: without the prompt's channel, the last one, of the first transposed convolution,
    and without the heads, which meant other datasets."""
    if "prompt" not in weights or "prompt" in model.state_dict():
        return weights
    kept = {name: value for name, value in weights.items() if not name.startswith(UPSTREAM_ONLY)}
    return {**kept, FIRST_UP: kept[FIRST_UP][:-1]}


def fitting_strides(patch_size: Size) -> tuple[Size, ...]:
    """The paper's strides, without halving an axis that is odd or has fewer than 4 voxels left; 1/16 of z and 1/32 of y and x where
    the patch allows it."""
    left, fitting = list(patch_size), []
    for wanted in STRIDES:
        z, y, x = (step if n % 2 == 0 and n >= 4 else 1 for step, n in zip(wanted, left, strict=True))
        left = [n // step for n, step in zip(left, (z, y, x), strict=True)]
        fitting.append((z, y, x))
    return tuple(fitting)


class Stem(nn.Module):
    """A first convolution for each number of input channels; they share norm and activation."""

    def __init__(self, outputs: int, *, kernel: Size) -> None:
        super().__init__()
        z, y, x = (size // 2 for size in kernel)
        self.convs = nn.ModuleDict(
            {str(channels): nn.Conv3d(channels, outputs, kernel, padding=(z, y, x)) for channels in STEMS}
        )
        self.norm = nn.InstanceNorm3d(outputs, eps=1e-5, affine=True)
        self.nonlin = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x_BCZYX: Tensor) -> Tensor:
        chosen = str(x_BCZYX.shape[1])
        if chosen not in self.convs:
            raise RecipeError(
                f"an image of {chosen} channels reached uniseg; expected 1, 2 or 4: choose another trainable"
            )
        # In the graph with zero gradient: DDP waits for parameters that take no part.
        idle = sum(weight.flatten()[0] * 0 for name, conv in self.convs.items() for weight in conv.parameters())
        return self.nonlin(self.norm(self.convs[chosen](x_BCZYX) + idle))


class Encoder(PlainEncoder):
    """nnU-Net's plain encoder behind the stem."""

    def __init__(self, *, features: Sequence[int], levels: Topology) -> None:
        super().__init__(
            STEMS[0], features=features, strides=levels.strides, kernels=levels.kernels, convolutions=CONVOLUTIONS
        )
        first = Block(
            STEMS[0], features[0], kernel=levels.kernels[0], stride=levels.strides[0], convolutions=CONVOLUTIONS
        )
        first.convs[0] = Stem(features[0], kernel=levels.kernels[0])
        self.stages[0] = nn.Sequential(first)


def make_decoder(outputs: int, *, features: Sequence[int], levels: Topology, prompts: int = 0) -> Decoder:
    """nnU-Net v1's decoder: each level convolves with the kernel of the level below, and neither transposed convolutions nor heads have
    a bias. The first transposed convolution takes `prompts` channels more."""
    decoder = Decoder(
        outputs,
        features=features,
        strides=levels.strides,
        kernels=levels.kernels[1:],
        convolutions=CONVOLUTIONS,
    )
    stride = levels.strides[-1]
    decoder.transpconvs[0] = nn.ConvTranspose3d(features[-1] + prompts, features[-2], stride, stride=stride)
    for layer in (*decoder.transpconvs, *decoder.seg_layers):
        layer.register_parameter("bias", None)
    return decoder


class PromptedUNet(Levels):
    """Prompt, FUSE and one decoder for all sources of a joint task; each source uses the first channels of the heads.

    Logits are in the joint task's outputs. Given the `source` of every sample, those are the source's own, and IMPOSSIBLE for what other
    sources know. Without it every source is decoded, and each gives its own outputs; with a softmax head as log-odds against its
    background, so that background is 0 for all and the most certain source decides.
    """

    takes_source = True

    def __init__(self, task: Task, *, features: Sequence[int], levels: Topology) -> None:
        channels, own = _layout(task)
        decoder = make_decoder(int(channels.max()) + 1, features=features, levels=levels, prompts=1)
        super().__init__(Encoder(features=features, levels=levels), decoder=decoder, stem_stride=STRIDES[0])
        self.against_background = task.head == "softmax"
        sources, size = len(task.sources), list(task.patch_size)
        for stride in levels.strides:
            size = [n // step for n, step in zip(size, stride, strict=True)]
        widths = (features[-1] + sources, *[max(1, (features[-1] + sources) // 4)] * 2, sources)
        self.prompt = nn.Parameter(torch.randn(1, sources, *size))
        self.fuse = nn.Sequential(
            *(ConvNormAct(inputs, outputs, kernel=(3, 3, 3), stride=(1, 1, 1)) for inputs, outputs in pairwise(widths))
        )
        self.fuse.apply(initialise)
        self.channels: Tensor
        self.own: Tensor
        self.register_buffer("channels", channels, persistent=False)
        self.register_buffer("own", own, persistent=False)

    def forward(self, x_BCZYX: Tensor, source: Tensor | None = None) -> list[Tensor]:
        skips = self.encoder(x_BCZYX)
        bottom = skips[-1]
        prompts = self.fuse(torch.cat((bottom, self.prompt.expand(len(bottom), -1, -1, -1, -1)), dim=1))
        if source is not None:
            return self._decode(skips, prompts=prompts, source=source)
        every = (
            self._decode(skips, prompts=prompts, source=torch.full((len(bottom),), number, device=bottom.device))
            for number in range(prompts.shape[1])
        )
        return reduce(_most_certain, map(self._odds, every))

    def _decode(self, skips: list[Tensor], *, prompts: Tensor, source: Tensor) -> list[Tensor]:
        """Every sample with its own source's prompt."""
        samples = torch.arange(len(source), device=source.device)
        prompt = prompts[samples, source].unsqueeze(1)
        levels = self.decoder([*skips[:-1], torch.cat((skips[-1], prompt), dim=1)])
        channels, foreign = self.channels[source], ~self.own[source][:, :, None, None, None]
        return [level[samples[:, None], channels].masked_fill(foreign, IMPOSSIBLE) for level in levels]

    def _odds(self, levels: list[Tensor]) -> list[Tensor]:
        return [level - level[:, :1] for level in levels] if self.against_background else levels


def _most_certain(levels: list[Tensor], others: list[Tensor]) -> list[Tensor]:
    return [torch.maximum(level, other) for level, other in zip(levels, others, strict=True)]


def _layout(task: Task) -> tuple[Tensor, Tensor]:
    """(sources, outputs): the head's channel that each output of the task is for a source (0 where it knows none), and whether it knows
    the output. Background, the first output of a softmax head, is every source's channel 0."""
    owner = [task.sources.index(name.rpartition("/")[0]) for name in task.table.labels.structures]
    if task.head == "softmax":
        sets = [{owner[structure] for structure in atom} for atom in task.table.atoms[1:]]
        knows = [set(range(len(task.sources))), *sets]
    else:
        knows = [{source} for source in owner]
    own = torch.tensor([[source in known for known in knows] for source in range(len(task.sources))])
    return (own.long().cumsum(1) - 1) * own, own
