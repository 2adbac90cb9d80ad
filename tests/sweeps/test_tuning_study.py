"""The study alone knows which trials there are: handed out once, continued after a dead driver, told how they ended."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from segsweep.errors import RecipeError, ResourceError
from segsweep.sweeps.following import ERROR
from segsweep.sweeps.tuning_study import (
    CONFIG,
    MOST_REFUSED,
    FixedTrial,
    StudySearch,
    ended_trials,
    has_unfinished,
    open_study,
    trial_folder,
    trials_left,
)

SETTINGS = {"space": "toy", "seed": 3, "params": {"levels": 3}}


class Sweep:
    """A sweep's folder and storage; every `search` is what a new driver process would make."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.storage = folder, f"sqlite:///{folder / 'studies.db'}"
        self.said: list[tuple[str, str]] = []

    def study(self, **settings: Any) -> optuna.Study:
        return open_study(self.storage, name="toy", settings={**SETTINGS, **settings}, seed=3)

    def search(self, *, trials: int, suggest: Any = None, queued: bool = False) -> StudySearch:
        return StudySearch(
            self.study(),
            suggest_config=suggest or propose,
            sweep=self.folder,
            trials=trials,
            report=lambda name, _done, _total, words: self.said.append((name, words)),
            queued=queued,
        )

    def end(self, number: int, **result: Any) -> None:
        folder = trial_folder(self.folder, number=number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps({"status": "finished", **result}))

    def states(self) -> list[TrialState]:
        return [trial.state for trial in self.study().trials]


def propose(trial: optuna.Trial) -> dict[str, Any]:
    return {"foreground": trial.suggest_float("foreground", 0.2, 0.8), "patch_size": [16, 32, 32]}


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Sweep(tmp_path)


def given(search: StudySearch, *, times: int) -> list[dict[str, Any]]:
    configs = [search.suggest(f"tune-{index}") for index in range(times)]
    assert all(isinstance(config, dict) for config in configs)
    return [config for config in configs if isinstance(config, dict)]


def test_first_trial_is_the_enqueued_one_and_new_ones_end_at_the_number_asked(sweep: Sweep) -> None:
    sweep.study().enqueue_trial({"foreground": 0.33})
    search = sweep.search(trials=3)
    assert search.remaining == 3
    configs = given(search, times=3)
    assert configs[0] == {
        "foreground": 0.33,
        "patch_size": [16, 32, 32],
        "folder": str(sweep.folder / "trial-0000"),
    }
    assert [Path(config["folder"]).name for config in configs] == ["trial-0000", "trial-0001", "trial-0002"]
    assert len({config["foreground"] for config in configs}) == 3
    assert search.remaining == 0
    assert search.suggest("one too many") == Searcher.FINISHED
    assert len(sweep.states()) == 3


def test_dead_driver_leaves_nothing_behind_that_is_run_twice_or_lost(sweep: Sweep) -> None:
    before = given(sweep.search(trials=4), times=3)
    sweep.study().ask()  # the driver died between asking and writing the parameters down
    sweep.end(0, dice=0.75)
    search = sweep.search(trials=4)
    assert sweep.states() == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.RUNNING, TrialState.FAIL]
    assert sweep.study().trials[0].value == 0.75
    assert search.remaining == 3
    after = given(search, times=3)
    assert after[:2] == before[1:]
    assert Path(after[2]["folder"]).name == "trial-0004"
    for number in (1, 2, 4):
        sweep.end(number, dice=0.5)
        search.on_trial_complete(f"tune-{(1, 2, 4).index(number)}")
    assert [state for state in sweep.states() if state == TrialState.COMPLETE] == [TrialState.COMPLETE] * 4
    assert not has_unfinished(sweep.study())
    assert sweep.search(trials=4).remaining == 0


def test_resumed_sweep_draws_other_parameters_than_before(sweep: Sweep) -> None:
    first = sweep.search(trials=1)
    (one,) = given(first, times=1)
    sweep.end(0, dice=0.5)
    first.on_trial_complete("tune-0")
    (two,) = given(sweep.search(trials=2), times=1)
    assert one["foreground"] != two["foreground"]


def test_finished_sweep_is_extended_by_asking_for_more(sweep: Sweep) -> None:
    search = sweep.search(trials=2)
    given(search, times=2)
    for number in range(2):
        sweep.end(number, dice=0.5 + number / 10)
        search.on_trial_complete(f"tune-{number}")
    assert sweep.search(trials=2).remaining == 0
    assert sweep.search(trials=5).remaining == 3
    ended = ended_trials(sweep.study(), sweep=sweep.folder)
    assert [(trial.name, trial.dice, trial.state) for trial in ended] == [
        ("trial-0001", 0.6, "finished"),
        ("trial-0000", 0.5, "finished"),
    ]


def test_queued_trials_are_all_there_are_also_when_one_is_refused(sweep: Sweep) -> None:
    def refusing(trial: optuna.Trial) -> dict[str, Any]:
        if trial.suggest_categorical("row", ["a", "b", "c"]) == "b":
            raise RecipeError("b cannot be trained")
        return dict(trial.params)

    for row in ("a", "b", "c"):
        sweep.study().enqueue_trial({"row": row})
    search = sweep.search(trials=3, suggest=refusing, queued=True)
    assert [config["row"] for config in given(search, times=2)] == ["a", "c"]
    assert search.suggest("one too many") == Searcher.FINISHED
    assert search.remaining == 0
    assert sweep.said == [("trial-0001", "failed: b cannot be trained")]
    assert len(sweep.states()) == 3


