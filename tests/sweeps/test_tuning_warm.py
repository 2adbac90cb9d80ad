"""A warm start: what earlier sweeps found out is known to the sampler, and is no trial of this sweep."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from segsweep.errors import RecipeError
from segsweep.sweeps.shortage import note
from segsweep.sweeps.tuning_sampling import WARM, FixedTrial
from segsweep.sweeps.tuning_study import StudySearch, ended_trials, open_study, trial_folder, trials_left
from segsweep.sweeps.tuning_warm import earlier_studies, learn_from


def space(trial: Any) -> dict[str, Any]:
    """A narrower space than the earlier sweep's."""
    return {
        "loss": trial.suggest_categorical("loss", ("dice", "focal")),
        "foreground": trial.suggest_float("foreground", 0.2, 0.8),
    }


@pytest.fixture
def storage(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'studies.db'}"


def earlier(storage: str, *, folder: Path, fixed: dict[str, Any]) -> optuna.Study:
    """A sweep of five trials: two that ended well, one of them beyond the narrower space, and one of every other end."""
    study = open_study(storage, name="earlier", settings={"fixed": fixed}, seed=0)
    search = StudySearch(
        study,
        suggest_config=lambda trial: space(FixedTrial(trial, fixed=fixed)),
        sweep=folder,
        trials=5,
        report=lambda *_: None,
    )
    for number, foreground in enumerate((0.3, 0.5, 0.4, 0.6, 0.7)):
        study.enqueue_trial({"loss": "focal", "foreground": foreground})
        search.suggest(f"tune-{number}")
        trial_folder(folder, number=number).mkdir(parents=True)
    for number, text in ((0, '"finished", "dice": 0.8'), (1, '"finished", "dice": 0.7'), (2, '"stopped_early"')):
        (trial_folder(folder, number=number) / "result.json").write_text(f'{{"status": {text}, "epoch": 3}}')
    note(trial_folder(folder, number=3), patch_size=(16, 32, 32), batch_size=2)
    for number in range(4):
        search.on_trial_complete(f"tune-{number}", error=number == 3)
    return study


def test_only_finished_trials_that_fit_are_known_and_none_is_the_sweeps_own(storage: str, tmp_path: Path) -> None:
    before = earlier(storage, folder=tmp_path / "earlier", fixed={"loss": "focal", "scan_validation_every": 3})
    (found,) = earlier_studies(storage, names=("earlier",), objectives=("dice",))
    study = open_study(storage, name="now", settings={}, seed=0)
    study.enqueue_trial({"loss": "dice", "foreground": 0.33})
    for _ in range(2):  # the same command again knows no more
        assert learn_from(found, study=study, draw=space, fixed={}) == 2
    known = [trial for trial in study.trials if WARM in trial.user_attrs]
    assert [(trial.params, trial.value) for trial in known] == [
        ({"loss": "focal", "foreground": 0.3}, 0.8),
        ({"loss": "focal", "foreground": 0.5}, 0.7),
    ]
    assert known[0].params["loss"] == "focal", "what that sweep fixed is a value like any other"
    assert study.best_value == 0.8
    assert trials_left(study, trials=3) == 3
    assert ended_trials(study, sweep=tmp_path / "now") == ()
    assert len(ended_trials(before, sweep=tmp_path / "earlier")) == 4
    first = study.ask()
    assert (first.number, space(first)) == (0, {"loss": "dice", "foreground": 0.33})
    # Its sampler takes what it knows for its own: every parameter is drawn from the earlier values.
    assert study.ask().suggest_float("foreground", 0.2, 0.8) != 0.33


def test_other_spaces_and_fixed_values_do_not_fit(storage: str, tmp_path: Path) -> None:
    found = earlier(storage, folder=tmp_path / "earlier", fixed={"loss": "focal"})
    study = open_study(storage, name="now", settings={}, seed=0)

    def narrow(trial: Any) -> None:
        trial.suggest_categorical("loss", ("dice", "focal"))
        trial.suggest_float("foreground", 0.4, 0.8)

    assert learn_from(found, study=study, draw=narrow, fixed={}) == 1
    for loss, count in (("dice", 0), ("focal", 2)):
        other = open_study(storage, name=f"now {loss}", settings={}, seed=0)
        fixed = {"loss": loss}
        draw = lambda trial, fixed=fixed: space(FixedTrial(trial, fixed=fixed))  # noqa: E731
        assert learn_from(found, study=other, draw=draw, fixed=fixed) == count
    for fixed in ({"preset": "small"}, {"iterations": 10}):
        assert learn_from(found, study=study, draw=space, fixed=fixed) == 0, "those trials were larger, or longer"


def test_sweeps_that_are_not_there_or_sought_something_else_are_refused(storage: str, tmp_path: Path) -> None:
    earlier(storage, folder=tmp_path / "earlier", fixed={})
    assert earlier_studies(storage, names=(), objectives=("dice",)) == ()
    with pytest.raises(RecipeError, match=r"warm=erlier: no 'erlier' among sweeps .*did you mean 'earlier'"):
        earlier_studies(storage, names=("erlier",), objectives=("dice",))
    with pytest.raises(
        RecipeError, match="objective was dice, this one's is dice,memory_gb; expected sweeps of the same"
    ):
        earlier_studies(storage, names=("earlier",), objectives=("dice", "memory_gb"))
