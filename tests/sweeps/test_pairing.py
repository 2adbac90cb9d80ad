"""Paired stopping: Optuna's rule for one comparison, one rate for a whole trial, and rivals that have no advantage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from segsweep.errors import InputError
from segsweep.sweeps import pairing
from segsweep.sweeps.pairing import RATE, Look, comparable, fewest_cases, looks, verdict, worse
from segsweep.sweeps.run_folder import read_result

CASES = tuple(f"case-{number}" for number in range(12))


def scores(*values: float) -> dict[str, float]:
    return {f"case-{number}": value for number, value in enumerate(values)}


def optunas(own: dict[str, float], best: dict[str, float], *, threshold: float) -> bool:
    """What Optuna's own pruner says of the same scores."""
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.WilcoxonPruner(p_threshold=threshold))
    past = study.ask()
    for step, value in enumerate(best.values()):
        past.report(value, step)
    study.tell(past, float(np.mean(list(best.values()))))
    trial = study.ask()
    for step, value in enumerate(own.values()):
        trial.report(value, step)
    return trial.should_prune()


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("shift", [-0.05, -0.015, 0.0, 0.02])
def test_one_comparison_is_optunas(shift: float) -> None:
    draw = np.random.default_rng(round(1000 * abs(shift)))
    for _ in range(10):
        best = draw.uniform(0.6, 0.9, size=9)
        own = np.round(best + shift + draw.normal(0, 0.03, size=9), 2)
        own[:2] = best[:2]  # differences of zero
        for threshold in (0.1, 0.02):
            found = worse(scores(*own), scores(*best), threshold=threshold)
            assert found == optunas(scores(*own), scores(*best), threshold=threshold)


def test_a_better_mean_is_never_worse() -> None:
    best = scores(*[0.8] * 9, 0.0)
    own = scores(*[0.79] * 9, 0.9)
    assert not worse(own, best, threshold=0.1)
    assert worse({**own, "case-9": 0.0}, best, threshold=0.1)


def test_only_shared_cases_count_and_too_few_of_them_never_do() -> None:
    best = scores(*[0.8] * 8)
    assert not worse({"another": 0.1}, best, threshold=0.1)
    assert not worse(scores(0.1, 0.1, 0.1), best, threshold=0.1)
    assert worse(scores(0.1, 0.1, 0.1, 0.1), best, threshold=0.1)
    assert fewest_cases(share=1.0) == 4
    for share in (0.5, 0.1, 0.05):
        fewest = fewest_cases(share=share)
        low = dict.fromkeys(CASES[:fewest], 0.1)
        high = dict.fromkeys(CASES[:fewest], 0.9)
        assert worse(low, high, threshold=RATE * share)
        del low[CASES[0]]
        assert not worse(low, high, threshold=RATE * share)


def test_a_rival_is_taken_where_it_had_trained_no_larger_a_share() -> None:
    found = [Look(share=share, cases={}) for share in (0.25, 0.5, 1.0)]
    assert comparable(found, share=0.2) is None
    assert comparable(found, share=0.5) is found[1]
    assert comparable(found, share=0.9) is found[1]


class Folder:
    """A trial's folder, as a training leaves it."""

    def __init__(self, path: Path, *, epochs: int = 10) -> None:
        self.path, self.epochs = path, epochs
        path.mkdir(parents=True)

    def validated(self, epoch: int, values: np.ndarray | list[float]) -> None:
        self._write(f"validation-{epoch:05d}.json", self._scores(values))

    def finished(self, values: np.ndarray | list[float], *, status: str = "finished") -> None:
        self._write("validation.json", self._scores(values))
        dice = float(np.mean(values))
        self._write("result.json", {"status": status, "epoch": self.epochs, "epochs": self.epochs, "dice": dice})

    def _scores(self, values: np.ndarray | list[float]) -> dict[str, Any]:
        return {name: {"Eye": value, "Brain": value} for name, value in zip(CASES, values, strict=False)}

    def _write(self, name: str, content: Any) -> None:
        (self.path / name).write_text(json.dumps(content))


