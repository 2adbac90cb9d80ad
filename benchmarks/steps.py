"""What training_step.py and gpu_training.py measure: epochs of the training loop beside bare steps on one batch, in turn."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from segsweep import recipes
from segsweep.data.geometry import Size
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning.batches import Batch, draw
from segsweep.learning.loop import Setting, train
from segsweep.learning.method import load_method
from segsweep.learning.params import TrainingParams
from segsweep.learning.patches import Region, TrainingCase
from segsweep.learning.precision import computing, make_scaler
from segsweep.learning.sampling import Turn
from segsweep.learning.step import Learner, make_learner, make_optimizer
from segsweep.learning.task import Task

RULE = Normalisation(scheme="ct", low=-900.0, high=1400.0, mean=60.0, deviation=140.0)
NUM_CASES = 3


@dataclass(frozen=True)
class Volume:
    """A scan in main memory: noise, with an ellipsoid for each structure; stored as CT is, in 2 and 1 bytes a voxel."""

    seed: int
    shape: Size
    structures: int

    @cached_property
    def image(self) -> NDArray[np.int16]:
        noise = np.random.default_rng(self.seed).normal(0.0, 40.0, self.shape)
        return (noise + 60.0 * self.label).astype(np.int16)[None]

    @cached_property
    def label(self) -> NDArray[np.uint8]:
        generator, label = np.random.default_rng((self.seed, 1)), np.zeros(self.shape, np.uint8)
        axes = np.ogrid[tuple(slice(-1.0, 1.0, size * 1j) for size in self.shape)]
        for value in range(1, self.structures + 1):
            centre, radius = generator.uniform(-0.6, 0.6, 3), generator.uniform(0.15, 0.3, 3)
            distance = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radius, strict=True))
            label[distance < 1.0] = value
        return label

    @property
    def foreground(self) -> Mapping[int, NDArray]:
        return self._places

    @cached_property
    def _places(self) -> dict[int, NDArray]:
        return {int(value): np.argwhere(self.label == value) for value in np.unique(self.label) if value}

    def read_image(self, region: Region) -> NDArray:
        return self.image[(slice(None), *region)]

    def read_label(self, region: Region) -> NDArray:
        return self.label[region]


def make_setting(
    params: TrainingParams, *, structures: int, spacing: tuple[float, float, float], device: str
) -> Setting:
    """nnU-Net's plain network for the parameters' patch, to be trained on scans a half larger than it."""
    assert params.patch_size
    task = Task(
        channels=("CT",),
        table=LabelTable(
            labels=LabelSet(structures=tuple(f"structure {number}" for number in range(structures))),
            atoms=((), *((number,) for number in range(structures))),
        ),
        head="softmax",
        patch_size=params.patch_size,
        spacing=spacing,
        normalisation=(RULE,),
    )
    z, y, x = (size + size // 2 for size in params.patch_size)
    volumes = [Volume(seed=seed, shape=(z, y, x), structures=structures) for seed in range(NUM_CASES)]
    cases = [TrainingCase(case_id=str(volume.seed), grid=volume, annotated=(True,) * structures) for volume in volumes]
    method = load_method("unet")
    torch.manual_seed(0)
    return Setting(
        model=method.build(params, task=task).to(device), task=task, params=params, stages=method.stages(params),
        loss=method.loss(params, task=task), training=cases, validation=(), device=torch.device(device),
    )  # fmt: skip


def network_params(**values: object) -> TrainingParams:
    """Parameters of the plain network, with as many epochs as anyone could want."""
    recipe = recipes.load("trainables", name="unet")
    return recipes.build_params(recipe, values={"epochs": 1 << 16, "validation_iterations": 0, **values})


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """An iteration in each round, by the clock and by processor time of this process."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)


class Measured:
    """The loop's own epochs, and bare steps of the same network on one batch; both are warm already."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.loop, self.bare = setting, Seconds(), Seconds()
        self._epochs = train(setting)
        self._batch, self._learner = one_batch(setting), bare_learner(setting)
        self._bare()
        next(self._epochs)

    def round(self) -> None:
        """An epoch of the loop, and as many bare steps."""
        self._timed(lambda: next(self._epochs), into=self.loop)
        self._timed(self._bare, into=self.bare)

    def _timed(self, act: Callable[[], object], *, into: Seconds) -> None:
        clock, processor = time.perf_counter(), time.process_time()
        act()
        if self.setting.device.type == "cuda":
            torch.cuda.synchronize(self.setting.device)
        number = self.setting.params.iterations
        into.clock.append((time.perf_counter() - clock) / number)
        into.processor.append((time.process_time() - processor) / number)

    def _bare(self) -> None:
        for _ in range(self.setting.params.iterations):
            bare_step(self._learner, batch=self._batch, setting=self.setting)


def one_batch(setting: Setting) -> Batch:
    """A batch of the training, where the network is."""
    drawn = draw(setting.training, task=setting.task, params=setting.params, turn=Turn())
    return dataclasses.replace(drawn, **{name: value.to(setting.device) for name, value in vars(drawn).items()})


def bare_learner(setting: Setting) -> Learner:
    """The model and an optimizer of its own."""
    optimizer = make_optimizer(
        setting.params.optimizer, parameters=list(setting.model.parameters()), learning_rate=0.0,
        weight_decay=setting.params.weight_decay,
    )  # fmt: skip
    scaler = make_scaler(setting.params.precision, device=setting.device)
    return make_learner(setting, optimizer=optimizer, scaler=scaler, average=None)


def bare_step(learner: Learner, *, batch: Batch, setting: Setting) -> None:
    """Forward, loss, backward and the optimizer's step, and nothing else."""
    learner.optimizer.zero_grad(set_to_none=True)
    with computing(setting.params.precision, device=setting.device):
        loss = setting.loss(learner.forward(batch.image), batch.atoms, batch.annotated)
    learner.scaler.scale(loss).backward()
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
