"""Intensity augmentation of a patch (channels, z, y, x), float32, in place: nnU-Net v2's list (its data augmentation)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Generator = np.random.Generator

# A patch at least this many times longer than it is deep has slices too thick to mix (nnU-Net's "dummy 2D").
FLAT = 3


@dataclass(frozen=True, kw_only=True)
class Step:
    """One transform and how often it is applied. `change` alters the patch in place."""

    name: str
    probability: float
    change: Callable[[Tensor, Generator], None]


def is_flat(patch_size: tuple[int, ...] | torch.Size) -> bool:
    """Whether a patch (z, y, x) is turned, scaled and coarsened in its slices only."""
    return max(patch_size) / patch_size[0] > FLAT


def alter(image: Tensor, *, level: Literal["nnunet", "light", "none"], generator: Generator) -> None:
    """Apply the level's steps in their order, each by its own chance."""
    for step in STEPS[level]:
        if generator.random() < step.probability:
            step.change(image, generator)


def contrast_factor(low: float, high: float, *, generator: Generator) -> float:
    """nnU-Net's "BGContrast": below 1 in half of the draws, above 1 in the others, uniform on either side."""
    if low < 1 and generator.random() < 0.5:
        return generator.uniform(low, 1)
    return generator.uniform(max(low, 1), high)


def noise(image: Tensor, generator: Generator) -> None:
    """Add Gaussian noise; its deviation, in normalised intensities, is U(0, 0.1)."""
    deviation = generator.uniform(0, 0.1)
    values = generator.standard_normal(tuple(image.shape), dtype=np.float32)
    image.add_(torch.from_numpy(values).to(image.device), alpha=deviation)


def blur(image: Tensor, generator: Generator) -> None:
    """Gaussian blur, sigma U(0.5, 1) voxels, of each channel by a chance of one half."""
    for channel in image:
        if generator.random() < 0.5:
            _smooth(channel, sigma=generator.uniform(0.5, 1))


def brightness(image: Tensor, generator: Generator) -> None:
    """Multiply each channel by its own factor around 1."""
    for channel in image:
        channel.mul_(contrast_factor(0.75, 1.25, generator=generator))


def contrast(image: Tensor, generator: Generator) -> None:
    """Stretch each channel about its mean, within its own range."""
    for channel in image:
        low, high, mean = channel.min(), channel.max(), channel.mean()
        factor = contrast_factor(0.75, 1.25, generator=generator)
        channel.sub_(mean).mul_(factor).add_(mean).clamp_(low, high)


def low_resolution(image: Tensor, generator: Generator) -> None:
    """Shrink by U(0.5, 1) to nearest voxels and enlarge linearly, each channel by a chance of one half."""
    for channel in image:
        if generator.random() < 0.5:
            zoom = generator.uniform(0.5, 1)
            flat = is_flat(channel.shape)
            coarse = [n if flat and axis == 0 else max(1, round(n * zoom)) for axis, n in enumerate(channel.shape)]
            small = F.interpolate(channel[None, None], size=coarse, mode="nearest-exact")
            channel.copy_(F.interpolate(small, size=channel.shape, mode="trilinear")[0, 0])


def gamma(image: Tensor, generator: Generator) -> None:
    """Raise each channel, scaled to [0, 1], to a power around 1; mean and deviation stay."""
    for channel in image:
        _bend(channel, power=contrast_factor(0.7, 1.5, generator=generator))


def inverted_gamma(image: Tensor, generator: Generator) -> None:
    """Gamma on the negative image."""
    image.neg_()
    gamma(image, generator)
    image.neg_()


def _bend(channel: Tensor, *, power: float) -> None:
    deviation, mean = torch.std_mean(channel, correction=0)
    low, high = channel.min(), channel.max()
    channel.sub_(low).div_((high - low).clamp(min=1e-7)).pow_(power)
    now, centre = torch.std_mean(channel, correction=0)
    channel.sub_(centre).mul_(deviation / now.clamp(min=1e-7)).add_(mean)


def _smooth(channel: Tensor, *, sigma: float) -> None:
    # Sums of shifted copies: several times faster on a CPU than a convolution with one channel.
    reach = int(4 * sigma + 0.5)
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    shares = (weights / weights.sum()).tolist()
    for axis, length in enumerate(channel.shape):
        ends = channel.narrow(axis, 0, 1), channel.narrow(axis, length - 1, 1)
        repeated = [end.repeat_interleave(reach, axis) for end in ends]
        padded = torch.cat((repeated[0], channel, repeated[1]), axis)
        channel.zero_()
        for offset, share in enumerate(shares):
            channel.add_(padded.narrow(axis, offset, length), alpha=share)


STEPS: dict[str, tuple[Step, ...]] = {
    "nnunet": (
        Step(name="noise", probability=0.1, change=noise),
        Step(name="blur", probability=0.2, change=blur),
        Step(name="brightness", probability=0.15, change=brightness),
        Step(name="contrast", probability=0.15, change=contrast),
        Step(name="low resolution", probability=0.25, change=low_resolution),
        Step(name="inverted gamma", probability=0.1, change=inverted_gamma),
        Step(name="gamma", probability=0.3, change=gamma),
    ),
    "light": (
        Step(name="brightness", probability=0.15, change=brightness),
        Step(name="contrast", probability=0.15, change=contrast),
        Step(name="gamma", probability=0.3, change=gamma),
    ),
    "none": (),
}
