"""`as_trainable` fits into a user's own `tune.run`: their grid, their folders; a bad value fails its own trial only."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.tune
from ray.tune.execution import class_cache
from ray.util.placement_group import placement_group, remove_placement_group

from segsweep.data.parallel import Piece, run_all
from segsweep.errors import StorageAwayError
from segsweep.run import Run
from segsweep.sweeps import trial
from segsweep.sweeps.cluster import Resources
from segsweep.sweeps.trial import KEYS, TRIAL_BYTES, as_trainable, trial_resources


@pytest.mark.usefixtures("cluster")
def test_users_own_grid_of_losses(
    phantom_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: dict[str, Any]
) -> None:
    monkeypatch.chdir(phantom_store.parent)  # as a user writes it: trials run elsewhere
    run = Run(trainable="unet", store=phantom_store.name, params=tiny)
    analysis = ray.tune.run(
        as_trainable(run),
        config={"loss": ray.tune.grid_search(["dice_focal", "nonsense"]), "trainable": "resenc_unet"},
        metric="dice",
        mode="max",
        storage_path=str(tmp_path),
        raise_on_failed_trial=False,
        verbose=0,
    )
    good, bad = sorted(analysis.trials, key=lambda trial: trial.config["loss"])
    assert (good.status, bad.status) == ("TERMINATED", "ERROR")
    assert 0.0 <= good.last_result["dice"] <= 1.0
    assert good.last_result["status"] == "finished"
    assert analysis.best_config == {"loss": "dice_focal", "trainable": "resenc_unet"}
    model = Path(good.local_path or "") / "run" / "model"
    assert (model / "weights.safetensors").is_file()
    assert json.loads((model / "run.json").read_text())["run"]["trainable"] == "resenc_unet", "a trial chooses its own"
    assert "loss='nonsense' cannot be used" in Path(bad.error_file or "").read_text()
    assert not (Path(bad.local_path or "") / "run").exists()


def test_keys_of_a_storage_are_sent_to_no_trial(phantom_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune would put them into command lines. (tests/test_secrets.py looks at those of a whole sweep.)"""
    for name in KEYS:
        monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("RAY_TRAIN_V2_ENABLED", "1")
    as_trainable(Run(trainable="unet", store=str(phantom_store)))
    sent = str(class_cache._ActorClassCache().get(type("Trial", (), {}))._default_options)
    assert "RAY_TRAIN_V2_ENABLED" in sent and "canary" not in sent
    assert {"AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} <= KEYS


@pytest.mark.usefixtures("hasty")
def test_a_storage_that_is_away_when_a_trial_begins_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = SimpleNamespace(
        store=SimpleNamespace(uri="s3://lab/store"), task=SimpleNamespace(spacing=(1.0, 1.0, 1.0))
    )
    away, trained = [0, 0], []

    def waited_for(_what: Any, **_how: Any) -> Any:
        if away:
            raise StorageAwayError(f"away {away.pop()}")
        return prepared

    monkeypatch.setattr(ray.tune, "with_resources", lambda function, _resources: function)
    monkeypatch.setattr(ray.tune, "report", lambda _report: None)
    for name in ("prepare", "derive"):
        monkeypatch.setattr(trial, name, lambda *_given, **_how: prepared)
    monkeypatch.setattr(trial, "demand_resources", lambda *_given, **_how: None)
    monkeypatch.setattr(trial, "fit_told", lambda run, **_how: trained.append(run))
    function = as_trainable(Run(trainable="unet", store="s3://lab/store"), resources=Resources(cpus=1))
    monkeypatch.setattr(trial, "prepare", waited_for)
    function({"folder": str(tmp_path)})
    assert len(trained) == 1 and not away


@pytest.mark.usefixtures("cluster")
def test_trials_ask_for_memory_and_leave_room_for_what_they_convert() -> None:
    """By memory Ray spreads them over nodes; a trial that waits for its training grids must not be what these wait for."""
    asked = trial_resources()["memory"]
    largest = max(node["Resources"]["memory"] for node in ray.nodes())
    assert 2**20 < asked <= TRIAL_BYTES
    trials = [placement_group([{"memory": asked}]) for _ in range(8)]
    try:
        assert all(trial.wait(30) for trial in trials)
        piece = Piece(name="grid", arguments=(), num_bytes=int(largest))
        assert run_all([piece], work=dict, label="training grids")["grid"].value == {}
    finally:
        for trial in trials:
            remove_placement_group(trial)
