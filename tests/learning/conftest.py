"""A training of seconds that many tests of the learning room share: bright cubes in noise, and a network of two stages."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning.losses import build_loss
from segsweep.learning.method import default_stages
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import TrainingCase
from segsweep.learning.setting import Setting
from segsweep.learning.stages import Stage
from segsweep.learning.task import Normalisation, Task

LABELS = LabelTable(labels=LabelSet(structures=("bright",)), atoms=((), (0,)))
CPU = torch.device("cpu")
RULE = Normalisation(scheme="ct", low=-100, high=200, mean=20, deviation=50)


@dataclass(frozen=True)
class BallGrid:
    """A bright cube in noise, in memory."""

    seed: int
    shape: tuple[int, int, int] = (20, 20, 20)
    foreground: dict[int, NDArray] = field(default_factory=dict)

    def arrays(self) -> tuple[NDArray, NDArray]:
        generator = np.random.default_rng(self.seed)
        label = np.zeros(self.shape, np.uint8)
        z, y, x = generator.integers(2, 10, 3)
        label[z : z + 8, y : y + 8, x : x + 8] = 1
        image = (generator.normal(0, 20, self.shape) + 100 * label).astype(np.int16)[None]
        return image, label

    def read_image(self, region: tuple[slice, slice, slice]) -> NDArray:
        return self.arrays()[0][(slice(None), *region)]

    def read_label(self, region: tuple[slice, slice, slice]) -> NDArray:
        return self.arrays()[1][region]


class Small(nn.Module):
    """Two stages of one convolution each and one head; `deep` switches the second stage on."""

    def __init__(self, outputs: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv3d(inputs, 4, 3, padding=1), nn.LeakyReLU(), nn.Dropout3d(dropout))
            for inputs in (1, 4)
        )
        self.head = nn.Conv3d(4, outputs, 1)
        self.deep = nn.Buffer(torch.tensor(True))

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        x_BCZYX = self.stages[0](x_BCZYX)
        return [self.head(torch.where(self.deep, self.stages[1](x_BCZYX), x_BCZYX))]


def case(seed: int, *, annotated: bool = True) -> TrainingCase:
    grid = BallGrid(seed)
    where = {1: np.argwhere(grid.arrays()[1])} if annotated else {}
    return TrainingCase(case_id=str(seed), grid=dataclasses.replace(grid, foreground=where), annotated=(annotated,))


def make_setting(
    *,
    stages: tuple[Stage, ...] | None = None,
    unlabelled: int = 0,
    dropout: float = 0.0,
    device: torch.device = CPU,
    **params: Any,
) -> Setting:
    """Three epochs of three steps, unless `params` say otherwise; with so many unlabelled cases beside the two annotated ones."""
    values = {
        "epochs": 3, "iterations": 3, "batch_size": 2, "patch_size": (16, 16, 16), "learning_rate": 0.05,
        "validation_iterations": 2, "augmentation": "light", **params,
    }  # fmt: skip
    given = TrainingParams(**values)
    task = Task(
        channels=("CT",), table=LABELS, head="softmax", patch_size=(16, 16, 16), spacing=(1.0, 1.0, 1.0),
        normalisation=(RULE,),
    )  # fmt: skip
    torch.manual_seed(0)
    return Setting(
        model=Small(task.outputs, dropout=dropout).to(device), device=device, task=task, params=given,
        stages=stages or default_stages(given),
        loss=build_loss(given.loss, task=task, batch_dice=given.batch_dice),
        training=(case(0), case(1)), validation=(case(2),),
        unlabelled=tuple(case(3 + number, annotated=False) for number in range(unlabelled)), seed=7,
    )  # fmt: skip


@pytest.fixture
def ball_setting() -> Callable[..., Setting]:
    """`make_setting`."""
    return make_setting
