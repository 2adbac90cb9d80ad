"""Intensity augmentation of a patch (channels, z, y, x), float32, in place: nnU-Net v2's list (its data augmentation)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Generator = np.random.Generator
Level = Literal["nnunet", "light", "flare22", "flips", "none"]

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


def alter(image: Tensor, *, level: Level, generator: Generator) -> None:
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
    # Torch draws a third faster than numpy here, and on the image's own device.
    own = torch.Generator(image.device).manual_seed(int(generator.integers(2**63)))
    image.add_(torch.randn(image.shape, generator=own, device=image.device), alpha=deviation)


def blur(image: Tensor, generator: Generator) -> None:
    """Gaussian blur of each channel by a chance of one half; its sigma is U(0.5, 1) voxels, drawn for each axis."""
    for channel in image:
        if generator.random() < 0.5:
            for axis in range(3):
                _smooth(channel, axis=axis, sigma=generator.uniform(0.5, 1))


def brightness(image: Tensor, generator: Generator) -> None:
    """Multiply each channel by its own factor around 1."""
    for channel in image:
        channel.mul_(contrast_factor(0.75, 1.25, generator=generator))


def contrast(image: Tensor, generator: Generator) -> None:
    """Stretch each channel about its mean, within its own range."""
    for channel in image:
        factor = contrast_factor(0.75, 1.25, generator=generator)
        low, high = channel.aminmax()
        shift = channel.mean() * (1 - factor)
        channel.mul_(factor).add_(shift).clamp_(low, high)


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
    low, high = channel.aminmax()
    # Two reductions: on a CPU, torch's `std_mean` takes 8 times as long.
    mean, deviation = channel.mean(), channel.std(correction=0)
    channel.sub_(low).div_((high - low).clamp(min=1e-7)).pow_(power)
    centre, factor = channel.mean(), deviation / channel.std(correction=0).clamp(min=1e-7)
    channel.mul_(factor).add_(mean - centre * factor)


def kernel(sigma: float) -> tuple[float, ...]:
    """Weights of the Gaussian on the odd number of voxels next to 6 sigma + 0.5, as nnU-Net cuts it off."""
    reach = round((6 * sigma - 0.5) / 2)
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    return tuple((weights / weights.sum()).tolist())


def _smooth(channel: Tensor, *, axis: int, sigma: float) -> None:
    """Blur along one axis; beyond its ends the patch is mirrored about its outermost voxels."""
    # Sums of shifted copies: several times faster on a CPU than a convolution with one channel.
    shares, length = kernel(sigma), channel.shape[axis]
    reach = len(shares) // 2
    ends = channel.narrow(axis, 1, reach), channel.narrow(axis, length - 1 - reach, reach)
    padded = torch.cat((ends[0].flip(axis), channel, ends[1].flip(axis)), axis)
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
    # What FLARE22's paper names, at nnU-Net's chances.
    "flare22": (
        Step(name="blur", probability=0.2, change=blur),
        Step(name="contrast", probability=0.15, change=contrast),
        Step(name="gamma", probability=0.3, change=gamma),
    ),
    "flips": (),
    "none": (),
}
