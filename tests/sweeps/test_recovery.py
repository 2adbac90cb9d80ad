"""Which failed trials are begun again: those whose process died, unless it dies again and again without an epoch in between."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import ray.tune
from ray.exceptions import ActorDiedError
from ray.util import placement_group, placement_group_table

from segsweep.errors import InputError
from segsweep.sweeps.folds import report_of
from segsweep.sweeps.orphans import free_orphans
from segsweep.sweeps.recovery import BEGIN_AGAIN, MOST_DEATHS, OWN_ERROR, Recovery, own_errors, own_sentences


class Trial(SimpleNamespace):
    """What of a trial of Tune's counts here."""

    def __init__(self, folder: Path) -> None:
        log = folder / "error.txt"
        log.write_text("The actor died.\n")
        super().__init__(
            trial_id="t", config={"folder": str(folder / "trial-0003")}, error_file=str(log), num_failures=0,
            max_failures=BEGIN_AGAIN.max_failures,
        )  # fmt: skip

    def dies(self, recovery: Recovery, *, preempted: bool = False) -> bool:
        """Whether Tune begins it again."""
        self.num_failures += not preempted
        again = self.max_failures < 0 or self.num_failures <= self.max_failures
        if again:
            recovery.on_trial_recover(0, [], self)
        else:
            recovery.on_trial_error(0, [], self)
        return again

    def reports(self, recovery: Recovery, **report: Any) -> None:
        recovery.on_trial_result(0, [], self, report)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def recovery(said: list[str]) -> Recovery:
    return Recovery(lambda name, _done, _total, words: said.append(f"{name}: {words}"))


def test_a_trial_survives_any_number_of_deaths_with_epochs_in_between(
    recovery: Recovery, said: list[str], tmp_path: Path
) -> None:
    trial = Trial(tmp_path)
    for epoch in range(1, 4 * MOST_DEATHS):
        assert trial.dies(recovery)
        trial.reports(recovery, **report_of({"epoch": epoch}, fold=1, first=False))
    assert said == ["trial-0003: its process died, or the node under it; it goes on from its last checkpoint"] * (
        4 * MOST_DEATHS - 1
    )
    for _ in range(MOST_DEATHS):
        assert trial.dies(recovery)
        trial.reports(recovery, waiting=2, since=0.0)
    assert not trial.dies(recovery), "it only waited"
    assert (
        (tmp_path / "error.txt")
        .read_text()
        .endswith(
            f"its process died {MOST_DEATHS + 1} times without an epoch in between; see what ended it in the logs of Ray, "
            "then give the same command again\n"
        )
    )


def test_deaths_on_drained_nodes_do_not_count(recovery: Recovery, tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    assert all(trial.dies(recovery, preempted=True) for _ in range(5 * MOST_DEATHS))
    assert all(trial.dies(recovery) for _ in range(MOST_DEATHS))
    assert not trial.dies(recovery)


def test_an_error_of_its_own_ends_a_trial_with_that_error(recovery: Recovery, said: list[str], tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    assert trial.dies(recovery)
    trial.reports(recovery, **{OWN_ERROR: True})
    assert not trial.dies(recovery)
    assert (tmp_path / "error.txt").read_text() == "The actor died.\n" and len(said) == 1


def test_only_errors_that_are_no_deaths_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(ray.tune, "report", told.append)
    with pytest.raises(ActorDiedError), own_errors():
        raise ActorDiedError
    assert told == []
    with pytest.raises(KeyError), own_errors():
        raise KeyError("case")
    assert told == [{OWN_ERROR: True}]


class Controller:
    """Holds a place for workers, as Ray Train's does."""

    def reserve(self) -> None:
        ray.get(placement_group([{"CPU": 1}]).ready())

    def answer(self) -> None: ...


def states() -> list[str]:
    return sorted(group["state"] for group in placement_group_table().values() if group["state"] != "REMOVED")


@pytest.mark.usefixtures("cluster")
def test_places_of_workers_are_freed_when_their_controller_is_dead_and_not_before() -> None:
    before = states()
    mine = placement_group([{"memory": 1}])
    ray.get(mine.ready())
    controller: Any = ray.remote(num_cpus=0)(Controller)
    living, dying = controller.remote(), controller.remote()
    ray.get([living.reserve.remote(), dying.reserve.remote()])
    assert states() == [*before, *["CREATED"] * 3]
    ray.kill(dying)
    with pytest.raises(ActorDiedError):
        while True:
            ray.get(dying.answer.remote())
    for _ in range(100):
        free_orphans()
        if len(states()) < len(before) + 3:
            break
    assert states() == [*before, *["CREATED"] * 2]
    ray.util.remove_placement_group(mine)
    ray.kill(living)
    while states() != before:
        free_orphans()


def as_tune_does(error: Exception) -> None:
    """Its loop says as text alone what a callback raised."""
    try:
        raise error
    except Exception:
        raise ray.tune.TuneError("Traceback (most recent call last): …")  # noqa: B904


@own_sentences()
def loop(error: Exception) -> None:
    as_tune_does(error)


def test_an_error_of_ours_in_a_callback_is_its_sentence() -> None:
    with pytest.raises(InputError, match=r"result\.json is damaged") as raised:
        loop(InputError("result.json is damaged"))
    assert raised.value.__suppress_context__
    with pytest.raises(ray.tune.TuneError, match="Traceback"):
        loop(KeyError("dice"))
