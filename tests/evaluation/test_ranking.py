"""Ranks by hand, and Kendall's tau against SciPy's."""

import numpy as np
import pytest
from scipy import stats

from segsweep.evaluation.ranking import Contest, contest, kendall, ranking


def made(*models, metrics=1):
    """Tables (cases, structures) of each model; every metric has the same values."""
    scores = np.stack([np.asarray(table, dtype=float) for table in models])
    return Contest(models=tuple("abcdef"[: len(models)]), scores=np.repeat(scores[..., None], metrics, axis=-1))


# Two cases, three structures: `a` has the better mean in one structure only, but by much, so that it leads both cases.
STRONG = [[0.9, 0.5, 0.5], [0.9, 0.5, 0.5]]
EVEN = [[0.5, 0.6, 0.6], [0.5, 0.6, 0.6]]


def test_structures_and_cases_name_different_winners():
    given = made(STRONG, EVEN, metrics=2)
    np.testing.assert_allclose(given.ranks("structures")[0], [(1 + 2 + 2) / 3, (2 + 1 + 1) / 3])
    np.testing.assert_allclose(given.ranks("cases")[0], [1.0, 2.0])
    assert ranking(given, by="cases")["models"]["a"]["place"] == 1
    assert ranking(given, by="structures")["models"]["a"]["place"] == 2


def test_ties_share_and_a_model_without_scores_comes_last():
    given = made([[0.5, np.nan]], [[0.5, 0.1]], [[np.nan, np.nan]])
    np.testing.assert_allclose(given.ranks("structures")[0], [(1.5 + 2.5) / 2, (1.5 + 1) / 2, (3 + 2.5) / 2])


def test_a_structure_that_no_model_has_counts_for_nobody():
    given = made([[0.5, np.nan]], [[0.4, np.nan]])
    np.testing.assert_allclose(given.ranks("structures")[0], [1.0, 2.0])
    np.testing.assert_allclose(given.tested(), [1.5, 1.5])


def test_by_tests_models_tie_unless_they_differ():
    random = np.random.default_rng(0)
    first = random.uniform(0.5, 0.9, (12, 1))
    same = first + random.normal(0, 0.02, (12, 1))
    worse = first - random.uniform(0.1, 0.2, (12, 1))
    given = made(first, same, worse)
    np.testing.assert_allclose(given.tested(), [1.5, 1.5, 3.0])
    assert given.ranks("structures")[0].tolist() != given.tested().tolist()


def test_weights_count_cases():
    given = made([[0.9], [0.1], [0.3]], [[0.5], [0.5], [0.5]])
    drawn = given.ranks("structures", weights=np.array([[3.0, 0, 0], [0, 2, 1]]))
    np.testing.assert_allclose(drawn, [[1, 2], [2, 1]])
    np.testing.assert_allclose(given.ranks("cases", weights=np.array([[1.0, 1, 1]])), [[5 / 3, 4 / 3]])


def test_stability_of_a_sure_and_of_an_unsure_order():
    random = np.random.default_rng(1)
    base = random.uniform(0.4, 0.6, (10, 2))
    sure = ranking(made(base + 0.2, base, base - 0.2), by="structures")
    assert (sure["kendall_tau"]["mean"], sure["models"]["a"]["first"], sure["models"]["c"]["places"]) == (1, 1, [3, 3])
    assert sure["models"]["b"]["normalised"] == pytest.approx(2 / 3)
    twin = ranking(made(base, base, base - 0.2), by="structures")
    assert (twin["models"]["a"]["first"], twin["models"]["b"]["place"]) == (0.5, 1)
    noisy = ranking(made(*random.uniform(0, 1, (3, 8, 2))), by="structures")
    assert 0 < noisy["models"]["a"]["first"] < 1
    assert noisy["kendall_tau"]["low"] < noisy["kendall_tau"]["mean"] < 1
    assert sum(one["first"] for one in noisy["models"].values()) == pytest.approx(1)


def test_kendall_is_tau_b():
    random = np.random.default_rng(0)
    ranks, others = np.array([1, 2, 2, 4, 5.0]), random.integers(1, 4, (20, 5)).astype(float)
    expected = np.array([stats.kendalltau(ranks, other)[0] for other in others], dtype=float)
    np.testing.assert_allclose(kendall(ranks, others=others), expected[~np.isnan(expected)])
    assert len(kendall(ranks, others=np.ones((1, 5)))) == 0


def test_only_cases_that_all_models_were_scored_on():
    tables = {
        "a": {"dice": np.array([[0.5], [np.nan]]), "nsd": np.array([[0.5], [np.nan]])},
        "b": {"dice": np.array([[0.4], [0.9]]), "nsd": np.array([[0.4], [0.9]])},
    }
    given = contest(tables, metrics=("dice", "nsd"))
    assert given.scores.shape == (2, 1, 1, 2)
    assert ranking(given, by="structures")["models"]["a"]["place"] == 1
    tables["a"] = {metric: np.full((2, 1), np.nan) for metric in ("dice", "nsd")}
    assert ranking(contest(tables, metrics=("dice", "nsd")), by="structures") == {}
