"""A trial that the scheduler wants to stop ends by itself, keeps what it learned and frees everything that it held."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.tune
from ray.tune.schedulers import TrialScheduler
from ray.util import placement_group_table

from segsweep.learning import checkpoint
from segsweep.run import Run
from segsweep.sweeps.stopping import CooperativeASHA
from segsweep.sweeps.training import STOP, as_trainable, read_result


class Watch(ray.tune.Callback):
    """Notes, as a trial ends and before Tune goes on, whether its workers' resources come back by themselves."""

    def __init__(self) -> None:
        self.before, self.freed = set(placed()), False

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:  # noqa: ARG002
        end = time.monotonic() + 20
        while set(placed()) > self.before and time.monotonic() < end:
            time.sleep(0.1)
        self.freed = set(placed()) <= self.before


def placed() -> list[str]:
    """Placement groups that hold workers. (Tune's own for the trial actor lives until the actor is gone.)"""
    return [
        identity
        for identity, group in placement_group_table().items()
        if group["state"] == "CREATED" and any(bundle.get("CPU") for bundle in group["bundles"].values())
    ]


def rival(folder: Path) -> Any:
    """All that ASHA wants to know of a trial."""
    return SimpleNamespace(trial_id=folder.name, config={"folder": str(folder)})


def test_verdict_becomes_a_flag_and_better_trials_go_on(tmp_path: Path) -> None:
    scheduler = CooperativeASHA(grace_epochs=2, most_epochs=100)
    for name, dice in (("good", 0.8), ("bad", 0.2), ("better", 0.9)):
        trial = rival(tmp_path / name)
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        for epoch in (1, 2):
            verdict = scheduler.on_trial_result(None, trial, {"epoch": epoch, "patch_dice_smoothed": dice})
            assert verdict == TrialScheduler.CONTINUE
            assert (tmp_path / name / STOP).exists() == (name == "bad" and epoch == 2)


@pytest.mark.usefixtures("cluster")
def test_stopped_trial_saves_reports_and_frees_its_workers_at_once(
    phantom_store: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    scheduler = CooperativeASHA(grace_epochs=1, most_epochs=1000)
    perfect = rival(tmp_path / "perfect")
    scheduler.on_trial_add(None, perfect)  # type: ignore[arg-type]
    scheduler.on_trial_result(None, perfect, {"epoch": 1, "patch_dice_smoothed": 1.0})
    folder, watch = tmp_path / "trial-0000", Watch()
    tuner = ray.tune.Tuner(
        as_trainable(Run(trainable="unet", store=str(phantom_store), params={**tiny, "epochs": 500})),
        param_space={"folder": str(folder)},
        tune_config=ray.tune.TuneConfig(scheduler=scheduler),
        run_config=ray.tune.RunConfig(name="tune", storage_path=str(tmp_path), callbacks=[watch], verbose=0),
    )
    results = tuner.fit()
    assert results.num_errors == 0
    assert watch.freed
    result = read_result(folder)
    assert result["status"] == "stopped_early"
    assert 1 <= result["epoch"] < 500
    assert "dice" not in result
    (kept,) = (folder / "checkpoints").glob("epoch-*")
    assert checkpoint.load(kept).epoch == result["epoch"] - 1
    assert checkpoint.verify(folder / "model") == result["digest"]
    assert (results[0].metrics or {})["status"] == "stopped_early"
