"""Runs are nested, found again after a restart, and hold what was sent to them."""

import json
import logging
import math
import os
import socket
from pathlib import Path

import mlflow
import pytest
from mlflow.telemetry import get_telemetry_client

from segsweep.errors import ModelError
from segsweep.models import catalogue, registry
from segsweep.models.tracking import PARENT_TAG, Tracker, connect
from segsweep.workspace import Workspace


def test_child_run_names_its_parent(tracker: Tracker) -> None:
    parent = tracker.start("sweep", tags={"segsweep.sweep": "nested"})
    child = tracker.start("trial 0", parent=parent, params={"patch_size": [32, 32, 32], "epochs": 3, "head": "softmax"})
    run = tracker.client.get_run(child)
    assert run.data.tags[PARENT_TAG] == parent
    assert run.info.run_name == "trial 0"
    assert run.data.params == {"patch_size": "[32, 32, 32]", "epochs": "3", "head": "softmax"}


def test_resumed_sweep_finds_its_runs(tracker: Tracker, workspace: Workspace) -> None:
    parent = tracker.start("sweep", tags={"segsweep.sweep": "it's back"})
    trials = [tracker.start("t", parent=parent, tags={"sweep": "back", "trial": number}) for number in range(3)]
    tracker.finish(parent, status="KILLED")
    again = Tracker(workspace, experiment="phantom")
    assert again.find(tags={"segsweep.sweep": "it's back"}) == parent
    assert [again.find(tags={"sweep": "back", "trial": number}) for number in range(3)] == trials
    assert again.find("phantom", tags={"sweep": "back", "trial": 7}) is None
    assert again.find("another dataset", tags={"sweep": "back"}) is None
    again.resume(parent)
    assert again.client.get_run(parent).info.status == "RUNNING"


def test_metrics_are_stored_once_and_non_finite_ones_named(tracker: Tracker) -> None:
    run_id = tracker.start("metrics")
    for _ in range(2):
        values = {"val/dice/liver": 0.5, "val/dice/lobe (left)": 0.25, "loss": math.nan}
        tracker.metrics(run_id, values, step=4, timestamp_ms=1000)
    history = tracker.client.get_metric_history(run_id, "val/dice/liver")
    assert [(point.value, point.step, point.timestamp) for point in history] == [(0.5, 4, 1000)]
    run = tracker.client.get_run(run_id)
    assert run.data.metrics == {"val/dice/liver": 0.5, "val/dice/lobe _left_": 0.25}
    assert run.data.tags["segsweep.non_finite"] == "step 4: loss"


def test_more_values_than_one_request_takes(tracker: Tracker) -> None:
    run_id = tracker.start("wide", params={f"p{index}": index for index in range(130)})
    tracker.metrics(run_id, {f"m{index}": float(index) for index in range(1100)}, step=0)
    run = tracker.client.get_run(run_id)
    assert len(run.data.params) == 130
    assert len(run.data.metrics) == 1100


def test_long_parameter_is_cut_with_a_note(tracker: Tracker) -> None:
    run_id = tracker.start("long", params={"text": "a" * 7000})
    value = tracker.client.get_run(run_id).data.params["text"]
    assert len(value) == 6000
    assert value.endswith("(cut; 7000 characters)")


def test_table_is_replaced_and_listed_once(tracker: Tracker, tmp_path: Path) -> None:
    run_id = tracker.start("table")
    for dice in (0.1, math.inf):
        tracker.table(run_id, [{"case": "a", "dice": dice}, {"case": "b"}], path="cases.json")
    stored = tracker.client.download_artifacts(run_id, "cases.json", str(tmp_path))
    assert json.loads(Path(stored).read_text()) == {"columns": ["case", "dice"], "data": [["a", None], ["b", None]]}
    tag = tracker.client.get_run(run_id).data.tags["mlflow.loggedArtifacts"]
    assert json.loads(tag) == [{"path": "cases.json", "type": "table"}]


def test_artifacts_lie_in_the_workspace(tracker: Tracker, workspace: Workspace) -> None:
    run_id = tracker.start("files")
    tracker.table(run_id, [{"case": "a"}], path="cases.json")
    assert (workspace.artifacts / run_id / "artifacts" / "cases.json").is_file()
    tracker.finish(run_id, status="FINISHED")
    assert tracker.client.get_run(run_id).info.status == "FINISHED"


def test_mlflow_is_quiet_and_its_global_state_untouched(tracker: Tracker) -> None:
    tracker.start("quiet")
    assert mlflow.active_run() is None
    assert "MLFLOW_TRACKING_URI" not in os.environ
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert get_telemetry_client() is None
    assert not logging.getLogger("alembic").isEnabledFor(logging.INFO)
    assert not logging.getLogger("mlflow.store.db.utils").isEnabledFor(logging.INFO)


def test_unusable_address_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    with pytest.raises(ModelError, match="'gopher://nowhere' cannot be used"):
        connect(Workspace(root=tmp_path))


def test_server_that_does_not_answer_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket() as probe:  # a port on which nobody listens
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    workspace = Workspace(root=tmp_path)
    for ask in (
        lambda: Tracker(workspace, experiment="toy"),
        lambda: catalogue.models(workspace),
        lambda: registry.fetch("models:/toy/1", workspace=workspace),
    ):
        with pytest.raises(ModelError, match=rf"{address}.*see that its server runs and MLFLOW_TRACKING_URI is right"):
            ask()


def test_outage_after_the_start_is_one_sentence_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    tracker = Tracker(Workspace(root=tmp_path), experiment="toy")
    for ask in (
        lambda: tracker.resume("gone"),
        lambda: tracker.tag("gone", {"a": 1}),
        lambda: tracker.metrics("gone", {"a": 1.0}, step=0),
        lambda: tracker.finish("gone"),
    ):
        with pytest.raises(ModelError, match=r"MLflow could not do what was asked of it .*gone"):
            ask()


def test_passwords_of_addresses_stay_out_of_sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuchdatabase://me:secret@host/runs")
    with pytest.raises(ModelError, match="'nosuchdatabase://host/runs' cannot be used") as raised:
        connect(Workspace(root=tmp_path))
    assert "secret" not in str(raised.value)
