"""A trial that the scheduler wants to stop ends by itself, keeps what it learned and frees everything that it held."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import ray.tune
import torch
from ray.tune.schedulers import TrialScheduler
from ray.util import placement_group_table

from segsweep import recipes
from segsweep.data import storage
from segsweep.data.mirror import Mirror
from segsweep.data.structures import LabelSet
from segsweep.errors import RecipeError
from segsweep.learning import checkpoint
from segsweep.learning.loop import Epoch, train
from segsweep.learning.method import load_method
from segsweep.run import Run
from segsweep.sweeps import worker
from segsweep.sweeps.kept import keep
from segsweep.sweeps.preparing import Prepared, prepare
from segsweep.sweeps.run_folder import STOP, begin_attempt, demand_attempt, read_result, request_stop
from segsweep.sweeps.stopping import CooperativeASHA, CooperativePaired, demand_pairs, make_scheduler
from segsweep.sweeps.trial import as_trainable


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


def told(scheduler: CooperativeASHA, trial: Any, *, epoch: int, epochs: int, dice: float) -> bool:
    """Whether a trial was told to stop by then; Tune itself is never told to."""
    result = {"epoch": epoch, "epochs": epochs, "patch_dice_smoothed": dice}
    assert scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
    return (Path(trial.config["folder"]) / STOP).exists()


def test_verdict_becomes_a_flag_and_better_trials_go_on(tmp_path: Path) -> None:
    scheduler = CooperativeASHA(grace=0.2)
    for name, dice in (("good", 0.8), ("bad", 0.2), ("better", 0.9)):
        trial = rival(tmp_path / name)
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        for epoch in (1, 2):
            assert told(scheduler, trial, epoch=epoch, epochs=10, dice=dice) == (name == "bad" and epoch == 2)


def test_asha_compares_trials_after_equal_shares_of_their_own_epochs(tmp_path: Path) -> None:
    """The long trial is behind the short one at equal epochs and ahead of it at equal shares."""
    scheduler = CooperativeASHA(grace=0.3)
    trials = {"short": (10, 0.5), "long": (100, 0.6), "long and worse": (100, 0.4)}
    stopped = {}
    for name, (epochs, dice) in trials.items():
        trial = rival(tmp_path / name)
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        rung = 3 * epochs // 10
        assert not told(scheduler, trial, epoch=rung - 1, epochs=epochs, dice=0.0), "before its share"
        stopped[name] = told(scheduler, trial, epoch=rung, epochs=epochs, dice=dice)
    assert stopped == {"short": False, "long": False, "long and worse": True}


def test_a_trial_is_judged_by_its_first_fold_and_the_flag_lies_there(tmp_path: Path) -> None:
    scheduler = CooperativeASHA(grace=0.1)
    for name, dice in (("good", 0.8), ("bad", 0.2)):
        trial = rival(tmp_path / name)
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        scheduler.on_trial_result(None, trial, {"later": {"epoch": 1, "patch_dice_smoothed": 0.0}, "fold": 0})
        assert not list(tmp_path.rglob(STOP)), "later folds are not judged"
        scheduler.on_trial_result(None, trial, {"epoch": 1, "epochs": 10, "patch_dice_smoothed": dice, "fold": 2})
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob(STOP)] == [Path("bad", "fold-2", STOP)]


@pytest.mark.usefixtures("hasty")
def test_a_storage_that_is_away_for_a_moment_loses_no_flag(object_storage: Any) -> None:
    uri = f"{object_storage.uri}/sweep/trial-0000"
    object_storage.faults = {"PUT": [503, 503]}
    request_stop(uri)
    assert storage.exists(f"{uri}/{STOP}") and not any(object_storage.faults["PUT"])
    object_storage.faults = {"PUT": [503, 503]}
    demand_attempt(uri, attempt=begin_attempt(uri))
    assert not any(object_storage.faults["PUT"])


def test_of_trials_in_a_bucket_validations_come_from_there_and_flags_go_there(
    object_storage: Any, tmp_path: Path
) -> None:
    home = Mirror(uri=f"{object_storage.uri}/sweep", folder=tmp_path)
    asha, paired = CooperativeASHA(grace=0.1), CooperativePaired(grace=0.0, home=home)
    for name, dice in (("trial-0000", 0.8), ("trial-0001", 0.2)):
        uri = f"{home.uri}/{name}"
        scores = {f"case {number}": {"Eye": dice + number / 1000} for number in range(9)}
        storage.write_bytes(f"{uri}/validation-00005.json", json.dumps(scores).encode())
        trial = SimpleNamespace(trial_id=name, config={"folder": uri})
        paired.on_trial_result(None, trial, {"epoch": 5, "epochs": 10, "dice_scan": dice})  # type: ignore[arg-type]
        assert storage.exists(f"{uri}/{STOP}") == (name == "trial-0001")
        storage.remove(f"{uri}/{STOP}")
        asha.on_trial_add(None, trial)  # type: ignore[arg-type]
        asha.on_trial_result(None, trial, {"epoch": 5, "epochs": 10, "patch_dice_smoothed": dice})  # type: ignore[arg-type]
        assert storage.exists(f"{uri}/{STOP}") == (name == "trial-0001")


def test_a_pair_of_folds_ends_with_its_trials(tmp_path: Path) -> None:
    scheduler, trial = CooperativePaired(grace=0.0), rival(tmp_path / "trial-0000")
    (tmp_path / "trial-0000" / "fold-1").mkdir(parents=True)
    (tmp_path / "trial-0000" / "fold-1" / "validation-00002.json").write_text(json.dumps({"a": {"Eye": 0.5}}))
    scheduler.on_trial_result(None, trial, {"epoch": 2, "epochs": 10, "dice_scan": 0.5, "fold": 1})  # type: ignore[arg-type]
    assert scheduler._running == {tmp_path / "trial-0000" / "fold-1": 10}
    scheduler.on_trial_complete(None, trial, {"status": "finished"})
    assert scheduler._running == {}


def test_rules_and_their_schedulers() -> None:
    assert isinstance(make_scheduler("asha", grace=0.5, curves={}), CooperativeASHA)
    assert isinstance(make_scheduler("hyperband", grace=0.5, curves={}), CooperativeASHA)
    assert isinstance(make_scheduler("paired", grace=0.0, curves={}), CooperativePaired)
    assert make_scheduler("none", grace=0.5, curves={}) is None


def test_asha_knows_the_trials_that_ended_under_another_driver(tmp_path: Path) -> None:
    curves = {"trial-0000": {0.1: 0.3, 0.2: 0.8}, "trial-0001": {0.2: 0.9}}
    for known in ({}, curves):
        scheduler = make_scheduler("asha", grace=0.2, curves=known)
        assert isinstance(scheduler, CooperativeASHA)
        trial = rival(tmp_path / f"after {len(known)}")
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        assert told(scheduler, trial, epoch=2, epochs=10, dice=0.7) == bool(known)


def test_hyperbands_brackets_judge_at_other_epochs_and_only_ask(tmp_path: Path) -> None:
    """Of very many trials, each a little worse than the one before it, some are first judged later than others; all may go on."""
    scheduler = make_scheduler("hyperband", grace=0.1, curves={})
    assert scheduler is not None
    stopped: dict[int, int] = {}
    for number in range(60):
        trial = rival(tmp_path / f"trial-{number:04d}")
        scheduler.on_trial_add(None, trial)  # type: ignore[arg-type]
        for epoch in range(1, 21):
            result = {"epoch": epoch, "epochs": 20, "patch_dice_smoothed": 0.9 - number / 100}
            assert scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE  # type: ignore[arg-type]
            if (tmp_path / trial.trial_id / STOP).exists():
                stopped[epoch] = stopped.get(epoch, 0) + 1
                break
    assert set(stopped) <= {2, 6, 18}
    assert stopped.get(2) and stopped.get(6)


class Paired:
    """Trials of ten epochs that validate twelve scans every second epoch, as their driver sees them."""

    def __init__(self, sweep: Path, *, grace: float = 0.0) -> None:
        self.sweep, self.scheduler = sweep, CooperativePaired(grace=grace)

    def validated(self, name: str, *, epoch: int, dice: float) -> bool:
        """Whether the trial was told to stop by then."""
        folder = self.sweep / name
        folder.mkdir(parents=True, exist_ok=True)
        self._write(folder / f"validation-{epoch:05d}.json", dice=dice)
        result = {"epoch": epoch, "epochs": 10, "dice_scan": dice}
        trial: Any = rival(folder)
        assert self.scheduler.on_trial_result(None, trial, result) == TrialScheduler.CONTINUE
        return (folder / STOP).exists()

    def ended(self, name: str, *, dice: float) -> None:
        folder = self.sweep / name
        self._write(folder / "validation.json", dice=dice)
        result = {"status": "finished", "epoch": 10, "epochs": 10, "dice": dice}
        (folder / "result.json").write_text(json.dumps(result))
        self.scheduler.on_trial_complete(None, rival(folder), result)

    def _write(self, path: Path, *, dice: float) -> None:
        cases = {f"case-{number}": {"Eye": dice * (0.8 + number / 100)} for number in range(12)}
        path.write_text(json.dumps(cases))


def test_pairs_are_of_validations_alone_and_after_the_grace(tmp_path: Path) -> None:
    sweep = Paired(tmp_path, grace=0.4)
    good, bad = "trial-0000", "trial-0001"
    assert not sweep.validated(good, epoch=2, dice=0.7)
    assert not sweep.validated(bad, epoch=2, dice=0.3), "grace"
    trial: Any = rival(tmp_path / bad)
    sweep.scheduler.on_trial_result(None, trial, {"epoch": 5, "epochs": 10, "patch_dice": 0.0})
    assert not (tmp_path / bad / STOP).exists(), "an epoch without whole scans says nothing"
    assert sweep.validated(bad, epoch=6, dice=0.3)
    assert not sweep.validated(good, epoch=4, dice=0.8)


def test_a_new_driver_knows_the_trials_of_the_one_before(tmp_path: Path) -> None:
    before = Paired(tmp_path)
    for epoch in (2, 4, 6, 8):
        assert not before.validated("trial-0000", epoch=epoch, dice=epoch / 10)
    before.ended("trial-0000", dice=0.9)
    after = Paired(tmp_path)
    assert not after.validated("trial-0001", epoch=2, dice=0.2)
    assert after.validated("trial-0001", epoch=4, dice=0.2)


def test_a_failed_trial_is_no_rival(tmp_path: Path) -> None:
    sweep = Paired(tmp_path)
    sweep.validated("trial-0000", epoch=2, dice=0.9)
    trial: Any = rival(tmp_path / "trial-0000")
    sweep.scheduler.on_trial_error(None, trial)
    assert not sweep.validated("trial-0001", epoch=2, dice=0.1)


def test_pairs_need_validations_and_enough_cases() -> None:
    for every, epochs in ((0, 10), (10, 10), (11, 10)):
        with pytest.raises(RecipeError, match=f"scan_validation_every={every} of {epochs} epochs validates none"):
            demand_pairs(every=every, epochs=epochs, cases=100)
    assert demand_pairs(every=2, epochs=10, cases=6) == ""
    assert demand_pairs(every=2, epochs=10, cases=5).endswith(
        "the fold holds out 5, and at a rate of 0.1 stop=paired needs 6"
    )


@pytest.mark.parametrize("trainable", recipes.names("trainables"))
def test_learning_rates_run_over_a_trials_own_epochs_whoever_stops_it(trainable: str) -> None:
    method = load_method(trainable)
    short, long = (method.stages(method.params({"epochs": epochs})) for epochs in (60, 120))
    assert (sum(stage.epochs for stage in short), sum(stage.epochs for stage in long)) == (60, 120)
    for half, whole in zip(short, long, strict=True):
        # Steps come every so many epochs by their paper; what decays, decays as far in half as many.
        if half.schedule != "step":
            rates = [half.rate(epoch) for epoch in range(half.epochs)]
            assert rates == pytest.approx([whole.rate(2 * epoch) for epoch in range(half.epochs)])


def test_a_stopped_trials_folder_goes_on_where_it_was(
    tiny_store: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "get_device", lambda: torch.device("cpu"))
    label = np.zeros((16, 32, 32), dtype=np.uint8)
    label[:8] = 1
    liver = LabelSet(structures=("liver",))
    pair = ",".join(str(tiny_store(name, labels=liver, cases={"c": label})) for name in "ab")
    params = {"epochs": 4, "iterations": 1, "patch_size": [16, 32, 32], "batch_size": 2, "features": 4, "levels": 2}
    prepared = prepare(Run(trainable="unet", store=pair, fold="all", params=params))
    whole = trained(prepared, folder=tmp_path / "whole", until=4)
    stopped = trained(prepared, folder=tmp_path / "stopped", until=2)
    continued = trained(prepared, folder=tmp_path / "stopped", until=4)
    assert [epoch.number for epoch in continued] == [2, 3]
    assert [epoch.metrics for epoch in (*stopped, *continued)] == [epoch.metrics for epoch in whole]


def trained(prepared: Prepared, *, folder: Path, until: int) -> list[Epoch]:
    """What a worker does with a run's folder, without Ray around it, until it is told to stop."""
    begin = checkpoint.latest(folder)
    found = []
    for epoch in train(worker._setting(prepared), resume=None if begin is None else checkpoint.load(begin)):
        keep(epoch, checkpoints=folder, document={})
        found.append(epoch)
        if epoch.number + 1 == until:
            break
    return found


@pytest.mark.usefixtures("cluster")
def test_stopped_trial_saves_reports_and_frees_its_workers_at_once(
    phantom_store: Path, tmp_path: Path, tiny: dict[str, Any]
) -> None:
    scheduler = CooperativeASHA(grace=1 / 500)
    perfect = rival(tmp_path / "perfect")
    scheduler.on_trial_add(None, perfect)  # type: ignore[arg-type]
    assert not told(scheduler, perfect, epoch=1, epochs=500, dice=1.0)
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


def test_a_trial_that_is_begun_again_stays_in_its_bracket() -> None:
    scheduler, trial = CooperativeASHA(grace=0.1, brackets=3), SimpleNamespace(trial_id="t", config={})
    brackets = set()
    for _ in range(20):
        scheduler.on_trial_add(None, trial)
        brackets.add(scheduler._trial_info["t"])
        scheduler.on_trial_error(None, trial)  # type: ignore[arg-type]
    assert len(brackets) == 1