def test_a_folders_validations_in_their_order(tmp_path: Path) -> None:
    trial = Folder(tmp_path / "trial-0000", epochs=10)
    assert looks(trial.path, epochs=10) == ()
    trial.validated(4, [0.5, 0.6])
    trial.validated(2, [0.3, 0.4])
    (trial.path / "validation.json").write_text("{}")
    assert [look.share for look in looks(trial.path, epochs=10)] == [0.2, 0.4]
    assert looks(trial.path, epochs=10)[0].cases == pytest.approx({"case-0": 0.3, "case-1": 0.4})
    trial.finished([0.8, 0.8])
    assert [look.share for look in looks(trial.path, epochs=10)] == [0.2, 0.4, 1.0]
    (trial.path / "validation-00002.json").write_text('{"case-0"')
    with pytest.raises(InputError, match=r"validation-00002\.json: cannot be used .*delete it"):
        looks(trial.path, epochs=10)


@pytest.mark.parametrize("fold", ["", "fold-2"])
def test_the_best_finished_trial_is_the_rival_and_else_the_best_running_one(tmp_path: Path, fold: str) -> None:
    own, other, third = (Folder(tmp_path / f"trial-000{number}" / fold) for number in range(3))
    running = {own.path: 10, other.path: 10}
    own.validated(5, np.full(12, 0.5))
    assert not verdict(own.path, running=running, ended={}), "there is no rival yet"
    other.validated(6, np.full(12, 0.7))
    assert not verdict(own.path, running=running, ended={}), "the other had trained longer"
    other.validated(4, np.full(12, 0.6))
    assert verdict(own.path, running=running, ended={})
    assert not verdict(other.path, running=running, ended={})
    third.validated(5, np.full(12, 0.4))
    third.finished(np.full(12, 0.9))
    assert not verdict(own.path, running=running, ended={}), "the best finished one was no better after so many epochs"
    third.validated(5, np.full(12, 0.55))
    assert verdict(own.path, running=running, ended={})
    third.finished(np.full(12, 0.9), status="stopped_early")
    assert verdict(own.path, running=running, ended={}), "the other one is the rival again"


def test_a_trial_that_ended_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of trials, a verdict reads the new results and the best rival's scans."""
    read: list[Path] = []
    monkeypatch.setattr(pairing, "read_result", lambda folder: read.append(folder) or read_result(folder))
    folders = [Folder(tmp_path / f"trial-{number:04d}") for number in range(6)]
    own, last = folders[0], folders[-1]
    own.validated(5, np.full(12, 0.5))
    for number, trial in enumerate(folders[1:-1]):
        trial.validated(5, np.full(12, 0.6))
        trial.finished(np.full(12, 0.7 + number / 100))
    ended: dict[Path, Any] = {}
    for _ in range(2):
        assert verdict(own.path, running={own.path: 10}, ended=ended)
    assert sorted(read) == [trial.path for trial in folders[1:-1]]
    last.validated(5, np.full(12, 0.4))
    last.finished(np.full(12, 0.9))
    assert not verdict(own.path, running={own.path: 10}, ended=ended)
    assert read[4:] == [last.path]


@pytest.mark.parametrize("lasting", [0.0, 1.0])
def test_equal_trials_are_stopped_at_most_at_the_rate_and_a_worse_one_is(tmp_path: Path, lasting: float) -> None:
    """Every trial is as good as any; what differs by case is drawn at each validation, or once for a trial (`lasting`)."""
    draw = np.random.default_rng(7)
    difficulty = draw.uniform(0.5, 0.9, size=12)
    sweeps, trials, stopped, caught = 12, 7, 0, 0
    for sweep in range(sweeps):
        for number in range(trials):
            trial = Folder(tmp_path / f"{sweep}" / f"trial-{number:04d}", epochs=10)
            own = draw.normal(0, 0.03, size=12)
            told = False
            worst = number == trials - 1
            for epoch in (3, 6, 9, 10):
                once = draw.normal(0, 0.03, size=12)
                values = difficulty * epoch / 10 + lasting * own + (1 - lasting) * once - 0.15 * worst
                if epoch == 10:
                    trial.finished(values)
                    break
                trial.validated(epoch, values)
                told = told or verdict(trial.path, running={trial.path: 10}, ended={})
            stopped, caught = stopped + (told and not worst), caught + (told and worst)
    assert stopped / (sweeps * (trials - 1)) <= RATE
    assert caught == sweeps
