"""An imported network is a registered model like any other: it predicts, and importing it again changes nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segsweep import cli, recipes
from segsweep.data.geometry import Geometry
from segsweep.data.planning import Normalisation
from segsweep.data.structures import LabelSet, LabelTable
from segsweep.errors import ModelError
from segsweep.learning.task import Task
from segsweep.models.catalogue import models
from segsweep.models.ensemble import load_predictor
from segsweep.models.importing import import_nnunet
from segsweep.models.registry import fetch
from segsweep.workspace import Workspace

STRIDES, KERNELS = [[1, 1, 1], [2, 2, 2]], [[3, 3, 3], [3, 3, 3]]
TABLE = LabelTable(labels=LabelSet(structures=("liver",)), atoms=((), (0,)))


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SEGSWEEP_WORKSPACE", str(tmp_path))
    return Workspace(root=tmp_path)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A small fold of nnU-Net's results whose network says liver everywhere."""
    task = Task(
        channels=("CT",), table=TABLE, head="softmax", patch_size=(16, 16, 16), spacing=(1.0, 1.0, 1.0),
        normalisation=(Normalisation(scheme="z-score"),),
    )  # fmt: skip
    recipe = recipes.load("trainables", name="unet")
    values = {"features": 2, "most_features": 4, "strides": STRIDES, "kernels": KERNELS}
    model = recipe.build(recipes.build_params(recipe, values=values), task)
    weights = model.state_dict()
    weights["decoder.seg_layers.0.bias"] = torch.tensor([-100.0, 100.0])
    kwargs = {
        "n_stages": 2, "features_per_stage": [2, 4], "strides": STRIDES, "kernel_sizes": KERNELS,
        "n_conv_per_stage": [2, 2], "n_conv_per_stage_decoder": [2], "conv_bias": True,
    }  # fmt: skip
    configuration = {
        "patch_size": [16, 16, 16], "spacing": [1.0, 1.0, 1.0], "batch_size": 2,
        "normalization_schemes": ["ZScoreNormalization"], "use_mask_for_norm": [False],
        "architecture": {"network_class_name": "PlainConvUNet", "arch_kwargs": kwargs},
    }  # fmt: skip
    plan = {"dataset_name": "D1", "transpose_forward": [0, 1, 2], "configurations": {"3d_fullres": configuration}}
    dataset = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}}
    fold = tmp_path / "trainer" / "fold_0"
    fold.mkdir(parents=True)
    saved = {"network_weights": weights, "init_args": {"configuration": "3d_fullres", "fold": 0}, "current_epoch": 3}
    torch.save(saved, fold / "checkpoint_final.pth")
    (fold.parent / "plans.json").write_text(json.dumps(plan))
    (fold.parent / "dataset.json").write_text(json.dumps(dataset))
    return fold / "checkpoint_final.pth"


def test_an_imported_network_predicts_and_is_registered_once(
    results: Path, workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["import-nnunet", str(results), "--name", "liver"]) == 0
    assert "registered models:/liver/1" in capsys.readouterr().out
    assert import_nnunet(results, name="liver", workspace=workspace).uri == "models:/liver/1"
    assert [model.uri for model in models(workspace)] == ["models:/liver/1"]
    run = json.loads((fetch("models:/liver/1", workspace=workspace) / "run.json").read_text())["run"]
    assert (run["trainable"], run["store"]) == ("unet", "nnunet:D1")
    identity = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    grid = Geometry(shape=(8, 20, 20), spacing=(2.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=identity)
    scan = np.random.default_rng(0).normal(0, 100, (1, *grid.shape)).astype(np.float32)
    assert (load_predictor("models:/liver/1", workspace=workspace).segment(scan, geometry=grid) == 1).all()


def test_another_orientation_is_another_model(results: Path, workspace: Workspace) -> None:
    import_nnunet(results, name="liver", workspace=workspace)
    assert import_nnunet(results, name="liver", workspace=workspace, orientation="RAS").version == 2


def test_a_checkpoint_that_cannot_be_read_registers_nothing(results: Path, workspace: Workspace) -> None:
    results.write_bytes(results.read_bytes()[:100])
    with pytest.raises(ModelError, match="model name 'a/b' cannot be used"):
        import_nnunet(Path("nowhere.pth"), name="a/b", workspace=workspace)
    with pytest.raises(ModelError, match="damaged"):
        import_nnunet(results, name="liver", workspace=workspace)
    assert models(workspace) == []
