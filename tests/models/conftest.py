"""One workspace with a real SQLite MLflow for all tests of the room (making it takes seconds), tiny checkpoints."""

import shutil
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import segsweep.trainables
from segsweep import recipes
from segsweep.data.manifest import seal, unseal
from segsweep.data.store import Store, open_store
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.learning import checkpoint
from segsweep.learning.task import Head, Normalisation, Task
from segsweep.models import registry
from segsweep.models.catalogue import Registered
from segsweep.models.tracking import DATA_TAG, Tracker
from segsweep.run import Fold, Run
from segsweep.workspace import Workspace

MakeCheckpoint = Callable[..., Path]
Enter = Callable[..., Registered]

# Of the store `organs`: the folds of its ten training cases; two cases more are its validation split.
FOLDS = [["c00", "c01", "c02", "c03", "c04", "c05", "c06", "c07"], ["c08", "c09"]]
VALIDATION = ["c10", "c11"]

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


@pytest.fixture
def reindex() -> Callable[..., Path]:
    """Rewrites a store's index with other values: `reindex(folder, digest="…", splits={case: split})`."""

    def change(folder: Path, *, splits: Mapping[str, str] | None = None, **values: object) -> Path:
        index = dict(unseal((folder / "index.json").read_bytes(), name="index").body)
        for case in index["cases"]:
            case["split"] = (splits or {}).get(case["case_id"], case["split"])
        (folder / "index.json").write_bytes(seal({**index, **values}))
        return folder

    return change


@pytest.fixture
def organs(
    tiny_store: Callable[..., Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    reindex: Callable[..., Path],
) -> Store:
    """Ten training cases in two folds and two validation cases, with the organ in the lower half; built once, copied for each test."""
    template = tmp_path_factory.getbasetemp() / "organs"
    if not template.exists():
        label = np.zeros((4, 8, 8))
        label[:2] = 1
        cases = {f"c{number:02d}": label for number in range(12)}
        shutil.copytree(tiny_store("built", labels=LabelSet(structures=("organ",)), cases=cases), template)
    folder = Path(shutil.copytree(template, tmp_path / "organs"))
    reindex(folder, folds=FOLDS, splits=dict.fromkeys(VALIDATION, "validation"), digest=f"digest of {folder}")
    return open_store(folder)


@pytest.fixture
def enter(tracker: Tracker, recipe: str, organs: Store, tmp_path: Path) -> Enter:
    """Registers a model that paints the organ above an intensity: `enter("name", threshold, fold=0, data=…, tags=…)`."""

    def register(
        name: str,
        threshold: float,
        *,
        fold: int | str = 0,
        initial: str = "",
        structures: tuple[str, ...] = ("organ",),
        data: str | None = None,
        run_id: str | None = None,
    ) -> Registered:
        task = Task(
            channels=("CT",),
            table=LabelTable(labels=LabelSet(structures=structures), atoms=((), (0,))),
            head="softmax",
            patch_size=(8, 8, 8),
            spacing=(2.0, 1.0, 1.0),
            normalisation=(Normalisation(scheme="ct", low=-200.0, high=200.0),),
        )
        weights = {"conv.weight": torch.zeros(2, 1, 1, 1, 1), "conv.bias": torch.tensor([0.0, -threshold])}
        weights["conv.weight"][1] = 1.0
        run = Run(trainable=recipe, store=organs.uri, fold=fold)  # type: ignore[arg-type]
        document = {
            "run": run.to_json(),
            "task": task.to_json(),
            "params": {"patch_size": [8, 8, 8], "initial": initial},
        }
        folder = tmp_path / f"{name}-{threshold}-{fold}"
        checkpoint.save(folder, snapshot=checkpoint.Snapshot(weights=weights, metrics={}, epoch=0), run=document)
        tags = {DATA_TAG: organs.digest if data is None else data}
        run_id = run_id or tracker.start(name)
        return registry.register(folder, name=name, tracker=tracker, run_id=run_id, tags=tags)

    return register
