"""A sweep's page holds every trial however it ended, and says which parameters mattered where that can be said."""

import json
from pathlib import Path
from typing import Any

import optuna
import pytest

from segsweep.sweeps.following import ERROR
from segsweep.sweeps.record import add_epoch, begin_record
from segsweep.sweeps.shortage import note
from segsweep.sweeps.tuning_page import LEAST_FOR_IMPORTANCE, MOST_POINTS, document_of, importance, write
from segsweep.sweeps.tuning_study import SETTINGS, SHORTAGE, StudySearch, trial_folder


def ended(study: Any, *, sweep: Path, dice: float | None, rate: float, **result: Any) -> None:
    """A trial as a training leaves it: learning rate and width, a second of which is without any effect."""
    number = len(study.trials)
    study.enqueue_trial({"rate": rate, "width": number % 2})
    trial = study.ask()
    trial.suggest_float("rate", 0.0, 1.0)
    trial.suggest_categorical("width", [0, 1])
    if trial.number % 2:
        trial.suggest_int("only_some", 1, 9)
    folder = trial_folder(sweep, number=trial.number)
    begin_record(folder, run={}, plan={})
    for epoch in (1, 2):
        add_epoch(folder, {"epoch": epoch, "patch_dice_smoothed": rate * epoch / 2})
    status = {"status": "stopped_early"} if dice is None else {"status": "finished", "dice": dice}
    (folder / "result.json").write_text(json.dumps({"epoch": 2, "epochs": 2, **status, **result}))
    study.tell(trial.number, dice, state=None if dice is not None else optuna.trial.TrialState.PRUNED)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder."""
    return tmp_path_factory.mktemp("toy")


@pytest.fixture(scope="module")
def study(sweep: Path) -> Any:
    """Nine trials of which the rate alone decides, one that was stopped, one that failed and one that lacked memory."""
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=3))
    study.set_user_attr(SETTINGS, {})
    for number in range(9):
        ended(
            study,
            sweep=sweep,
            dice=0.1 * number,
            rate=0.1 * number,
            seconds_per_case=10.0 - number % 3,
            memory_gb=2.0,
        )
    ended(study, sweep=sweep, dice=None, rate=0.05)
    for lacking in (False, True):
        folder = trial_folder(sweep, number=study.ask().number)
        folder.mkdir()
        (folder / ERROR).write_text("Traceback\nValueError: no luck\n")
        if lacking:
            note(folder, patch_size=(64, 64, 64), batch_size=2)
    settle(study, sweep=sweep)
    return study


def settle(study: Any, *, sweep: Path) -> None:
    """Tell the study of the last two as a search does."""
    search = StudySearch(study, suggest_config=lambda _trial: {}, sweep=sweep, trials=0, report=lambda *_: None)
    assert SHORTAGE in study.trials[-1].user_attrs and search.remaining
    study.tell(study.trials[-2].number, state=optuna.trial.TrialState.FAIL)


def test_every_trial_is_shown_with_how_it_ended(study: Any, sweep: Path) -> None:
    found = document_of(study, sweep=sweep, folds=(0,))
    states = {trial["name"]: (trial["state"], trial["reason"]) for trial in found["trials"]}
    assert [trial["name"] for trial in found["trials"]][:2] == ["trial-0008", "trial-0007"]
    assert states["trial-0000"] == ("finished", "") and states["trial-0009"] == ("stopped early", "")
    assert states["trial-0010"] == ("failed", "ValueError: no luck")
    assert states["trial-0011"][0] == "out of memory" and "64" in states["trial-0011"][1]
    best = found["trials"][0]
    assert best["curve"] == [[1, pytest.approx(0.4)], [2, pytest.approx(0.8)]]
    assert best["params"]["rate"] == pytest.approx(0.8) and "only_some" not in best["params"]
    assert {axis["name"] for axis in found["axes"]} == {"rate", "width", "only_some"}
    seconds, memory = found["costs"]
    assert (seconds["name"], seconds["front"]) == ("seconds_per_case", ["trial-0008"])
    assert (memory["name"], memory["front"]) == ("memory_gb", ["trial-0008"])


def test_what_decides_is_important_and_what_ran_out_of_memory_counts_for_nothing(study: Any) -> None:
    shares = importance(study)["shares"]
    assert set(shares) == {"rate", "width"}, "of what only some trials draw nothing is said"
    assert 1 > shares["rate"] > 0.7 > shares["width"]
    assert "over 9 trials" in importance(study)["note"]


def test_too_few_or_equal_scores_have_no_importance(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr(SETTINGS, {})
    for count in range(LEAST_FOR_IMPORTANCE):
        assert importance(study) == {
            "shares": {},
            "note": f"Of {count} trials with a score nothing can be said; expected 8 or more.",
        }
        ended(study, sweep=tmp_path, dice=0.5, rate=count / 10)
    assert importance(study)["note"] == "All trials have one dice: no parameter matters."


def test_what_parameters_do_only_together_is_no_parameters_own() -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr(SETTINGS, {})
    whole: optuna.distributions.BaseDistribution = optuna.distributions.FloatDistribution(-1.0, 1.0)
    for one in range(-4, 5):
        for other in range(-4, 5):
            params = {"one": one / 4, "other": other / 4}
            study.add_trial(
                optuna.trial.create_trial(value=one * other, params=params, distributions=dict.fromkeys(params, whole))
            )
    found = importance(study)
    assert found["shares"].keys() == {"one", "other"} and sum(found["shares"].values()) < 0.5
    assert "the rest is what parameters do together, and chance" in found["note"]


def test_page_and_figures_are_written(study: Any, sweep: Path) -> None:
    page = write(study, sweep=sweep, title="toy <on> scans", folds=(0,))
    text = page.read_text()
    assert page.name == "sweep.html" and "toy &lt;on&gt; scans" in text and "<on>" not in text
    figures = json.loads((sweep / "sweep.json").read_text())
    assert len(figures["trials"]) == 12 and all(trial["name"] in text for trial in figures["trials"])


def test_long_curves_are_thinned_to_their_end(tmp_path: Path) -> None:
    study = optuna.create_study(direction="maximize")
    study.set_user_attr(SETTINGS, {})
    ended(study, sweep=tmp_path, dice=0.5, rate=0.1)
    for epoch in range(3, 3 * MOST_POINTS):
        add_epoch(trial_folder(tmp_path, number=0), {"epoch": epoch, "patch_dice_smoothed": 0.5})
    (trial,) = document_of(study, sweep=tmp_path, folds=(0,))["trials"]
    assert len(trial["curve"]) <= MOST_POINTS and trial["curve"][-1][0] == 3 * MOST_POINTS - 1
