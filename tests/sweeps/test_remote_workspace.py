"""A workspace in a bucket: workers that share no disk, a run that goes on elsewhere, and a sweep that outlives its driver's machine."""

import dataclasses
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from segsweep.data import storage
from segsweep.data.store import open_store
from segsweep.evaluation.measure import Measure
from segsweep.learning import checkpoint
from segsweep.learning.checkpoint import Snapshot
from segsweep.models.ensemble import build
from segsweep.models.registry import fetch
from segsweep.models.scores import scan_scores
from segsweep.models.tracking import Tracker, connect
from segsweep.run import Run
from segsweep.sweeps.cluster import Resources
from segsweep.sweeps.initial import pin
from segsweep.sweeps.preparing import prepare
from segsweep.sweeps.run_folder import request_stop
from segsweep.sweeps.single import train
from segsweep.sweeps.training import fit
from segsweep.sweeps.tuning import tune
from segsweep.sweeps.tuning_options import SweepOptions
from segsweep.sweeps.tuning_study import CONFIG
from segsweep.workspace import Workspace

MODEL = ("manifest.json", "metrics.json", "run.json", "weights.safetensors")

pytestmark = [pytest.mark.usefixtures("cluster"), pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
def sent(object_storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Puts a store into the bucket in which the workspace will lie."""
    monkeypatch.setenv("SEGSWEEP_CACHE", str(tmp_path / "cache"))

    def send(store: Path) -> str:
        uri = f"{object_storage.uri}/store"
        shutil.copytree(store, tmp_path / "store", ignore=shutil.ignore_patterns(".lock"))
        storage.upload(tmp_path / "store", uri=uri, last="index.json")
        shutil.rmtree(tmp_path / "store")
        return uri

    return send


def files(uri: str) -> set[str]:
    return set(storage.objects(uri))


def read(address: str) -> Any:
    return json.loads(storage.read_bytes(address))


def test_workers_with_a_folder_each_train_one_run_and_others_go_on_with_it(
    phantom_store: Path, sent: Callable[[Path], str], object_storage: Any, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    """Each process has a copy of its own: what one knows of another came through the bucket."""
    store = sent(phantom_store)
    uri, here = f"{object_storage.uri}/lab/run", Path(tempfile.gettempdir(), f"segsweep-work-{os.getuid()}")
    run = Run(trainable="unet", store=store, workers=2, params={**tiny, "epochs": 2, "select": "best"})
    result = fit(run, folder=uri, resources=Resources(cpus=1))
    held_out = prepare(run).store.validation(run.fold)
    (last,) = {name.split("/")[1] for name in files(uri) if name.startswith("checkpoints/epoch")}
    (best,) = {name.split("/")[2] for name in files(uri) if name.startswith("checkpoints/best")}
    assert last == "epoch-00001"
    assert files(uri) == {
        *(f"checkpoints/{last}/optimizer.{kind}" for kind in ("json", "safetensors")),
        *(f"{part}/{name}" for part in (f"checkpoints/{last}", f"checkpoints/best/{best}", "model") for name in MODEL),
        *(f"record/{name}" for name in ("environment.json", "epochs.jsonl", "plan.json", "run.json")),
        *(f"record/overlays/{case_id}.png" for case_id in held_out[:3]),
        "result.json", "validation.json", ".attempt",
    }  # fmt: skip
    assert read(f"{uri}/result.json") == result and read(f"{uri}/validation.json").keys() == set(held_out)
    storage.download(f"{uri}/model", folder=tmp_path / "model")
    assert checkpoint.verify(tmp_path / "model") == result["digest"]
    assert not list(here.glob("*/run")), "the copies went with their processes"

    object_storage.requests.clear()
    assert fit(run, folder=uri, resources=Resources(cpus=1)) == result
    assert not [request for request in object_storage.requests if request.startswith(("PUT", "DELETE"))]

    storage.remove(f"{uri}/result.json")  # as if its workers had died before that was written
    request_stop(uri)
    longer = dataclasses.replace(run, params={**run.params, "epochs": 5})
    assert fit(longer, folder=uri, resources=Resources(cpus=1))["status"] == "stopped_early"
    lines = storage.read_bytes(f"{uri}/record/epochs.jsonl").decode().splitlines()
    assert [json.loads(line)["epoch"] for line in lines if line] == [1, 2, 3]
    assert {name.split("/")[1] for name in files(uri) if name.startswith("checkpoints/epoch")} == {"epoch-00002"}


def silent(*_words: object) -> None:
    """Says nothing."""


def interrupting(trial: str) -> Any:
    """A report that presses Ctrl-C when this trial begins."""

    def report(name: str, _done: int, _total: int, words: str) -> None:
        if name == trial and words.startswith("starting"):
            signal.raise_signal(signal.SIGINT)

    return report


def test_a_sweep_outlives_its_drivers_machine(
    okbp_store: Path, sent: Callable[[Path], str], object_storage: Any, tmp_path: Path, tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store = sent(okbp_store)
    for name in ("MLFLOW_TRACKING_URI", "SEGSWEEP_STUDIES"):
        monkeypatch.delenv(name, raising=False)
    shared, one, two = f"{object_storage.uri}/lab", tmp_path / "one", tmp_path / "two"
    uri = f"{shared}/sweeps/toy"

    def sweep(root: Path, report: Any) -> Any:
        place = Workspace(root=root, uri=shared)
        root.mkdir(exist_ok=True)
        options = SweepOptions(name="toy", trials=2, concurrent=1)
        return tune("default", store=store, workspace=place, options=options, params=tiny, report=report)

    assert sweep(one, interrupting("trial-0001")).interrupted
    before = read(f"{uri}/study.json")
    assert [trial["state"] for trial in before["trials"]] == ["COMPLETE", "RUNNING"]
    assert not storage.exists(f"{uri}/.driver.json")
    shutil.rmtree(one)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    object_storage.requests.clear()
    done = sweep(two, silent)
    assert not [request for request in object_storage.requests if request.startswith("PUT") and "trial-0000" in request]
    after = read(f"{uri}/study.json")
    assert [trial["state"] for trial in after["trials"]] == ["COMPLETE", "COMPLETE"]
    assert after["trials"][0] == before["trials"][0]
    assert [one["user_attrs"][CONFIG] for one in after["trials"]] == [
        one["user_attrs"][CONFIG] for one in before["trials"]
    ]
    assert {trial.name for trial in done.trials} == {"trial-0000", "trial-0001"} and len(done.registered) == 2
    assert storage.read_bytes(f"{uri}/sweep.html") == done.report.read_bytes()

    place, opened = Workspace(root=two, uri=shared), open_store(store)
    both = build(
        [version.uri for version in done.registered], name="both", tracker=Tracker(place, experiment=opened.dataset)
    )
    case = opened.validation(0)[0]
    scores = scan_scores(both, store=opened, case_ids=[case], workspace=place, measure=Measure())
    (kept,) = files(f"{shared}/scores")
    assert read(f"{shared}/scores/{kept}")["dice"] == scores


def test_a_run_starts_from_a_model_in_the_bucket_and_is_registered_from_there(
    okbp_store: Path, sent: Callable[[Path], str], object_storage: Any, tmp_path: Path, tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = Workspace(root=tmp_path / "root", uri=f"{object_storage.uri}/lab")
    place.root.mkdir()
    run = Run(trainable="unet", store=sent(okbp_store), params=tiny)
    prepared = prepare(run)
    weights = prepared.method.build(prepared.params, task=prepared.task).state_dict()
    document = {"run": run.to_json(), "task": prepared.task.to_json(), "params": {}}
    checkpoint.save(tmp_path / "old" / "model", snapshot=Snapshot(weights=weights, metrics={}, epoch=0), run=document)
    initial = pin({"initial": str(tmp_path / "old")}, workspace=place)
    shutil.rmtree(tmp_path / "old")

    done = train(dataclasses.replace(run, params={**tiny, **initial}), workspace=place)
    uri = f"{place.uri}/runs/{done.folder.name}"
    assert read(f"{uri}/transfer.json")["new"] == [] and read(f"{uri}/result.json") == done.result
    assert checkpoint.verify(fetch(done.registered.uri, workspace=place)) == done.result["digest"]
    everything = [storage.read_bytes(f"{place.uri}/{name}") for name in files(place.uri)]
    everything += [path.read_bytes() for path in place.root.rglob("*") if path.is_file()]
    assert not [content for content in everything if b"tester" in content], "the storage's keys stay out"
    client = connect(place)
    told = [run.data for run in client.search_runs([one.experiment_id for one in client.search_experiments()])]
    assert told and str(tmp_path) not in str([[data.params, data.tags] for data in told])
