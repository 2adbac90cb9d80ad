"""The rule of promotion: what it says by hand, how often it promotes by mistake, and how often it promotes what is better."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from segsweep.errors import RecipeError
from segsweep.evaluation.promotion import compare, least_cases, studentised_interval
from segsweep.evaluation.statistics import mean_interval

LEVEL, STRUCTURES = 0.95, ("a", "b", "c")
PROMISED = (1 - LEVEL) / 2


def equal_models(kind: str, *, comparisons: int, cases: int, seed: int) -> NDArray[np.float64]:
    """Differences (comparisons, cases, structures) of models that are equally good: of one case they go together."""
    generator = np.random.default_rng(seed)
    whole, own = (comparisons, cases, 1), (comparisons, cases, len(STRUCTURES))
    if kind == "normal":
        return generator.normal(size=whole) + generator.normal(size=own)
    if kind == "heavy tails":
        return generator.standard_t(3, size=whole) + 0.5 * generator.standard_t(3, size=own)
    # "unlike cases": some are a hundred times harder than others
    return generator.normal(size=own) * generator.lognormal(0.0, 1.5, size=whole)


def promoted(differences: NDArray[np.float64], *, choices: int = 1) -> float:
    """Share of comparisons that end in a promotion.

    The rule itself is asked only where the signed ranks, for all comparisons at once, do not exclude a promotion already.
    """
    pvalues = np.asarray(stats.wilcoxon(differences.mean(axis=2), axis=1)[1]) * choices
    possible = (pvalues < 1 - LEVEL) & (differences.mean(axis=(1, 2)) > 0)
    verdicts = [
        compare(table, champion=np.zeros_like(table), structures=STRUCTURES, level=LEVEL, choices=choices)
        for table in differences[possible]
    ]
    return sum(verdict.better for verdict in verdicts) / len(differences)


@pytest.mark.parametrize("cases", [4, 6, 10, 20, 50])
def test_equal_models_are_promoted_no_more_often_than_promised(cases: int) -> None:
    kinds = ("normal", "heavy tails", "unlike cases")
    rates = [promoted(equal_models(kind, comparisons=1000, cases=cases, seed=cases)) for kind in kinds]
    assert np.mean(rates) <= PROMISED, dict(zip(kinds, rates, strict=True))
    assert max(rates) <= PROMISED + 3 * math.sqrt(PROMISED / 1000)
    assert (max(rates) == 0) == (cases < least_cases(LEVEL, choices=1))


def test_the_usual_interval_alone_would_promote_too_often_on_few_cases() -> None:
    """Why there are two locks: on six cases the percentile bootstrap promotes about every fourteenth equal model."""
    differences = equal_models("normal", comparisons=400, cases=6, seed=1)
    alone = np.mean([mean_interval(table, level=LEVEL, resamples=500).low > 0 for table in differences])
    assert alone > 1.5 * PROMISED


def test_the_best_of_many_equal_models_is_promoted_no_more_often_than_promised() -> None:
    """Ten candidates, all as good as the champion; the best one on these cases is compared on these cases."""
    generator = np.random.default_rng(3)
    champion = generator.normal(size=(1000, 20, 1, 3))
    candidates = generator.normal(size=(1000, 20, 10, 3))
    differences = candidates - champion
    best = differences.mean(axis=(1, 3)).argmax(axis=1)
    chosen = differences[np.arange(1000), :, best]
    assert promoted(chosen, choices=10) <= PROMISED
    assert promoted(chosen[:200]) > 3 * PROMISED, "without the correction the choice itself looks like progress"


def test_rare_failures_hold_a_model_back_that_gains_a_little_in_most_cases() -> None:
    """Equal means, most cases better: signed ranks alone would promote it, the interval does not."""
    generator = np.random.default_rng(4)
    values = 1 - generator.exponential(size=(200, 50, 1)) + 0.3 * generator.normal(size=(200, 50, 3))
    pvalues = np.asarray(stats.wilcoxon(values.mean(axis=2), axis=1)[1])
    ranks_alone = np.mean((pvalues < 1 - LEVEL) & (np.median(values.mean(axis=2), axis=1) > 0))
    assert promoted(values) < 3 * PROMISED < ranks_alone


@pytest.mark.parametrize(("cases", "power"), [(10, 0.5), (20, 0.9), (50, 0.99)])
def test_a_model_that_is_better_by_a_standard_deviation_is_promoted(cases: int, power: float) -> None:
    differences = equal_models("normal", comparisons=60, cases=cases, seed=5)
    spread = math.sqrt(1 + 1 / len(STRUCTURES))
    assert promoted(differences + spread) >= power


def test_fewer_cases_than_signed_ranks_need_promote_nothing() -> None:
    assert [least_cases(0.95, choices=1), least_cases(0.99, choices=1), least_cases(0.95, choices=20)] == [6, 8, 10]
    better = np.linspace(0.1, 0.2, 5)[:, None]
    verdict = compare(better, champion=np.zeros((5, 1)), structures=["a"])
    assert not verdict.better and verdict.overall.interval.low > 0
    assert verdict.reason("Dice") == (
        "5 cases are too few to tell; expected at least 6 that neither model was trained on, at level 0.95"
    )
    assert compare(np.linspace(0.1, 0.2, 6)[:, None], champion=np.zeros((6, 1)), structures=["a"]).better


def test_a_verdict_names_the_structures_and_the_numbers() -> None:
    gain = 0.01 * np.random.default_rng(0).normal(size=(30, 3)) + np.array([0.05, -0.03, 0.0])
    champion = np.full((30, 3), 0.8)
    verdict = compare(champion + gain, champion=champion, structures=STRUCTURES, choices=2)
    assert verdict.better and (verdict.found("better"), verdict.found("worse")) == (("a",), ("b",))
    overall = verdict.overall
    assert overall.interval.mean == pytest.approx(gain.mean())
    assert overall.p_corrected == 2 * overall.p
    third = verdict.structures["c"]
    assert third.p_corrected == pytest.approx(min(1.0, 2 * third.p)), "Holm's last, of the best of two"
    found = overall.interval
    assert verdict.reason("Dice") == (
        f"better: Dice {found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}], "
        f"p = {overall.p_corrected:.2g}, as the best of 2, on 30 cases"
    )
    swapped = compare(champion, champion=champion + gain, structures=STRUCTURES)
    assert swapped.overall.finding == "worse" and swapped.reason("Dice").startswith("worse: Dice -0.00")
    same = compare(champion, champion=champion, structures=STRUCTURES)
    assert same.reason("Dice") == "not better with confidence: Dice +0.0000 [+0.0000, +0.0000], p = 1, on 30 cases"


def test_only_what_both_scored_counts_and_structures_weigh_equally() -> None:
    champion = np.zeros((8, 2))
    candidate = np.full((8, 2), 0.2)
    candidate[:, 1], candidate[4:, 1], champion[0] = 0.4, np.nan, np.nan
    verdict = compare(candidate, champion=champion, structures=["a", "b"])
    assert verdict.cases == 7 and verdict.structures["b"].interval.cases == 3
    assert verdict.overall.interval.mean == pytest.approx(0.3)
    nothing = compare(np.full((3, 1), np.nan), champion=np.zeros((3, 1)), structures=["a"])
    assert (nothing.cases, nothing.better) == (0, False) and nothing.reason("Dice").startswith("0 cases are too few")


def test_the_interval_is_that_of_a_mean_and_honest_on_few_cases() -> None:
    many = np.random.default_rng(1).normal(0.02, 0.1, (400, 1))
    found = studentised_interval(many, level=0.95)
    half = 1.96 * many.std() / 20
    assert (found.low, found.high) == pytest.approx((many.mean() - half, many.mean() + half), abs=2e-3)
    assert found == studentised_interval(many, level=0.95)
    few = studentised_interval(many[:8], level=0.95)
    usual = mean_interval(many[:8], level=0.95)
    assert few.low < usual.low < usual.high < few.high
    assert studentised_interval([[0.1]], level=0.95).low == -math.inf
    # Structures that cancel within each case leave no spread over cases.
    opposite = studentised_interval([[0.0, 1.0], [1.0, 0.0], [0.3, 0.7]], level=0.95)
    assert (opposite.low, opposite.high) == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("level", [0.2, 1.0, 95, math.nan])
def test_a_level_that_is_no_confidence_is_refused(level: float) -> None:
    with pytest.raises(RecipeError, match=r"level=.* expected a confidence from 0\.5 up to, not including, 1"):
        least_cases(level, choices=1)
