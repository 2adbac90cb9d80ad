"""A study outlives its database: it is made again from its record, trial by trial, and only where the database knows less."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from segsweep.data import storage
from segsweep.errors import InputError
from segsweep.sweeps import tuning_record
from segsweep.sweeps.tuning_record import FILE, StudyRecord, described
from segsweep.sweeps.tuning_study import HAD, MEMORY, open_study


class Machine:
    """A driver's machine, with a database of its own."""

    def __init__(self, folder: Path, *, uri: str) -> None:
        self.folder, self.uri = folder, uri
        folder.mkdir()

    def study(self, **settings: Any) -> optuna.Study:
        database = f"sqlite:///{self.folder / 'studies.db'}"
        return open_study(database, name="toy", settings={"space": "toy", **settings}, seed=3, record=self.uri)


@pytest.fixture
def uri(object_storage: Any) -> str:
    return f"{object_storage.uri}/sweeps/toy/{FILE}"


def fill(study: optuna.Study) -> None:
    """One trial of each kind: complete, stopped, failed, running, queued."""
    complete, stopped, failed, running = (study.ask() for _ in range(4))
    for trial in (complete, stopped, running):
        trial.suggest_categorical("patch", ["large", "small"])
        trial.suggest_float("rate", 1e-4, 1e-2, log=True)
        trial.set_user_attr("segsweep.config", {"patch": "large"})
    for step in (1, 2):
        complete.report(0.1 * step, step=step)
    complete.set_constraint(MEMORY, HAD)
    study.tell(complete, 0.5)
    study.tell(stopped, state=TrialState.PRUNED)
    study.tell(failed, state=TrialState.FAIL)
    study.enqueue_trial({"rate": 2e-3}, user_attrs={"row": "third"})


def test_a_study_is_made_again_as_it_was(tmp_path: Path, uri: str) -> None:
    before = Machine(tmp_path / "a", uri=uri).study()
    fill(before)
    StudyRecord(before, uri=uri).save(now=True)
    after = Machine(tmp_path / "b", uri=uri).study()
    assert described(after) == described(before)
    assert [trial.state.name for trial in after.trials] == ["COMPLETE", "PRUNED", "FAIL", "RUNNING", "WAITING"]
    assert [trial.params for trial in after.trials] == [trial.params for trial in before.trials]
    assert after.trials[0].constraints == {MEMORY: HAD} and after.best_value == 0.5
    assert after.ask().suggest_float("rate", 1e-4, 1e-2, log=True) == 2e-3, "what is queued comes next"


def test_a_study_that_knows_more_is_left_alone_and_one_that_knows_less_is_made_again(tmp_path: Path, uri: str) -> None:
    here, there = Machine(tmp_path / "a", uri=uri), Machine(tmp_path / "b", uri=uri)
    study = here.study()
    study.ask()
    StudyRecord(study, uri=uri).save(now=True)
    study.tell(0, 0.25)
    assert here.study().trials[0].state == TrialState.COMPLETE
    other = there.study()
    assert other.trials[0].state == TrialState.RUNNING
    other.tell(0, 0.5)
    StudyRecord(other, uri=uri).save(now=True)
    assert here.study().trials[0].value == 0.25, "it says as much"
    other.ask()
    StudyRecord(other, uri=uri).save(now=True)
    assert [trial.value for trial in here.study().trials] == [0.5, None], "another machine went on"


def test_a_study_that_was_half_made_again_is_made_again(
    tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Machine(tmp_path / "a", uri=uri).study()
    fill(before)
    StudyRecord(before, uri=uri).save(now=True)
    killed = Machine(tmp_path / "b", uri=uri)
    with monkeypatch.context() as patch:
        patch.setattr(optuna.Study, "set_user_attr", lambda *_words: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            killed.study()
    assert described(killed.study()) == described(before)


def test_records_of_ended_trials_are_not_written_every_time(
    object_storage: Any, tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = StudyRecord(Machine(tmp_path / "a", uri=uri).study(), uri=uri)
    writings = []
    for now in (True, False, False, True):
        record.save(now=now)
        writings.append(sum(request.startswith("PUT") and FILE in request for request in object_storage.requests))
    assert writings == [1, 1, 1, 2]
    monkeypatch.setattr(tuning_record, "PAUSE", 0.0)
    record.save(now=False)
    assert storage.exists(uri) and len(object_storage.requests) > writings[-1]
    object_storage.requests.clear()
    StudyRecord(Machine(tmp_path / "b", uri="").study(), uri="").save(now=True)
    assert object_storage.requests == []


def test_a_damaged_record_is_named(tmp_path: Path, uri: str) -> None:
    storage.write_bytes(uri, b'{"trials": [')
    with pytest.raises(InputError, match=r"toy/study\.json: cannot be used .*choose another name="):
        Machine(tmp_path / "a", uri=uri).study()


@pytest.mark.usefixtures("hasty")
def test_a_storage_that_is_away_is_waited_for(tmp_path: Path, object_storage: Any, uri: str) -> None:
    before = Machine(tmp_path / "a", uri=uri).study()
    fill(before)
    object_storage.faults = {"PUT": [503, 503], f"HEAD {uri.removeprefix('s3:/')}": [503], "GET": [503]}
    StudyRecord(before, uri=uri).save(now=True)
    assert described(Machine(tmp_path / "b", uri=uri).study()) == described(before)
    assert not any(object_storage.faults.values())
