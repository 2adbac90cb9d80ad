"""Scores of weighted means of candidates, case by case: each is computed once, whichever search, bag or fold asks for it again."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segsweep.evaluation.contest import Contest

# How many times each candidate counts, (candidates,), whole numbers: (2, 0, 2) is the same mean as (1, 0, 1).
Shares = NDArray[np.int64]
Scores = NDArray[np.float64]


class Ensembles:
    """All means of some candidates on some cases. What was scored is kept: 8 bytes a case and structure for every mean."""

    def __init__(self, contests: Sequence[Contest]) -> None:
        self.contests = contests
        self._tables: dict[tuple[int, ...], Scores] = {}

    def table(self, shares: Shares) -> Scores:
        """Scores (cases, structures) of a mean; NaN where nothing was annotated."""
        key = _key(shares)
        if key not in self._tables:
            reduced = np.array(key, dtype=np.int64)
            self._tables[key] = np.stack([contest.scores(reduced) for contest in self.contests])
        return self._tables[key]

    def additions(self, shares: Shares, *, candidates: Sequence[int]) -> list[Scores]:
        """Tables of the means that have one of these candidates once more, all of them in one pass over the cases."""
        keys = {one: _key(shares + one_hot(one, count=len(shares))) for one in candidates}
        missing = [one for one, key in keys.items() if key not in self._tables]
        if missing:
            found = np.stack([contest.additions(shares, candidates=missing) for contest in self.contests], axis=1)
            self._tables.update({keys[one]: table for one, table in zip(missing, found, strict=True)})
        return [self._tables[key] for key in keys.values()]


def score(table: Scores) -> float:
    """Mean over structures of their means over cases; a structure that no case has counts for nothing."""
    scored = ~np.isnan(table)
    counts = scored.sum(axis=0)
    return float(np.mean(np.where(scored, table, 0.0).sum(axis=0)[counts > 0] / counts[counts > 0]))


def one_hot(index: int, *, count: int) -> Shares:
    """The shares of a candidate alone."""
    return np.eye(count, dtype=np.int64)[index]


def uniform(indices: Sequence[int], *, count: int) -> Shares:
    """The shares of a plain mean."""
    return np.isin(np.arange(count), indices).astype(np.int64)


def _key(shares: Shares) -> tuple[int, ...]:
    counts = shares.tolist()
    divisor = math.gcd(*counts)
    return tuple(count // divisor for count in counts)
