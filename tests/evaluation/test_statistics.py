import numpy as np
import pytest
from scipy import stats

from segsweep.evaluation.statistics import difference_interval, holm, mean_interval, mean_ranks, wilcoxon


def test_interval_agrees_with_the_normal_one():
    values = np.random.default_rng(1).normal(0.8, 0.1, 400)
    found = mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=2e-3)
    assert found == mean_interval(values)
    assert found != mean_interval(values, seed=1)


def test_cases_are_drawn_whole_and_structures_weigh_equally():
    table = np.array([[1.0, 0.0], [1.0, np.nan], [1.0, np.nan], [np.nan, np.nan]])
    found = mean_interval(table)
    assert (found.mean, found.cases) == (0.5, 3)
    # Structures that cancel within each case leave no spread over cases; independent draws would.
    opposite = np.array([[0.0, 1.0], [1.0, 0.0], [0.3, 0.7]])
    assert (mean_interval(opposite).low, mean_interval(opposite).high) == pytest.approx((0.5, 0.5))


def test_no_and_one_case():
    assert np.isnan(mean_interval([np.nan]).mean)
    assert mean_interval([]).cases == 0
    one = mean_interval([0.7])
    assert (one.low, one.high) == (0.7, 0.7)


def test_paired_difference_is_narrower_than_its_parts():
    generator = np.random.default_rng(0)
    first = generator.uniform(0.2, 0.9, 50)
    second = first - 0.02 + generator.normal(0, 0.005, 50)
    found = difference_interval(first, second=second)
    assert 0.015 < found.low < 0.02 < found.high < 0.025
    assert difference_interval([1.0, np.nan], second=[0.5, 0.5]).cases == 1


def test_wilcoxon():
    first, second = np.array([0.9, 0.8, 0.7, 0.95, 0.85, 0.6]), np.array([0.8, 0.6, 0.4, 0.55, 0.35, 0.0])
    assert wilcoxon(first, second=second) == pytest.approx(stats.wilcoxon(first, second)[1]) == pytest.approx(0.03125)
    assert wilcoxon(first, second=first) == 1.0
    assert np.isnan(wilcoxon([np.nan], second=[1.0]))


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, np.nan, 0.03, 0.005]), [0.03, 0.06, np.nan, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.9, 0.8]), [1.0, 1.0])


def test_rank_then_average():
    contests = [[0.9, 0.8, 0.7], [0.5, 0.5, np.nan], [0.1, 0.2, 0.3]]
    np.testing.assert_allclose(mean_ranks(contests), [(1 + 1.5 + 3) / 3, (2 + 1.5 + 2) / 3, (3 + 3 + 1) / 3])
