"""A training of seconds that the tests of the methods share: any recipe, by the loop alone, on bright cubes in noise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning.method import load_method
from segsweep.learning.patches import TrainingCase
from segsweep.learning.setting import Setting
from segsweep.learning.task import Task

EDGE = 10


@dataclass(frozen=True)
class CubeGrid:
    """Noise with a cube of EDGE voxels that is 100 above it, alike in all channels."""

    image: NDArray
    label: NDArray
    foreground: Mapping[int, NDArray] = field(default_factory=dict)

    @property
    def shape(self) -> tuple[int, int, int]:
        z, y, x = self.label.shape
        return z, y, x

    def read_image(self, region: tuple[slice, slice, slice]) -> NDArray:
        return self.image[(slice(None), *region)]

    def read_label(self, region: tuple[slice, slice, slice]) -> NDArray:
        return self.label[region]


def cube_case(seed: int, *, shape: tuple[int, int, int], channels: int = 1, empty: bool = False) -> TrainingCase:
    """A case whose cube lies by chance; with `empty` its label map has no cube."""
    generator = np.random.default_rng(seed)
    label = np.zeros(shape, np.uint8)
    if not empty:
        z, y, x = (int(generator.integers(1, size - EDGE)) for size in shape)
        label[z : z + EDGE, y : y + EDGE, x : x + EDGE] = 1
    image = (generator.normal(0, 20, (channels, *shape)) + 100 * label).astype(np.int16)
    where = {} if empty else {1: np.argwhere(label)}
    return TrainingCase(case_id=str(seed), grid=CubeGrid(image=image, label=label, foreground=where), annotated=(True,))


def method_setting(
    name: str, *, patch_size: tuple[int, int, int] = (16, 16, 16), channels: int = 1, **values: Any
) -> Setting:
    """What the loop needs to train a recipe, by all of the recipe's own parts: two cases, and one to validate."""
    method = load_method(name)
    params = method.params(
        {"epochs": 4, "iterations": 4, "batch_size": 2, "validation_iterations": 2, "patch_size": patch_size, **values}
    )
    store_task = Task(
        channels=tuple(f"CT {number}" for number in range(channels)),
        table=LabelTable(labels=LabelSet(structures=("bright",)), atoms=((), (0,))),
        head=params.head or "softmax",
        patch_size=patch_size,
        spacing=(1.0, 1.0, 1.0),
        normalisation=(Normalisation(scheme="ct", low=-100, high=200, mean=20, deviation=50),) * channels,
    )
    task = method.task(params, task=store_task)
    z, y, x = (size + 4 for size in patch_size)
    cases = [
        method.trained_part(cube_case(seed, shape=(z, y, x), channels=channels), params=params, task=task)
        for seed in range(3)
    ]
    torch.manual_seed(0)
    return Setting(
        model=method.build(params, task=task), task=task, params=params, stages=method.stages(params),
        loss=method.loss(params, task=task), training=tuple(cases[:2]), validation=tuple(cases[2:]), seed=7,
    )  # fmt: skip


@pytest.fixture
def make_setting() -> Callable[..., Setting]:
    """`method_setting`."""
    return method_setting


@pytest.fixture
def make_case() -> Callable[..., TrainingCase]:
    """`cube_case`."""
    return cube_case
