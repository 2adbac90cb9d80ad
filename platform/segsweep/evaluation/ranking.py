"""Who wins, by the ways in which challenges rank, and how sure the order is when the cases are drawn again (Wiesenfarth et al. 2021)."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from segsweep.evaluation.statistics import holm

Ranked = Literal["structures", "cases"]
RESAMPLES, SEED, LEVEL, CHUNK = 1000, 0, 0.05, 100


@dataclass(frozen=True, kw_only=True)
class Contest:
    """Scores of `models` as (models, cases, structures, metrics), higher is better; NaN = not scored."""

    models: tuple[str, ...]
    scores: NDArray[np.float64]

    def ranks(self, by: Ranked, *, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Mean rank of each model (draws, models), 1 is best, ties share their mean.

        `structures`: mean over cases, ranked in each structure and metric, then the mean of ranks (SegRap2023).
        `cases`: mean over structures, ranked in each case and metric, then the mean of ranks (FLARE22; without its measures of speed).
        `weights` (draws, cases) says how often each case counts; without it each counts once.
        """
        drawn = np.ones((1, self.scores.shape[1])) if weights is None else weights
        if by == "cases":
            return _weighted(self._case_ranks(), weights=drawn)
        means = np.stack([_weighted(scores, weights=drawn) for scores in self._columns()])
        return _means(_ranked(means), axis=-1).T

    def tested(self) -> NDArray[np.float64]:
        """Mean rank of each model (models,) by tests: in each structure and metric a model ranks by how many others it beats.

        To beat is to be better on the same cases with p < 0.05 by the one-sided Wilcoxon test, Holm-adjusted over all pairs, so that models
        tie unless they differ (SegRap2023's statistical ranking; Wiesenfarth et al. 2021, "test-then-rank").
        """
        pairs = list(itertools.permutations(range(len(self.models)), 2))
        columns = self._columns()
        wins = np.zeros((len(self.models), columns.shape[2]))
        for column in range(columns.shape[2]):
            pvalues = [_better(columns[a, :, column], other=columns[b, :, column]) for a, b in pairs]
            for (winner, _), pvalue in zip(pairs, holm(pvalues), strict=True):
                wins[winner, column] += pvalue < LEVEL
        return _ranked(wins).mean(axis=-1)

    def _columns(self) -> NDArray[np.float64]:
        """(models, cases, columns): a column is a structure by one metric that any model has a score of."""
        columns = self.scores.reshape(*self.scores.shape[:2], -1)
        return columns[:, :, ~np.isnan(columns).all(axis=(0, 1))]

    def _case_ranks(self) -> NDArray[np.float64]:
        """Each model's rank in every case, mean over metrics: (cases, models)."""
        return _means(_ranked(_means(self.scores, axis=2)), axis=-1).T


def contest(tables: Mapping[str, Mapping[str, NDArray[np.float64]]], *, metrics: Sequence[str]) -> Contest:
    """Of each model's tables (cases, structures) by metric, on the cases that all models have scores for."""
    scores = np.stack([np.stack([table[metric] for metric in metrics], axis=-1) for table in tables.values()])
    scored = ~np.isnan(scores).all(axis=(2, 3)).any(axis=0)
    return Contest(models=tuple(tables), scores=scores[:, scored])


def ranking(given: Contest, *, by: Ranked) -> dict[str, Any]:
    """Values for summary.json: every model's place and mean ranks, and what becomes of the order in 1000 bootstrap samples of cases.

    `first` is the share of samples that a model leads (shared among ties), `places` the 2.5 and 97.5 % quantiles of its place.
    Kendall's tau compares each sample's order with that of all cases: 1 where nothing changes.
    """
    cases = given.scores.shape[1]
    if not cases:
        return {}
    methods: dict[str, NDArray] = {kind: given.ranks(kind)[0] for kind in ("structures", "cases")}
    methods["tested"] = given.tested()
    ranks = methods[by]
    draws = np.random.default_rng(SEED).multinomial(cases, np.full(cases, 1 / cases), size=RESAMPLES).astype(float)
    drawn = np.concatenate([given.ranks(by, weights=draws[i : i + CHUNK]) for i in range(0, RESAMPLES, CHUNK)])
    places = stats.rankdata(drawn, method="min", axis=1)
    leads = places == 1
    first = (leads / leads.sum(axis=1, keepdims=True)).mean(axis=0)
    ends = np.quantile(places, (0.025, 0.975), axis=0)
    taus = kendall(ranks, others=drawn)
    own_places = stats.rankdata(ranks, method="min")
    models = {
        name: {
            "place": int(own_places[i]),
            "mean_rank": {kind: float(values[i]) for kind, values in methods.items()},
            "normalised": float(ranks[i]) / len(given.models),
            "first": float(first[i]),
            "places": [float(ends[0, i]), float(ends[1, i])],
        }
        for i, name in enumerate(given.models)
    }
    return {
        "by": by,
        "cases": cases,
        "resamples": RESAMPLES,
        "models": models,
        "kendall_tau": {
            "mean": float(np.mean(taus)) if len(taus) else math.nan,
            "low": float(np.quantile(taus, 0.025)) if len(taus) else math.nan,
            "high": float(np.quantile(taus, 0.975)) if len(taus) else math.nan,
        },
    }


def kendall(ranks: NDArray[np.float64], *, others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kendall's tau-b of one ranking (models,) with each of `others` (draws, models); those in which all models tie are left out."""
    first, second = np.triu_indices(len(ranks), k=1)
    one, many = np.sign(ranks[first] - ranks[second]), np.sign(others[:, first] - others[:, second])
    lengths = np.sqrt((one**2).sum() * (many**2).sum(axis=1))
    return (many @ one)[lengths > 0] / lengths[lengths > 0]


def _ranked(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks over the first axis, 1 for the highest; a model without a value comes last, and NaN stands where no model has one."""
    ranks = stats.rankdata(-np.where(np.isnan(values), -np.inf, values), axis=0)
    return np.where(np.isnan(values).all(axis=0), np.nan, ranks)


def _weighted(values: NDArray[np.float64], *, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Means (draws, columns) over the cases of `values` (cases, columns), NaN left out."""
    scored = ~np.isnan(values)
    counts = weights @ scored
    return np.divide(
        weights @ np.where(scored, values, 0.0), counts, out=np.full(counts.shape, np.nan), where=counts > 0
    )


def _means(values: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
    """Means that leave NaN out; NaN where nothing is left."""
    counts = (~np.isnan(values)).sum(axis=axis)
    return np.divide(np.nansum(values, axis=axis), counts, out=np.full(counts.shape, np.nan), where=counts > 0)


def _better(scores: NDArray[np.float64], *, other: NDArray[np.float64]) -> float:
    """p-value of the first model being better; 1 where no case differs, NaN without cases."""
    difference = scores - other
    difference = difference[~np.isnan(difference)]
    if not len(difference):
        return math.nan
    if not difference.any():
        return 1.0
    return float(stats.wilcoxon(difference, alternative="greater")[1])  # type: ignore[arg-type]
