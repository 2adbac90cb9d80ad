import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning import checkpoint
from segsweep.learning.loop import Setting, train
from segsweep.learning.losses import build_loss
from segsweep.learning.method import default_stages
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import TrainingCase
from segsweep.learning.stages import Stage
from segsweep.learning.task import Normalisation, Task

LABELS = LabelTable(labels=LabelSet(structures=("bright",)), atoms=((), (0,)))


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
    """Two convolutions, one head."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(4, 4, 3, padding=1), nn.LeakyReLU()
        )
        self.head = nn.Conv3d(4, outputs, 1)

    def forward(self, x_BCZYX: Tensor) -> list[Tensor]:
        return [self.head(self.body(x_BCZYX))]


def setting(*, epochs: int = 3, stages: tuple[Stage, ...] | None = None, optimizer: str = "sgd") -> Setting:
    params = TrainingParams(
        epochs=epochs, iterations=3, batch_size=2, patch_size=(16, 16, 16), learning_rate=0.05, validation_iterations=2,
        optimizer=optimizer,  # type: ignore[arg-type]
        augmentation="light",
    )  # fmt: skip
    rule = Normalisation(scheme="ct", low=-100, high=200, mean=20, deviation=50)
    task = Task(
        channels=("CT",),
        table=LABELS,
        head="softmax",
        patch_size=(16, 16, 16),
        spacing=(1.0, 1.0, 1.0),
        normalisation=(rule,),
    )
    grids = [BallGrid(seed) for seed in range(3)]
    cases = []
    for grid in grids:
        where = np.argwhere(grid.arrays()[1])
        cases.append(
            TrainingCase(
                case_id=str(grid.seed), grid=dataclasses.replace(grid, foreground={1: where}), annotated=(True,)
            )
        )
    torch.manual_seed(0)
    return Setting(
        model=Small(task.outputs), task=task, params=params, stages=stages or default_stages(params),
        loss=build_loss(params.loss, task=task, batch_dice=params.batch_dice),
        training=cases[:2], validation=cases[2:], seed=7,
    )  # fmt: skip


def test_it_learns() -> None:
    epochs = list(train(setting(epochs=12)))
    assert epochs[-1].metrics["loss"] < epochs[0].metrics["loss"]
    assert epochs[-1].metrics["patch_dice"] > 0.6


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_resuming_after_any_epoch_changes_nothing(tmp_path: Path, after: int, optimizer: str) -> None:
    whole = setting(epochs=4, optimizer=optimizer)
    expected = [epoch.metrics for epoch in train(whole)]
    first = setting(epochs=4, optimizer=optimizer)
    for epoch in train(first):
        if epoch.number == after:
            checkpoint.save(tmp_path / "c", snapshot=epoch.snapshot(), run={})
            break
    second = setting(epochs=4, optimizer=optimizer)
    metrics = [epoch.metrics for epoch in train(second, resume=checkpoint.load(tmp_path / "c"))]
    assert metrics == expected[after + 1 :]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NCCL needs a GPU")
def test_metrics_of_several_gpus_are_pooled() -> None:
    device = torch.device("cuda")
    plain = setting()
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    try:
        epochs = list(train(dataclasses.replace(plain, model=plain.model.to(device), device=device)))
    finally:
        dist.destroy_process_group()
    assert all(0.0 <= epoch.metrics["patch_dice"] <= 1.0 for epoch in epochs)


def test_a_stage_trains_only_what_it_names() -> None:
    stages = (
        Stage(name="head", epochs=1, learning_rate=0.05, schedule="rise", parameters=("head.",)),
        Stage(name="all", epochs=1, learning_rate=0.05),
    )
    staged = setting(stages=stages)
    before = {name: value.clone() for name, value in staged.model.state_dict().items()}
    epochs = train(staged)
    assert next(epochs).total == 2
    after_head = {name: value.clone() for name, value in staged.model.state_dict().items()}
    assert torch.equal(after_head["body.0.weight"], before["body.0.weight"])
    assert not torch.equal(after_head["head.weight"], before["head.weight"])
    next(epochs)
    assert not torch.equal(staged.model.state_dict()["body.0.weight"], before["body.0.weight"])


def test_resuming_in_a_later_stage(tmp_path: Path) -> None:
    stages = (
        Stage(name="head", epochs=2, learning_rate=0.05, schedule="rise", parameters=("head.",)),
        Stage(name="all", epochs=2, learning_rate=0.05),
    )
    whole = setting(stages=stages)
    list(train(whole))
    for after in (1, 2):
        for epoch in train(setting(stages=stages)):
            if epoch.number == after:
                checkpoint.save(tmp_path / "c", snapshot=epoch.snapshot(), run={})
                break
        second = setting(stages=stages)
        list(train(second, resume=checkpoint.load(tmp_path / "c")))
        for name, value in whole.model.state_dict().items():
            assert torch.equal(second.model.state_dict()[name], value), (after, name)


@pytest.mark.parametrize(
    ("epochs", "epoch", "rate"),
    [
        (1000, 0, 0.01), (1000, 1, 0.009991), (1000, 100, 0.00909533), (1000, 500, 0.00535887), (1000, 900, 0.00125893),
        (1000, 999, 1.995e-5), (2000, 1999, 1.069e-5),
    ],
)  # fmt: skip
def test_poly_rates_are_the_printed_ones(epochs: int, epoch: int, rate: float) -> None:
    assert Stage(name="train", epochs=epochs, learning_rate=0.01).rate(epoch) == pytest.approx(rate, rel=1e-3)


def test_warm_up_rises_to_its_rate() -> None:
    stage = Stage(name="warm", epochs=10, learning_rate=1e-3, schedule="rise")
    assert stage.rate(0) == pytest.approx(1e-4)
    assert stage.rate(9) == pytest.approx(1e-3)
