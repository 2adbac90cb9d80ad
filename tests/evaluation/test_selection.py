"""Greedy selection: what it finds, what it may cost, and that noise is not sold as gain."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segsweep.errors import ModelError, RecipeError
from segsweep.evaluation import selection
from segsweep.evaluation.contest import Contest
from segsweep.evaluation.contested import Reference, contest
from segsweep.evaluation.decision import Decision
from segsweep.evaluation.ensembles import Ensembles, one_hot, score
from segsweep.evaluation.measure import Measure
from segsweep.evaluation.selection import PATIENCE, PICKS, Choice, Limits, choose, select

MEMBERSHIP = np.array([[0, 0], [1, 0], [0, 1]], dtype=bool)
DECISION = Decision(membership=MEMBERSHIP, channels="atoms")
SHAPE = (4, 10, 10)


def case(name: str, *, label: NDArray, certain: Sequence[NDArray]) -> Contest:
    """A case whose candidates hold `certain` for the true atom (at least 0; more than 0.5 is right) and the rest for the next one."""
    values = []
    for share in certain:
        probabilities = np.zeros((3, *SHAPE))
        np.put_along_axis(probabilities, label[None], share[None], axis=0)
        np.put_along_axis(probabilities, (label[None] + 1) % 3, 1 - share[None], axis=0)
        values.append(np.rint(255 * probabilities).astype(np.uint8))
    return contest(
        name,
        candidates=[lambda part, scan=scan: scan[:, part] for scan in values],
        decision=DECISION,
        reference=Reference(label=label, spacing=(1.0, 1.0, 1.0), membership=MEMBERSHIP, ignored=3, annotated=(0, 1)),
        measure=Measure(),
    )


def complementary(count: int = 6) -> list[Contest]:
    """Candidates 0 and 1 are sure and right in one half, unsure and partly wrong in the other; 2 is everywhere a bit better."""
    found = []
    for number in range(count):
        generator = np.random.default_rng(number)
        label = generator.integers(0, 3, SHAPE)
        low = np.arange(SHAPE[2]) < SHAPE[2] // 2
        unsure = [np.where(generator.random(SHAPE) < 0.5, 0.4, 0.55) for _ in range(2)]
        left, right = np.where(low, 0.95, unsure[0]), np.where(low, unsure[1], 0.95)
        even = np.where(generator.random(SHAPE) < 0.2, 0.3, 0.7)
        found.append(case(f"case{number}", label=label, certain=(left, right, even)))
    return found


def noise(count: int = 12, candidates: int = 6, seed: int = 1) -> list[Contest]:
    """Candidates that know nothing."""
    found = []
    for number in range(count):
        generator = np.random.default_rng(100 * seed + number)
        label = generator.integers(0, 3, SHAPE)
        found.append(case(f"case{number}", label=label, certain=list(generator.random((candidates, *SHAPE)))))
    return found


def chosen(ensembles: Ensembles, *, costs: Sequence[float], limits: Limits) -> Choice:
    """The choice by all cases."""
    patients = [np.array([index]) for index in range(len(ensembles.contests))]
    return choose(ensembles, patients=patients, costs=costs, limits=limits)


def plain_score(scans: Sequence[NDArray], *, labels: Sequence[NDArray], picks: Sequence[int]) -> float:
    """Mean Dice of the mean of these candidates (with repetition), from whole volumes; `scans` are (candidates, k, z, y, x)."""
    dice = []
    for volumes, label in zip(scans, labels, strict=True):
        found = np.argmax(np.sum([volumes[index].astype(int) for index in picks], axis=0), axis=0)
        pairs = [(found == atom, label == atom) for atom in (1, 2)]
        dice.append([2 * (mine & drawn).sum() / (mine.sum() + drawn.sum()) for mine, drawn in pairs])
    return float(np.mean(dice, axis=0).mean())


@pytest.mark.parametrize("seed", range(3))
def test_the_search_is_that_of_the_definition_on_whole_volumes(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = [generator.integers(0, 3, SHAPE) for _ in range(3)]
    scans = [
        np.rint(255 * generator.dirichlet([1, 1, 1], (4, *SHAPE)) * 0.6 + 102 * np.eye(3)[label]) for label in labels
    ]
    scans = [np.moveaxis(volumes, -1, 1).astype(np.uint8) for volumes in scans]
    picks: list[int] = []
    reached: list[float] = []
    for _ in range(PICKS):
        found = [plain_score(scans, labels=labels, picks=[*picks, index]) for index in range(4)]
        picks.append(int(np.argmax(found)))
        reached.append(max(found))
        if len(picks) - int(np.argmax(reached)) > PATIENCE:
            break
    expected = np.bincount(picks[: int(np.argmax(reached)) + 1], minlength=4)
    contests = [
        contest(
            f"case{number}",
            candidates=[lambda part, scan=scan: scan[:, part] for scan in volumes],
            decision=DECISION,
            reference=Reference(
                label=label, spacing=(1.0, 1.0, 1.0), membership=MEMBERSHIP, ignored=3, annotated=(0, 1)
            ),
            measure=Measure(),
        )
        for number, (volumes, label) in enumerate(zip(scans, labels, strict=True))
    ]
    ensembles = Ensembles(contests)
    choice = chosen(ensembles, costs=[1.0] * 4, limits=Limits(bags=1))
    assert (choice.weights * expected.sum()).tolist() == pytest.approx(expected.tolist())
    assert score(ensembles.table(choice.shares)) == pytest.approx(max(reached), abs=1e-12)


def test_greedy_finds_the_pair_that_the_best_single_misses() -> None:
    ensembles = Ensembles(complementary())
    singles = [score(ensembles.table(one_hot(index, count=3))) for index in range(3)]
    assert np.argmax(singles) == 2
    found = select(ensembles, costs=[1.0, 1.0, 1.0], limits=Limits(bags=1))
    assert {0, 1} <= set(found.choice.members)
    reached = score(ensembles.table(found.choice.shares))
    assert reached > max(singles) + 0.05
    assert found.choice.best == 2
    assert found.better
    assert found.nested.gain.low > 0.05
    assert found.nested.gain.cases == 6
    assert found.nested.chosen.mean - found.nested.single.mean == pytest.approx(found.nested.gain.mean)
    assert found.nested.chosen.mean - found.nested.mean.mean == pytest.approx(found.nested.gain_over_mean.mean)
    assert all(found.gains[index] > 0 for index in (0, 1))


def test_noise_shows_no_gain_on_cases_not_chosen_by() -> None:
    found = select(Ensembles(noise()), costs=[1.0] * 6, limits=Limits(bags=5))
    assert not found.better
    assert found.nested.gain.low <= 0 <= found.nested.gain.high


def test_nested_gain_is_of_cases_that_the_choice_did_not_see() -> None:
    # One case a fold: chosen by that case, no gain could be below zero.
    found = [
        select(Ensembles(noise(count=5, seed=seed)), costs=[1.0] * 6, limits=Limits(bags=2)) for seed in range(1, 5)
    ]
    assert min(one.nested.gain.mean for one in found) < 0


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bags", [1, 4])
def test_never_worse_than_the_best_single_on_the_selection_cases(seed: int, bags: int) -> None:
    ensembles = Ensembles(noise(count=5, candidates=5))
    choice = chosen(ensembles, costs=[1.0] * 5, limits=Limits(bags=bags, seed=seed))
    singles = [score(ensembles.table(one_hot(index, count=5))) for index in range(5)]
    assert choice.best == np.argmax(singles)
    assert [singles[index] for index in choice.order] == sorted(singles, reverse=True)
    assert score(ensembles.table(choice.shares)) >= max(singles)


def test_where_no_mean_is_better_the_best_single_is_taken() -> None:
    generator = np.random.default_rng(0)
    contests = []
    for number in range(5):
        label = generator.integers(0, 3, SHAPE)
        right = np.full(SHAPE, 0.9)
        contests.append(case(f"case{number}", label=label, certain=(1 - right, right, 1 - right)))
    found = select(Ensembles(contests), costs=[1.0] * 3, limits=Limits(bags=3))
    assert found.choice.weights.tolist() == [0, 1, 0]
    assert np.isnan(found.gains).all()
    assert not found.better
    assert found.nested.gain.mean == 0


@pytest.mark.parametrize("bags", [1, 6])
def test_budgets_hold(bags: int) -> None:
    ensembles = Ensembles(noise(count=6))
    costs = [1.0, 2.0, 4.0, 8.0, 3.0, 0.5]
    for budget, most in ((3.5, 6), (7.0, 2), (100.0, 2)):
        limits = Limits(budget_seconds=budget, most=most, bags=bags)
        choice = chosen(ensembles, costs=costs, limits=limits)
        assert sum(costs[index] for index in choice.members) <= budget
        assert len(choice.members) <= most
        assert costs[choice.best] <= budget
        assert choice.weights.sum() == pytest.approx(1)


def test_budget_below_every_candidate_is_refused() -> None:
    with pytest.raises(
        ModelError, match=r"no candidate segments a case within budget_seconds=0\.1 .*fastest takes 2 s"
    ):
        chosen(Ensembles(noise(count=5, candidates=2)), costs=[3.0, 2.0], limits=Limits(budget_seconds=0.1))


def test_cases_of_one_patient_count_once() -> None:
    contests = complementary()
    with pytest.raises(ModelError, match="2 independent cases are out of fold for all candidates; expected at least 5"):
        select(Ensembles(contests), costs=[1.0] * 3, limits=Limits(), groups=["p", "q"] * 3)


def test_every_search_is_told() -> None:
    told: list[tuple[int, int]] = []
    select(Ensembles(noise(count=5)), costs=[1.0] * 6, limits=Limits(bags=2), progress=lambda *done: told.append(done))
    assert told == [(done, 12) for done in range(1, 13)]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"budget_seconds": 0.0}, "budget_seconds=0.0"),
        ({"most": 0}, "most=0"),
        ({"bags": 0}, "bags=0"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_limits_must_allow_something(values, sentence: str) -> None:
    with pytest.raises(RecipeError, match=f"{sentence} cannot be used: expected"):
        dataclasses.replace(Limits(), **values)


def test_a_bag_is_of_patients_with_all_their_cases_and_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    greedy = selection._greedy

    def recorded(ensembles: Ensembles, *, cases: NDArray[np.intp], **values: Any) -> NDArray[np.int64]:
        asked.append(cases.tolist())
        return greedy(ensembles, cases=cases, **values)

    monkeypatch.setattr(selection, "_greedy", recorded)
    ensembles = Ensembles(noise(count=6))
    patients = [np.array(cases) for cases in ([0, 1], [2], [3, 4], [5])]
    for seed in (0, 0, 1):
        choose(ensembles, patients=patients, costs=[1.0] * 6, limits=Limits(bags=4, seed=seed))
    assert asked[:4] == asked[4:8] != asked[8:]
    assert any(len(set(bag)) < 6 for bag in asked)
    for bag in asked:
        assert bag.count(0) == bag.count(1) and bag.count(3) == bag.count(4)
    choose(ensembles, patients=patients, costs=[1.0] * 6, limits=Limits(bags=1))
    assert asked[12:] == [[0, 1, 2, 3, 4, 5]]