def test_other_settings_are_refused_by_what_differs(sweep: Sweep) -> None:
    sweep.study()
    sweep.study()
    with pytest.raises(RecipeError, match=r"seed was 3, now 4.*another name"):
        sweep.study(seed=4)
    with pytest.raises(RecipeError, match=r"params was \{'levels': 3\}, now \{'levels': 5\}"):
        sweep.study(params={"levels": 5})


def test_database_that_cannot_be_used_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database" * 100)
    for address in ("nosuchdatabase://me:secret@host/studies", f"sqlite:///{tmp_path / 'text'}", "a word"):
        with pytest.raises(ResourceError, match=r"study database '.*' cannot be used .* in SEGSWEEP_STUDIES") as raised:
            open_study(address, name="toy", settings=SETTINGS, seed=3)
        assert "secret" not in str(raised.value)


def test_trials_left_are_the_unfinished_and_those_still_asked_for(sweep: Sweep) -> None:
    study = sweep.study()
    assert trials_left(study, trials=3) == 3
    for state in (TrialState.COMPLETE, TrialState.FAIL, TrialState.PRUNED):
        values = [0.5] if state == TrialState.COMPLETE else None
        study.add_trial(optuna.trial.create_trial(state=state, values=values))
    study.ask()
    assert [trials_left(study, trials=trials) for trials in (1, 2, 3, 9)] == [1, 1, 1, 7]


def test_nothing_is_drawn_for_what_the_user_fixed(sweep: Sweep) -> None:
    fixed = {"loss": "focal", "patch_size": [16, 32, 32], "foreground": 0.9, "levels": 3}
    trial = sweep.study().ask()
    given = FixedTrial(trial, fixed=fixed)
    assert given.suggest_categorical("loss", ("ce", "focal")) == "focal"
    assert given.suggest_categorical("patch_size", ("plan", "smaller")) == "plan", "a name for what was fixed"
    assert given.suggest_float("foreground", 0.2, 0.8, step=0.1) == 0.9
    assert given.suggest_int("levels", 4, 6) == 3
    assert trial.params == {}
    drawn = {
        "head": given.suggest_categorical("head", ("a", "b")),
        "rate": given.suggest_float("rate", 1e-4, 1e-1, log=True),
        "width": given.suggest_int("width", 8, 32, step=8),
    }
    assert trial.params == drawn and given.number == trial.number


def test_states_of_trials_that_did_not_simply_finish(sweep: Sweep) -> None:
    search = sweep.search(trials=3)
    given(search, times=3)
    sweep.end(0, status="stopped_early", patch_dice=0.1)
    search.on_trial_result("tune-0", {"epoch": 1, "patch_dice_smoothed": 0.1})
    search.on_trial_complete("tune-0", result={"dice": 1.0})
    search.on_trial_complete("tune-1", error=True)
    search.on_trial_complete("tune-2")  # interrupted: neither result nor error
    assert sweep.states() == [TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert [trial.dice for trial in ended_trials(sweep.study(), sweep=sweep.folder)] == [None, None]
    assert sweep.study().trials[0].intermediate_values == {1: 0.1}
    assert has_unfinished(sweep.study())
    # Tune says the end again when a callback of its own failed; that changes nothing.
    search.on_trial_complete("tune-0", error=True)
    assert sweep.states()[0] == TrialState.PRUNED
    # A failed trial does not count: one more is drawn in its place, after the interrupted one.
    again = sweep.search(trials=3)
    assert [Path(config["folder"]).name for config in given(again, times=2)] == ["trial-0002", "trial-0003"]


def test_suggestion_that_cannot_be_trained_fails_and_another_is_drawn(sweep: Sweep) -> None:
    def fussy(trial: optuna.Trial) -> dict[str, Any]:
        config = propose(trial)
        if trial.number == 0:
            raise ResourceError("patch_size=(512, 512, 512) needs about 1 TB a worker, 4 GB are available")
        return config

    search = sweep.search(trials=1, suggest=fussy)
    (config,) = given(search, times=1)
    assert Path(config["folder"]).name == "trial-0001"
    assert sweep.states() == [TrialState.FAIL, TrialState.RUNNING]
    assert "needs about 1 TB" in (sweep.folder / "trial-0000" / ERROR).read_text()
    assert sweep.said == [
        ("trial-0000", "failed: patch_size=(512, 512, 512) needs about 1 TB a worker, 4 GB are available")
    ]
    assert CONFIG not in sweep.study().trials[0].user_attrs


def test_space_without_any_trainable_point_ends_the_search(sweep: Sweep) -> None:
    def impossible(trial: optuna.Trial) -> dict[str, Any]:
        raise ResourceError(f"nothing fits ({trial.number})")

    search = sweep.search(trials=2, suggest=impossible)
    assert search.suggest("tune-0") == Searcher.FINISHED
    assert search.remaining == 0
    assert sweep.states() == [TrialState.FAIL] * MOST_REFUSED
