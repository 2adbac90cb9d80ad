"""Studies in a real PostgreSQL: shared by drivers, there again after a restart, and one sentence where it refuses."""

import json
import multiprocessing
import sys
import threading
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune import TuneError
from ray.tune.search import Searcher

from segsweep.errors import ResourceError
from segsweep.sweeps import tuning_database
from segsweep.sweeps.tuning_database import open_database, studied
from segsweep.sweeps.tuning_study import StudySearch, open_study, trial_folder


class Shared:
    """A sweep's folder, and its study in a database that nobody has used yet; every `search` is what a new driver would make."""

    def __init__(self, folder: Path, *, storage: str) -> None:
        self.folder, self.storage = folder, storage

    def study(self) -> optuna.Study:
        return open_study(self.storage, name="toy", settings={}, seed=3)

    def search(self, *, trials: int) -> StudySearch:
        return StudySearch(
            self.study(),
            suggest_config=lambda trial: {"foreground": trial.suggest_float("foreground", 0.2, 0.8)},
            sweep=self.folder,
            trials=trials,
            report=lambda *_: None,
        )

    def end(self, number: int, *, dice: float) -> None:
        folder = trial_folder(self.folder, number=number)
        folder.mkdir()
        (folder / "result.json").write_text(json.dumps({"status": "finished", "dice": dice}))


@pytest.fixture
def shared(postgres: Any, tmp_path: Path) -> Shared:
    postgres.create(tmp_path.name)
    return Shared(tmp_path, storage=postgres.network(tmp_path.name))


def ask_often(sweep: Shared, ready: Any, times: int) -> None:
    """What a driver does, in a process of its own; all of them begin at once."""
    if ready.wait() == 0:
        sweep.study()
    else:
        open_database(sweep.storage)
    ready.wait()
    study = sweep.study()
    for _ in range(times):
        study.ask()


@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_four_drivers_on_one_new_database_share_out_the_trials(shared: Shared, times: int) -> None:
    # Forked: to import Ray and torch four times would take longer than all else here.
    forked = multiprocessing.get_context("fork")
    ready = forked.Barrier(4)
    drivers = [forked.Process(target=ask_often, args=(shared, ready, times)) for _ in range(4)]
    for driver in drivers:
        driver.start()
    for driver in drivers:
        driver.join()
    assert [driver.exitcode for driver in drivers] == [0] * 4
    assert [trial.number for trial in shared.study().trials] == list(range(4 * times))


def test_a_database_that_starts_again_between_two_trials_is_waited_for(
    shared: Shared, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning_database, "RECONNECT_WAITS", (0.1,) * 600)
    search = shared.search(trials=3)
    assert search.suggest("tune-0") != search.suggest("tune-1")
    shared.end(0, dice=0.5)
    search.on_trial_complete("tune-0")
    postgres.control("restart", "-m", "fast")
    shared.end(1, dice=0.75)
    search.on_trial_complete("tune-1")
    postgres.control("stop", "-m", "immediate")
    starting = threading.Timer(0.5, postgres.control, args=("start",))
    starting.start()
    assert search.suggest("tune-2") != Searcher.FINISHED
    starting.join()
    assert [(trial.state, trial.value) for trial in shared.study().trials] == [
        (TrialState.COMPLETE, 0.5),
        (TrialState.COMPLETE, 0.75),
        (TrialState.RUNNING, None),
    ]
    found = shared.search(trials=3).suggest("tune-3")
    assert found and found["folder"] == str(shared.folder / "trial-0002"), "what a driver that died had begun"


def begin_as_tune_does(storage: str) -> None:
    """Ray Tune says what happened within its loop as text alone."""
    try:
        optuna.create_study(storage=storage)
    except Exception:
        raise TuneError("Traceback (most recent call last): …")  # noqa: B904


def test_what_a_database_refuses_is_one_sentence_without_its_password(
    shared: Shared, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.study()
    shared.storage += "?options=-cdefault_transaction_read_only%3Don"  # as full a database answers: to writers alone
    refused = {
        shared.storage: r"could not do what was asked of it \(cannot execute .* in a read-only transaction\); all that was",
        "postgresql://me:secret@127.0.0.1:1/x": r"'postgresql://127\.0\.0\.1:1/x' cannot be used .*refused",
        postgres.network(shared.folder.name, password="secret"): r"password authentication failed for user",
    }
    for storage, sentence in refused.items():
        with pytest.raises(ResourceError, match=sentence) as raised:
            open_study(storage, name="another", settings={}, seed=3)
        assert not [word for word in ("secret", postgres.password, "\n") if word in str(raised.value)]
        with pytest.raises(ResourceError, match="study database"), studied():
            begin_as_tune_does(storage)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ResourceError, match=r"its driver psycopg is not installed; pip install 'segsweep\[cluster\]'"):
        shared.study()
