"""One workspace with a real SQLite MLflow for all tests of the room (making it takes seconds), tiny checkpoints."""

import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import segsweep.trainables
from segsweep import recipes
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning import checkpoint
from segsweep.learning.task import Head, Normalisation, Task
from segsweep.models import registry
from segsweep.models.tracking import Tracker
from segsweep.run import Fold, Run
from segsweep.workspace import Workspace

MakeCheckpoint = Callable[..., Path]

# One convolution of size 1: label 1 where the intensity lies above the bias.
RECIPE = '''
    """A threshold as a network, for tests."""
    from dataclasses import dataclass

    from torch import nn

    from segsweep.learning.params import TrainingParams


    @dataclass(frozen=True, kw_only=True)
    class Params(TrainingParams):
        """Nothing of its own."""


    class Threshold(nn.Module):
        """One convolution of size 1."""

        def __init__(self, channels, outputs):
            super().__init__()
            self.conv = nn.Conv3d(channels, outputs, 1)

        def forward(self, x_BCZYX):
            return [self.conv(x_BCZYX)]


    def build(params, task):
        """The network."""
        return Threshold(len(task.channels), task.outputs)
'''


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    """An empty workspace that the environment names, as for a user."""
    root = tmp_path_factory.mktemp("workspace")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("SEGSWEEP_WORKSPACE", str(root))
        yield Workspace(root=root)


@pytest.fixture(scope="session")
def tracker(workspace: Workspace) -> Tracker:
    """A tracker on the workspace's own database."""
    return Tracker(workspace, experiment="phantom")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Name of a tiny recipe in a project of its own, gone again after the module."""
    project = tmp_path_factory.mktemp("project")
    (project / "trainables").mkdir()
    (project / "trainables" / "threshold_net.py").write_text(textwrap.dedent(RECIPE))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSWEEP_PROJECT", str(project))
        patch.setattr(segsweep.trainables, "__path__", recipes.search_path("trainables", packaged=[]))
        yield "threshold_net"


@pytest.fixture
def make_checkpoint(tmp_path: Path, recipe: str) -> MakeCheckpoint:
    """Writes a checkpoint that paints structure "organ" above an intensity."""

    def make(
        name: str,
        *,
        threshold: float = 0.0,
        structures: tuple[str, ...] = ("organ",),
        channels=("CT",),
        head: Head = "softmax",
        fold: Fold = 0,
    ) -> Path:
        labels = LabelSet(structures=structures)
        atoms = ((), *((index,) for index in range(len(structures))))
        task = Task(
            channels=tuple(channels),
            table=LabelTable(labels=labels, atoms=atoms),
            head=head,
            patch_size=(8, 8, 8),
            spacing=(2.0, 1.0, 1.0),
            normalisation=tuple(Normalisation(scheme="ct", low=-10.0, high=10.0) for _ in channels),
        )
        organ = task.outputs - len(structures)
        weight = torch.zeros(task.outputs, len(channels), 1, 1, 1)
        weight[organ, 0] = 1.0
        bias = torch.full((task.outputs,), -100.0)
        bias[0], bias[organ] = 0.0, -threshold
        snapshot = checkpoint.Snapshot(
            weights={"conv.weight": weight, "conv.bias": bias}, metrics={"val/dice": 0.875, "loss": 0.5}, epoch=3
        )
        run = Run(trainable=recipe, store="phantom.zarr", fold=fold)
        document = {"run": run.to_json(), "task": task.to_json(), "params": {"patch_size": [8, 8, 8]}}
        checkpoint.save(tmp_path / name, snapshot=snapshot, run=document)
        return tmp_path / name

    return make


@pytest.fixture
def put(tracker: Tracker, make_checkpoint: MakeCheckpoint) -> Callable[..., str]:
    """Registers a tiny checkpoint and returns its address."""
    run_id = tracker.start("tiny")

    def register(name: str, **values: Any) -> str:
        return registry.register(make_checkpoint(name, **values), name=name, tracker=tracker, run_id=run_id).uri

    return register
