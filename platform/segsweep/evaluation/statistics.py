"""How sure a mean or a difference of means is: case-level bootstrap, Wilcoxon's signed ranks, Holm's correction, mean ranks."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

CHUNK = 500


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean with the ends of its bootstrap percentile interval, and the number of cases that it rests on."""

    mean: float
    low: float
    high: float
    cases: int


def mean_interval(values: ArrayLike, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Interval of a mean over cases. `values` is (cases,) or (cases, structures); NaN = not scored.

    With structures the mean is that of the structures' means. Cases are drawn with replacement, all structures of a case
    together, because structures of one patient are not independent. One case gives an interval of width 0.
    """
    table = np.asarray(values, dtype=float)
    table = table[:, None] if table.ndim == 1 else table
    table = table[~np.isnan(table).all(axis=1)]
    cases = len(table)
    if not cases:
        return Interval(mean=math.nan, low=math.nan, high=math.nan, cases=0)
    generator = np.random.default_rng(seed)
    means = np.concatenate(
        [
            _means(table, draws=generator.integers(cases, size=(min(CHUNK, resamples - i), cases)))
            for i in range(0, resamples, CHUNK)
        ]
    )
    low, high = np.nanquantile(means, [(1 - level) / 2, (1 + level) / 2])
    mean = _means(table, draws=np.arange(cases)[None])[0]
    return Interval(mean=float(mean), low=float(low), high=float(high), cases=cases)


def difference_interval(
    first: ArrayLike, *, second: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Interval of mean(first - second) over the same cases (same shapes as in `mean_interval`); pairs with a NaN are left out."""
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    return mean_interval(difference, level=level, resamples=resamples, seed=seed)


def wilcoxon(first: ArrayLike, *, second: ArrayLike) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test on paired values; 1 when no pair differs, NaN without pairs."""
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    difference = difference[~np.isnan(difference)]
    if not len(difference):
        return math.nan
    if not difference.any():
        return 1.0
    _, pvalue = stats.wilcoxon(difference)
    return float(pvalue)  # type: ignore[arg-type]


def holm(pvalues: ArrayLike) -> NDArray[np.float64]:
    """Holm's step-down adjusted p-values, in the given order; NaN is passed through and not counted."""
    given = np.asarray(pvalues, dtype=float)
    adjusted = np.full(given.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * factors))
    return adjusted


def mean_ranks(contests: ArrayLike) -> NDArray[np.float64]:
    """Rank, then average: `contests` is (contests, models), higher is better; 1 is the best rank and ties share their mean.

    A contest is what the organisers rank: a structure's mean over patients (SegRap), a case and a metric (FLARE). NaN ranks last.
    """
    table = np.asarray(contests, dtype=float)
    return stats.rankdata(-np.where(np.isnan(table), -np.inf, table), axis=1).mean(axis=0)


def _means(table: NDArray[np.float64], *, draws: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean over structures of the means over each draw's cases: (draws,)."""
    scored = ~np.isnan(table)
    sums = np.where(scored, table, 0.0)[draws].sum(axis=1)
    counts = scored[draws].sum(axis=1)
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    kept = ~np.isnan(means)
    return np.where(kept, means, 0.0).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
