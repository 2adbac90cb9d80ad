"""Whether one model is better than another on the same cases, surely enough to take its place.

Two locks, and both must open. The studentised bootstrap interval of the mean difference (Efron and Tibshirani, An Introduction to the
Bootstrap, 1993, section 12.5) lies above zero; and Wilcoxon's signed ranks of the cases' mean differences give p below 1 - level,
after p was multiplied by the number of models that the candidate was chosen from on these cases (Bonferroni).

What that promises: where the two models could swap their names, so that a case's difference is as likely to be d as -d, at most a share
(1 - level) / 2 of all comparisons ends in "better", however few cases there are, however structures go together and whatever the
tails: the exact signed ranks see to that alone (a normal approximation above 50 cases, or with ties). Where means are equal but most
cases gain a little and a few lose a lot, the interval holds the rate near that share with some dozens of cases; with few cases, no
rule can know of failures that none of them shows.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from segsweep.errors import RecipeError
from segsweep.evaluation.statistics import CHUNK, Interval, holm, wilcoxon

RESAMPLES = 2000
# A standard error below this is none: what is left of numbers that are all alike.
NO_SPREAD = 1e-12


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of candidate minus champion with its interval; `p` is Wilcoxon's, two-sided, `p_corrected` what is compared with the level.

    `finding` says on which side the interval leaves zero while `p_corrected` is low enough.
    """

    interval: Interval
    p: float
    p_corrected: float
    finding: Literal["better", "worse", "open"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a comparison came to. `choices` is the number of models that the candidate was the best of on these cases.

    `structures` are Holm-corrected among each other. `least_cases` cases are the fewest that could ever show a better model.
    """

    level: float
    choices: int
    overall: Difference
    structures: Mapping[str, Difference]

    @property
    def cases(self) -> int:
        """Cases that both models were scored on."""
        return self.overall.interval.cases

    @property
    def least_cases(self) -> int:
        """As `least_cases`."""
        return least_cases(self.level, choices=self.choices)

    @property
    def better(self) -> bool:
        """Whether the candidate may take the champion's place."""
        return self.overall.finding == "better"

    def found(self, finding: Literal["better", "worse"]) -> tuple[str, ...]:
        """The structures in which the candidate is significantly better or worse."""
        return tuple(name for name, difference in self.structures.items() if difference.finding == finding)

    def reason(self, metric: str) -> str:
        """The verdict as a phrase: by how much, how surely, on how many cases."""
        chosen = f", as the best of {self.choices}" if self.choices > 1 else ""
        if self.cases < self.least_cases:
            return (
                f"{self.cases} cases are too few to tell; expected at least {self.least_cases} that neither model was "
                f"trained on, at level {self.level:g}{chosen}"
            )
        found = self.overall.interval
        numbers = f"{found.mean:+.4f} [{found.low:+.4f}, {found.high:+.4f}], p = {self.overall.p_corrected:.2g}{chosen}"
        words = {"better": "better", "worse": "worse", "open": "not better with confidence"}[self.overall.finding]
        return f"{words}: {metric} {numbers}, on {self.cases} cases"


def compare(
    candidate: ArrayLike, *, champion: ArrayLike, structures: Sequence[str], level: float = 0.95, choices: int = 1
) -> Verdict:
    """Compare two tables (cases, structures) of a metric of which more is better; NaN = not scored, in either.

    Cases are drawn with all their structures together. Raises RecipeError for a level that is no confidence.
    """
    least_cases(level, choices=choices)
    table = np.asarray(candidate, dtype=float) - np.asarray(champion, dtype=float)
    pvalues = [_signed_ranks(column[:, None]) for column in table.T]
    overall = _signed_ranks(table)
    return Verdict(
        level=level,
        choices=choices,
        overall=_difference(table, p=overall, corrected=overall * choices, level=level),
        structures={
            name: _difference(column[:, None], p=p, corrected=float(adjusted) * choices, level=level)
            for name, column, p, adjusted in zip(structures, table.T, pvalues, holm(pvalues), strict=True)
        },
    )


def least_cases(level: float, *, choices: int) -> int:
    """The fewest cases whose signed ranks can be significant: all differences on one side have p = 2 / 2^cases, times `choices`."""
    if not 0.5 <= level < 1:
        raise RecipeError(f"level={level} cannot be used: expected a confidence from 0.5 up to, not including, 1")
    return next(cases for cases in range(2, 1000) if 2.0 ** (1 - cases) * choices < 1 - level)


def studentised_interval(values: ArrayLike, *, level: float, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Interval of a mean over cases, from how many standard errors the means of resamples lie away from it.

    `values` is (cases, structures), NaN = not scored; the mean is that of the structures' means. Ends are infinite where too few cases
    say nothing of the spread.
    """
    table = np.asarray(values, dtype=float)
    table = table[~np.isnan(table).all(axis=1)]
    cases = len(table)
    if not cases:
        return Interval(mean=math.nan, low=math.nan, high=math.nan, cases=0)
    found = _estimates(table, draws=np.arange(cases)[None])
    mean, error = float(found.means[0]), float(found.errors[0])
    if cases == 1:
        return Interval(mean=mean, low=-math.inf, high=math.inf, cases=1)
    if error < NO_SPREAD:
        return Interval(mean=mean, low=mean, high=mean, cases=cases)
    generator = np.random.default_rng(seed)
    away = []
    for first in range(0, resamples, CHUNK):
        drawn = _estimates(table, draws=generator.integers(cases, size=(min(CHUNK, resamples - first), cases)))
        with np.errstate(divide="ignore", invalid="ignore"):
            away.append(np.nan_to_num((drawn.means - mean) / drawn.errors, nan=0.0, posinf=np.inf, neginf=-np.inf))
    low, high = np.quantile(np.concatenate(away), [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Interval(mean=mean, low=float(mean - high * error), high=float(mean - low * error), cases=cases)


@dataclass(frozen=True, kw_only=True)
class _Estimates:
    """Means of resamples and their standard errors, one a resample."""

    means: NDArray[np.float64]
    errors: NDArray[np.float64]


def _estimates(table: NDArray[np.float64], *, draws: NDArray[np.int64]) -> _Estimates:
    """Mean over structures of each draw's means over cases. A case counts by its pull on that mean, all its structures together."""
    scored = ~np.isnan(table)
    drawn, values = scored[draws], np.where(scored, table, 0.0)[draws]
    counts = drawn.sum(axis=1)
    means = values.sum(axis=1) / np.maximum(counts, 1)
    kept = np.maximum((counts > 0).sum(axis=1), 1)
    pulls = (np.where(drawn, values - means[:, None], 0.0) / np.maximum(counts, 1)[:, None]).sum(axis=2) / kept[:, None]
    cases = draws.shape[1]
    errors = np.sqrt((pulls**2).sum(axis=1) * cases / max(cases - 1, 1))
    return _Estimates(means=means.sum(axis=1) / kept, errors=errors)


def _signed_ranks(table: NDArray[np.float64]) -> float:
    """Wilcoxon's p of the cases' means over their structures; NaN without any."""
    means = np.array([np.mean(row[~np.isnan(row)]) for row in table if not np.isnan(row).all()])
    return wilcoxon(means, second=np.zeros(len(means))) if len(means) else math.nan


def _difference(table: NDArray[np.float64], *, p: float, corrected: float, level: float) -> Difference:
    interval = studentised_interval(table, level=level)
    corrected = min(1.0, corrected)
    sure = corrected < 1 - level
    finding = "better" if sure and interval.low > 0 else "worse" if sure and interval.high < 0 else "open"
    return Difference(interval=interval, p=p, p_corrected=corrected, finding=finding)
