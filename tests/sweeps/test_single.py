"""`segsweep train`: a finished run is registered and never trained again; one that cannot fit is refused first."""

import dataclasses
import json
from pathlib import Path

import pytest

from segsweep import recipes
from segsweep.data.lock import held
from segsweep.errors import InputError, ResourceError
from segsweep.learning import checkpoint
from segsweep.learning.checkpoint import Snapshot
from segsweep.models.catalogue import models
from segsweep.models.tracking import connect
from segsweep.run import Run
from segsweep.sweeps.preparing import prepare
from segsweep.sweeps.run_folder import RESULT
from segsweep.sweeps.single import train
from segsweep.workspace import Workspace

PARAMS = {"epochs": 2, "patch_size": [16, 32, 32], "batch_size": 2, "features": 4, "levels": 3}


def silent(*words: object) -> None:
    raise AssertionError(f"something was started: {words}")


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(root=tmp_path)


def finish(run: Run, *, folder: Path) -> None:
    """What a training leaves behind, without the training."""
    prepared = prepare(run)
    model = recipes.load("trainables", name=run.trainable).build(prepared.params, prepared.task)
    document = {"run": run.to_json(), "task": prepared.task.to_json(), "params": recipes.params_json(prepared.params)}
    snapshot = Snapshot(weights=model.state_dict(), metrics={"dice": 0.25}, epoch=1)
    digest = checkpoint.save(folder / "model", snapshot=snapshot, run=document)
    result = {"status": "finished", "epoch": 2, "epochs": 2, "dice": 0.25, "digest": digest}
    (folder / RESULT).write_text(json.dumps(result))


@pytest.mark.usefixtures("cluster")
def test_finished_run_is_registered_once_and_not_trained_again(phantom_store: Path, workspace: Workspace) -> None:
    run = Run(trainable="unet", store=str(phantom_store), params=PARAMS)
    store = prepare(run).store
    stored = dataclasses.replace(run, store=store.uri)
    folder = workspace.runs / f"unet-phantom-{stored.digest}-{store.digest[:6]}"
    finish(stored, folder=folder)
    first, second = (train(run, workspace=workspace, report=silent) for _ in range(2))
    assert first.folder == folder
    assert first.result["dice"] == 0.25
    assert first.registered == second.registered
    (version,) = models(workspace)
    assert version.uri == "models:/phantom-unet/1"
    assert version.tags["segsweep.dice"] == "0.2500"
    logged = connect(workspace).get_model_version("phantom-unet", "1")
    assert logged.run_id is not None
    busy = pytest.raises(ResourceError, match=f"run '{folder.name}' runs in another process, which may have outlived")
    with held(folder, otherwise=None), busy:
        train(run, workspace=workspace, report=silent)
    (folder / RESULT).write_text('{"status": "fini')
    with pytest.raises(
        InputError, match=r"result\.json: cannot be used \(.*\); delete it: the run goes on from its last"
    ):
        train(run, workspace=workspace, report=silent)
    assert connect(workspace).get_run(logged.run_id).info.status == "FINISHED"


@pytest.mark.usefixtures("cluster")
def test_run_that_mlflow_lost_is_logged_once(phantom_store: Path, workspace: Workspace) -> None:
    run = Run(trainable="unet", store=str(phantom_store), params=PARAMS)
    store = prepare(run).store
    stored = dataclasses.replace(run, store=store.uri)
    finish(stored, folder=workspace.runs / f"unet-phantom-{stored.digest}-{store.digest[:6]}")
    for _ in range(3):
        train(run, workspace=workspace, report=silent)
    client = connect(workspace)
    (experiment,) = [found for found in client.search_experiments() if found.name == "phantom"]
    assert len(client.search_runs([experiment.experiment_id])) == 1


@pytest.mark.usefixtures("cluster")
def test_run_that_cannot_fit_is_refused_before_anything_is_made(phantom_store: Path, workspace: Workspace) -> None:
    huge = {**PARAMS, "patch_size": [512, 1024, 1024], "features": 64}
    with pytest.raises(ResourceError, match=r"patch_size=\(512, 1024, 1024\) .*choose a smaller patch"):
        train(Run(trainable="unet", store=str(phantom_store), params=huge), workspace=workspace, report=silent)
    assert not workspace.runs.exists()
