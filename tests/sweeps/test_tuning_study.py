"""The study alone knows which trials there are: handed out once, continued after a dead driver, told how they ended."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from segsweep.data import storage
from segsweep.data.mirror import Mirror
from segsweep.errors import RecipeError, ResourceError
from segsweep.sweeps.following import ERROR
from segsweep.sweeps.shortage import note
from segsweep.sweeps.tuning_record import FILE, StudyRecord
from segsweep.sweeps.tuning_sampling import Ask, drawn, make_sampler, queued
from segsweep.sweeps.tuning_study import (
    CONFIG,
    MOST_REFUSED,
    SHORTAGE,
    StudySearch,
    ended_trials,
    has_unfinished,
    learning_curves,
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

    def search(self, *, trials: int, suggest: Any = None, ask: Ask = drawn, **settings: Any) -> StudySearch:
        return StudySearch(
            self.study(**settings),
            suggest_config=suggest or propose,
            sweep=self.folder,
            trials=trials,
            report=lambda name, _done, _total, words: self.said.append((name, words)),
            ask=ask,
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
    sweep.study().enqueue_trial({"foreground": 0.33})
    sweep.study().ask()  # the driver died between asking and writing the parameters down
    sweep.end(0, dice=0.75)
    search = sweep.search(trials=4)
    assert sweep.states() == [TrialState.COMPLETE, *[TrialState.RUNNING] * 3]
    assert sweep.study().trials[0].value == 0.75
    assert search.remaining == 3
    after = given(search, times=3)
    assert after[:2] == before[1:]
    assert (Path(after[2]["folder"]).name, after[2]["foreground"]) == ("trial-0003", 0.33), "what it was meant to be"
    for number in (1, 2, 3):
        sweep.end(number, dice=0.5)
        search.on_trial_complete(f"tune-{number - 1}")
    assert sweep.states() == [TrialState.COMPLETE] * 4
    assert not has_unfinished(sweep.study())
    assert sweep.search(trials=4).remaining == 0


def test_of_a_sweep_in_a_bucket_trials_are_known_there_before_they_begin(sweep: Sweep, object_storage: Any) -> None:
    home = Mirror(uri=f"{object_storage.uri}/toy", folder=sweep.folder)
    record = StudyRecord(sweep.study(), uri=f"{home.uri}/{FILE}")
    search = StudySearch(
        sweep.study(), suggest_config=propose, sweep=sweep.folder, trials=2, report=print, home=home, record=record
    )
    (config,) = given(search, times=1)
    assert config["folder"] == f"{home.uri}/trial-0000"
    (known,) = json.loads(storage.read_bytes(f"{home.uri}/{FILE}"))["trials"]
    assert (known["state"], known["user_attrs"][CONFIG]["foreground"]) == ("RUNNING", config["foreground"])
    result = json.dumps({"status": "finished", "dice": 0.25})
    storage.write_bytes(f"{config['folder']}/result.json", result.encode())
    storage.write_bytes(f"{config['folder']}/model/weights", b"large")
    search.on_trial_complete("tune-0")
    assert sweep.study().trials[0].value == 0.25
    assert not (sweep.folder / "trial-0000" / "model").exists(), "weights are fetched where they are needed"


def test_trial_without_parameters_that_cannot_be_trained_is_replaced(sweep: Sweep) -> None:
    def refusing(trial: optuna.Trial) -> dict[str, Any]:
        if trial.number == 0:
            raise ResourceError("too large")
        return propose(trial)

    sweep.study().ask()
    search = sweep.search(trials=1, suggest=refusing)
    assert search.remaining == 1
    (config,) = given(search, times=1)
    assert Path(config["folder"]).name == "trial-0001"
    assert sweep.states() == [TrialState.FAIL, TrialState.RUNNING]
    assert search.remaining == 0


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
    search = sweep.search(trials=3, suggest=refusing, ask=queued)
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


def curve_point(epoch: int, *, status: str) -> dict[str, Any]:
    """What a training of 1000 epochs reports."""
    return {"epoch": epoch, "epochs": 1000, "patch_dice_smoothed": epoch / 1000, "status": status}


def test_a_long_curve_is_kept_in_a_hundred_values_and_the_last(sweep: Sweep) -> None:
    """With each suggestion Optuna reads those of all trials that run."""
    search = sweep.search(trials=2)
    given(search, times=2)
    for number, last in enumerate((1000, 777)):
        for epoch in range(1, last + 1):
            search.on_trial_result(f"tune-{number}", curve_point(epoch, status="training"))
        search.on_trial_result(
            f"tune-{number}", curve_point(last, status="finished" if last == 1000 else "stopped_early")
        )
    long, stopped = (trial.intermediate_values for trial in sweep.study().trials)
    assert list(long) == list(range(10, 1001, 10))
    assert list(stopped) == [*range(10, 777, 10), 777]


def test_states_of_trials_that_did_not_simply_finish(sweep: Sweep) -> None:
    search = sweep.search(trials=3)
    given(search, times=3)
    sweep.end(0, status="stopped_early", patch_dice=0.1, epochs=4)
    search.on_trial_result("tune-0", {"epoch": 1, "patch_dice_smoothed": 0.1})
    search.on_trial_complete("tune-0", result={"dice": 1.0})
    search.on_trial_complete("tune-1", error=True)
    search.on_trial_complete("tune-2")  # interrupted: neither result nor error
    assert sweep.states() == [TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert [trial.dice for trial in ended_trials(sweep.study(), sweep=sweep.folder)] == [None, None]
    assert sweep.study().trials[0].intermediate_values == {1: 0.1}
    assert learning_curves(sweep.study(), sweep=sweep.folder) == {"trial-0000": {0.25: 0.1}}
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


def test_of_several_objectives_the_front_comes_first_by_dice(sweep: Sweep) -> None:
    several: dict[str, Any] = {"objective": "dice,seconds_per_case"}
    search = sweep.search(trials=5, **several)
    given(search, times=5)
    costs = ((0.9, 40.0), (0.85, 50.0), (0.7, 10.0), (0.8, 20.0))
    for number, (dice, seconds) in enumerate(costs):
        search.on_trial_result(f"tune-{number}", {"epoch": 1, "patch_dice_smoothed": 0.1})
        sweep.end(number, dice=dice, seconds_per_case=seconds, memory_gb=2.0)
        search.on_trial_complete(f"tune-{number}")
    sweep.end(4, status="stopped_early")
    search.on_trial_complete("tune-4")
    study = sweep.study(**several)
    assert study.trials[0].values == [0.9, 40.0]
    ended = ended_trials(study, sweep=sweep.folder)
    assert [(trial.name, trial.dice) for trial in ended] == [
        ("trial-0000", 0.9),
        ("trial-0003", 0.8),
        ("trial-0002", 0.7),
        ("trial-0001", 0.85),
        ("trial-0004", None),
    ]
    assert ended[0].values == {"dice": 0.9, "seconds_per_case": 40.0, "memory_gb": 2.0}
    with pytest.raises(RecipeError, match=r"objective was 'dice,seconds_per_case', now None"):
        sweep.study()


def test_trials_are_listed_by_what_they_were_chosen_by(sweep: Sweep) -> None:
    search = sweep.search(trials=2, objective="nsd")
    given(search, times=2)
    for number, nsd in enumerate((0.6, 0.7)):
        sweep.end(number, dice=0.9 - nsd, nsd=nsd)
        search.on_trial_complete(f"tune-{number}")
    study = sweep.study(objective="nsd")
    assert [trial.value for trial in study.trials] == [0.6, 0.7]
    assert [trial.values["nsd"] for trial in ended_trials(study, sweep=sweep.folder)] == [0.7, 0.6]


def search_edges(sweep: Sweep, *, sampler: str, trials: int, told: bool) -> list[int]:
    """Edges that a sampler tries where Dice grows with the edge and those above 64 lack memory, which the study is told or not."""
    search = sweep.search(trials=trials, suggest=lambda trial: {"edge": trial.suggest_int("edge", 16, 128)})
    search._study.sampler = make_sampler(sampler, seed=3)
    edges = []
    for _ in range(trials):
        (config,) = given(search, times=1)
        edge, folder = config["edge"], Path(config["folder"])
        folder.mkdir()
        if edge > 64 and told:
            note(folder, patch_size=(16, edge, edge), batch_size=2)
        elif edge <= 64:
            sweep.end(int(folder.name[-4:]), dice=edge / 100)
        search.on_trial_complete("tune-0", error=edge > 64)
        edges.append(edge)
    return edges


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", 20), ("gp", 14)])
def test_lack_of_memory_steers_the_sampler(tmp_path: Path, sampler: str, trials: int) -> None:
    lacking = {}
    for told in (True, False):
        folder = tmp_path / str(told)
        folder.mkdir()
        edges = search_edges(Sweep(folder), sampler=sampler, trials=trials, told=told)
        lacking[told] = sum(edge > 64 for edge in edges[trials // 2 :])
    assert 2 * lacking[True] <= lacking[False]


def test_trial_that_lacked_memory_says_so_and_is_never_the_best(sweep: Sweep) -> None:
    edges = search_edges(sweep, sampler="nsga2", trials=12, told=True)
    study = sweep.study()
    lacking = [trial for trial in study.trials if SHORTAGE in trial.user_attrs]
    assert [trial.params["edge"] for trial in lacking] == [edge for edge in edges if edge > 64]
    assert lacking[0].user_attrs[SHORTAGE] == {"patch_size": [16, *[lacking[0].params["edge"]] * 2], "batch_size": 2}
    assert study.best_trial.params["edge"] == max(edge for edge in edges if edge <= 64)
    ended = ended_trials(study, sweep=sweep.folder)
    assert ended[0].dice == study.best_value
    assert {(trial.state, trial.dice) for trial in ended if trial.config["edge"] > 64} == {("out of memory", None)}
    # It counts as little as a failure: others are drawn in their place.
    assert trials_left(study, trials=12) == len(lacking) > 0


def test_lack_of_memory_that_a_dead_driver_could_not_tell_is_settled(sweep: Sweep) -> None:
    given(sweep.search(trials=2), times=2)
    folder = trial_folder(sweep.folder, number=1)
    folder.mkdir()
    note(folder, patch_size=(16, 32, 32), batch_size=2)
    assert sweep.search(trials=2).remaining == 2
    (lacking,) = ended_trials(sweep.study(), sweep=sweep.folder)
    assert (lacking.name, lacking.state) == ("trial-0001", "out of memory")
