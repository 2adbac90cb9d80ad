"""The model that a training starts from: what an address means, that it names the run, and that resuming does not transfer again."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import optuna
import pytest
import torch

from segsweep.data import storage
from segsweep.errors import ModelError
from segsweep.learning import checkpoint
from segsweep.learning.checkpoint import Snapshot
from segsweep.learning.transfer import PINNED, unpinned
from segsweep.models.registry import register
from segsweep.models.tracking import Tracker
from segsweep.run import Run
from segsweep.sweeps import tuning
from segsweep.sweeps.cluster import Resources
from segsweep.sweeps.initial import demand_fitting, pin
from segsweep.sweeps.preparing import prepare
from segsweep.sweeps.run_folder import TRANSFER
from segsweep.sweeps.single import train
from segsweep.sweeps.training import fit
from segsweep.workspace import Workspace

STEM = "encoder.stages.0.0.convs.0.conv.weight"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Workspace(root=tmp_path / "workspace")


@pytest.fixture
def run(phantom_store: Path, tiny: dict[str, Any]) -> Run:
    # Without learning, the weights after training are those it started from.
    params = {**tiny, "epochs": 2, "iterations": 1, "learning_rate": 0.0, "weight_decay": 0.0}
    return Run(trainable="unet", store=str(phantom_store), params=params)


@pytest.fixture
def initial(run: Run, tmp_path: Path) -> Path:
    """The folder of a finished run, all of whose weights are 0.5."""
    prepared = prepare(run)
    weights = prepared.method.build(prepared.params, task=prepared.task).state_dict()
    halves = {name: torch.full_like(value, 0.5) for name, value in weights.items()}
    document = {"run": run.to_json(), "task": prepared.task.to_json(), "params": {}}
    snapshot = Snapshot(weights=halves, metrics={}, epoch=0)
    checkpoint.save(tmp_path / "earlier" / "model", snapshot=snapshot, run=document)
    return tmp_path / "earlier"


def test_every_address_of_a_model_means_its_folder_and_digest(initial: Path, workspace: Workspace) -> None:
    workspace.root.mkdir()
    tracker = Tracker(workspace, experiment="e")
    registered = register(initial / "model", name="m", tracker=tracker, run_id=tracker.start("r"))
    digest = checkpoint.verify(initial / "model")
    for address in (initial, initial / "model", registered.uri, "models:/m"):
        found = pin({"initial": str(address), "epochs": 3}, workspace=workspace)
        assert found["initial"].endswith(f"@{digest}") and found["epochs"] == 3
        assert pin(found, workspace=workspace) == found
    assert pin({"epochs": 3}, workspace=workspace) == {"epochs": 3}


def test_in_a_bucket_every_node_gets_the_model_from_there(
    initial: Path, workspace: Workspace, object_storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSWEEP_CACHE", str(tmp_path / "cache"))
    place = dataclasses.replace(workspace, uri=f"{object_storage.uri}/lab")
    digest = checkpoint.verify(initial / "model")
    pinned = pin({"initial": str(initial)}, workspace=place)["initial"]
    assert pinned == f"{place.uri}/initial/{digest}@{digest}"
    object_storage.requests.clear()
    assert pin({"initial": str(initial)}, workspace=place)["initial"] == pinned
    assert not [request for request in object_storage.requests if request.startswith("PUT")], "it is there already"
    shutil.rmtree(initial)
    assert checkpoint.verify(unpinned(pinned)) == digest
    object_storage.requests.clear()
    assert unpinned(pinned).is_relative_to(tmp_path / "cache") and object_storage.requests[1:] == []
    shutil.rmtree(tmp_path / "cache")
    storage.write_bytes(f"{place.uri}/initial/{digest}/{checkpoint.WEIGHTS}", b"other")
    with pytest.raises(ModelError, match="is damaged"):
        unpinned(pinned)
    with pytest.raises(ModelError, match="no checkpoint found; expected the one that the run began with"):
        unpinned(f"{place.uri}/initial/absent@{digest}")


def test_what_is_no_trained_model_is_refused(initial: Path, run: Run, workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no manifest\.json found"):
        pin({"initial": str(tmp_path / "absent")}, workspace=workspace)
    ensemble = tmp_path / "ensemble"
    ensemble.mkdir()
    (ensemble / "ensemble.json").write_text("{}")
    checkpoint.write_manifest(ensemble)
    with pytest.raises(ModelError, match="holds an ensemble; expected a single trained model"):
        pin({"initial": str(ensemble)}, workspace=workspace)
    wider = {**pin({"initial": str(initial)}, workspace=workspace), "features": 5, "most_features": 7}
    with pytest.raises(ModelError, match="none of the"):
        demand_fitting(prepare(dataclasses.replace(run, params={**run.params, **wider})))


def test_a_space_may_choose_where_its_trials_start(initial: Path, run: Run, workspace: Workspace) -> None:
    space = SimpleNamespace(
        space=lambda trial, _plan: {"initial": trial.suggest_categorical("initial", ["", str(initial)])}
    )

    def suggested(address: str, **params: Any) -> dict[str, Any]:
        base = dataclasses.replace(run, params={**run.params, **params})
        return tuning._suggest(
            optuna.trial.FixedTrial({"initial": address}), recipe=cast(ModuleType, space), base=base, fixed={},
            store=prepare(run).store, memory=1 << 40, workspace=workspace,
        )  # fmt: skip

    assert suggested("")["initial"] == ""
    assert PINNED.fullmatch(suggested(str(initial))["initial"])
    with pytest.raises(ModelError, match="none of the"):
        suggested(str(initial), features=5, most_features=7)


@pytest.mark.usefixtures("cluster")
def test_training_starts_from_the_model_and_says_so_once(initial: Path, run: Run, workspace: Workspace) -> None:
    said: list[str] = []

    def listen(_trial: str, _done: int, _total: int, words: str) -> None:
        said.append(words)

    workspace.root.mkdir()
    started = dataclasses.replace(run, params={**run.params, "initial": str(initial)})
    pinned = pin(started.params, workspace=workspace)
    trained = train(started, workspace=workspace, report=listen)
    weights = checkpoint.load(trained.folder / "model").weights
    assert all(bool((value == 0.5).all()) for value in weights.values())
    assert json.loads((trained.folder / TRANSFER).read_text())["new"] == []
    assert len([words for words in said if words.startswith("starting from") and "loaded" in words]) == 1
    plain = prepare(run).store
    assert dataclasses.replace(run, store=plain.uri).digest not in trained.folder.name, "another start, another run"
    weights = {name: torch.full_like(value, 0.25) for name, value in weights.items()}
    document = json.loads((initial / "model" / checkpoint.RUN).read_text())
    checkpoint.save(initial / "model", snapshot=Snapshot(weights=weights, metrics={}, epoch=0), run=document)
    assert pin(started.params, workspace=workspace) != pinned, "other weights under the same address are another run"


@pytest.mark.usefixtures("in_process")
def test_resuming_does_not_transfer_again(initial: Path, run: Run, workspace: Workspace, tmp_path: Path) -> None:
    pinned = dataclasses.replace(run, params=pin({**run.params, "initial": str(initial)}, workspace=workspace))
    folder, document = tmp_path / "run", json.loads((initial / "model" / checkpoint.RUN).read_text())
    first = checkpoint.epoch_folder(folder / "checkpoints", epoch=0)
    checkpoint.save(first, snapshot=_after_one_epoch(pinned), run=document)
    fit(pinned, folder=folder, resources=Resources(cpus=1))
    weights = checkpoint.load(folder / "model").weights
    assert all(bool((value == 0.75).all()) for value in weights.values())
    assert not (folder / TRANSFER).exists()


def _after_one_epoch(run: Run) -> Snapshot:
    prepared = prepare(run)
    model = prepared.method.build(prepared.params, task=prepared.task)
    weights = {name: torch.full_like(value, 0.75) for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.99, nesterov=True)
    return Snapshot(weights=weights, metrics={}, epoch=0, optimizer=optimizer.state_dict())
