"""Which candidates make the best ensemble: greedy selection with replacement (Caruana et al., 2004), bagged over cases; its honest gain.

An ensemble is a whole number for every candidate, how many times it counts. Its score is the mean Dice or NSD over cases, then over
structures, on the grid of the candidates' probabilities. Scores on the cases that the choice was made by flatter it; nested
cross-validation over cases does not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segsweep.errors import ModelError, RecipeError
from segsweep.evaluation.ensembles import Ensembles, Shares, one_hot, score, uniform
from segsweep.evaluation.statistics import Interval, difference_interval, mean_interval

# Picks of one greedy search at most, and without progress; the best of the ensembles on its way is taken.
PICKS, PATIENCE = 12, 3
# The shares of one search add up to this, whatever its number of picks, so that those of all bags can be added.
WHOLE = math.lcm(*range(1, PICKS + 1))
# Folds of the nested cross-validation, and the fewest independent cases (groups) for which it says anything.
FOLDS, LEAST_CASES = 5, 5
# Members of the plain mean that the choice is compared with: the best ones alone.
PLAIN = 3

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an ensemble may cost, in seconds per case and in different members, and how it is searched for.

    Every bag searches by cases drawn with replacement (by all of them where there is one bag); their weights are averaged. Halves of
    the candidates, as in the paper, would force poor ones into the mean where there are only a few. Raises RecipeError for a value
    that cannot be used.
    """

    budget_seconds: float = math.inf
    most: int = 5
    bags: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.budget_seconds > 0:
            raise RecipeError(f"budget_seconds={self.budget_seconds} cannot be used: expected seconds per case above 0")
        for name, least in (("most", 1), ("bags", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise RecipeError(f"{name}={getattr(self, name)} cannot be used: expected at least {least}")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Shares (candidates,), and the candidates from the best alone to the worst; the best has all where no mean beat it."""

    shares: Shares
    order: tuple[int, ...]

    @property
    def best(self) -> int:
        """The candidate that is best alone."""
        return self.order[0]

    @property
    def weights(self) -> NDArray[np.float64]:
        """Shares that sum to 1."""
        return self.shares / self.shares.sum()

    @property
    def members(self) -> list[int]:
        """Candidates that take part, the heaviest first."""
        return [int(index) for index in np.argsort(-self.shares, kind="stable") if self.shares[index] > 0]


@dataclass(frozen=True, kw_only=True)
class Nested:
    """Scores on cases that neither was chosen by: of the choice, of the best single candidate and of the plain mean of the best ones.

    `gain` and `gain_over_mean` are differences of the choice to these.
    """

    chosen: Interval
    single: Interval
    mean: Interval
    gain: Interval
    gain_over_mean: Interval


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A choice and what speaks for it.

    `gains[i]` is what the mean score loses without member i (NaN for others, and for a member that is alone). `disagreement`
    (candidates, candidates) is the mean over cases.
    """

    choice: Choice
    gains: NDArray[np.float64]
    nested: Nested
    disagreement: NDArray[np.float64]

    @property
    def better(self) -> bool:
        """Whether the interval of the nested gain over the best single candidate lies above zero."""
        return self.nested.gain.low > 0


def select(
    ensembles: Ensembles,
    *,
    costs: Sequence[float],
    limits: Limits,
    groups: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Selected:
    """The ensemble for these cases. `costs` are seconds per case; cases of one group (a patient) stay together in the nested folds.

    `progress` is told (searches done, searches in all). Raises ModelError when there are too few groups, or no candidate keeps within
    the budget.
    """
    names = [contest.case for contest in ensembles.contests] if groups is None else list(groups)
    if len(set(names)) < LEAST_CASES:
        raise ModelError(
            f"{len(set(names))} independent cases are out of fold for all candidates; expected at least {LEAST_CASES}"
        )
    searched = _Counted(progress=progress, total=limits.bags * (1 + FOLDS))
    patients = [np.flatnonzero(np.array(names) == name) for name in sorted(set(names))]
    choice = choose(ensembles, patients=patients, costs=costs, limits=limits, searched=searched)
    return Selected(
        choice=choice,
        gains=_gains(ensembles, choice=choice),
        nested=_nested(ensembles, patients=patients, costs=costs, limits=limits, searched=searched),
        disagreement=np.mean([contest.disagreement for contest in ensembles.contests], axis=0),
    )


def choose(
    ensembles: Ensembles,
    *,
    patients: Sequence[NDArray[np.intp]],
    costs: Sequence[float],
    limits: Limits,
    searched: Callable[[], None] = lambda: None,
) -> Choice:
    """Bagged greedy selection by the cases (indices) of some patients; the best single candidate where that is no worse on them.

    `searched` is called after each search. Raises ModelError as `select` does.
    """
    pool = [index for index, seconds in enumerate(costs) if seconds <= limits.budget_seconds]
    if not pool:
        raise ModelError(
            f"no candidate segments a case within budget_seconds={limits.budget_seconds:g} (the fastest takes "
            f"{min(costs):.3g} s); raise the budget, or name faster candidates"
        )
    cases = np.concatenate(patients)
    singles = {index: score(ensembles.table(one_hot(index, count=len(costs)))[cases]) for index in pool}
    order = tuple(sorted(pool, key=lambda index: -singles[index]))
    shares = _bagged(ensembles, patients=patients, pool=pool, costs=costs, limits=limits, searched=searched)
    if score(ensembles.table(shares)[cases]) <= singles[order[0]]:
        shares = one_hot(order[0], count=len(costs))
    return Choice(shares=shares, order=order)


class _Counted:
    """Tells how many searches are done."""

    def __init__(self, *, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)


def _bagged(
    ensembles: Ensembles,
    *,
    patients: Sequence[NDArray[np.intp]],
    pool: Sequence[int],
    costs: Sequence[float],
    limits: Limits,
    searched: Callable[[], None],
) -> Shares:
    generator = np.random.default_rng(limits.seed)
    votes = np.zeros(len(costs), dtype=np.int64)
    for _ in range(limits.bags):
        drawn = (
            range(len(patients)) if limits.bags == 1 else generator.integers(len(patients), size=len(patients)).tolist()
        )
        cases = np.concatenate([patients[index] for index in drawn])
        votes += _greedy(ensembles, cases=cases, pool=pool, costs=costs, limits=limits)
        searched()
    return _affordable(votes, costs=costs, limits=limits)


def _greedy(
    ensembles: Ensembles, *, cases: NDArray[np.intp], pool: Sequence[int], costs: Sequence[float], limits: Limits
) -> Shares:
    """The shares of one search, which add up to WHOLE."""
    shares = np.zeros(len(costs), dtype=np.int64)
    picks: list[int] = []
    reached: list[float] = []
    for turn in range(1, PICKS + 1):
        allowed = [index for index in pool if _fits({*picks, index}, costs=costs, limits=limits)]
        tables = ensembles.additions(shares, candidates=allowed)
        found = [score(table[cases]) for table in tables]
        place = int(np.argmax(found))
        picks.append(allowed[place])
        reached.append(found[place])
        shares[allowed[place]] += 1
        if turn - int(np.argmax(reached)) > PATIENCE:
            break
    kept = picks[: int(np.argmax(reached)) + 1]
    return np.bincount(kept, minlength=len(costs)) * (WHOLE // len(kept))


def _affordable(votes: Shares, *, costs: Sequence[float], limits: Limits) -> Shares:
    """The heaviest members that keep within the limits together: each bag did, all bags need not."""
    kept: set[int] = set()
    for index in np.argsort(-votes, kind="stable"):
        if votes[index] > 0 and _fits({*kept, int(index)}, costs=costs, limits=limits):
            kept.add(int(index))
    return np.where(np.isin(np.arange(len(votes)), list(kept)), votes, 0)


def _fits(members: set[int], *, costs: Sequence[float], limits: Limits) -> bool:
    return len(members) <= limits.most and sum(costs[index] for index in sorted(members)) <= limits.budget_seconds


def _gains(ensembles: Ensembles, *, choice: Choice) -> NDArray[np.float64]:
    gains = np.full(len(choice.shares), np.nan)
    whole = score(ensembles.table(choice.shares))
    for index in choice.members:
        rest = np.where(np.arange(len(gains)) == index, 0, choice.shares)
        if rest.any():
            gains[index] = whole - score(ensembles.table(rest))
    return gains


def _nested(
    ensembles: Ensembles,
    *,
    patients: Sequence[NDArray[np.intp]],
    costs: Sequence[float],
    limits: Limits,
    searched: Callable[[], None],
) -> Nested:
    """Each case by what was chosen without its patient."""
    order = np.random.default_rng(limits.seed).permutation(len(patients)).tolist()
    chosen, single, mean = (np.full_like(ensembles.table(one_hot(0, count=len(costs))), np.nan) for _ in range(3))
    for fold in range(FOLDS):
        outside = np.concatenate([patients[index] for index in order[fold::FOLDS]])
        inside = [patients[index] for place, index in enumerate(order) if place % FOLDS != fold]
        choice = choose(ensembles, patients=inside, costs=costs, limits=limits, searched=searched)
        chosen[outside] = ensembles.table(choice.shares)[outside]
        single[outside] = ensembles.table(one_hot(choice.best, count=len(costs)))[outside]
        mean[outside] = ensembles.table(uniform(choice.order[:PLAIN], count=len(costs)))[outside]
    return Nested(
        chosen=mean_interval(chosen),
        single=mean_interval(single),
        mean=mean_interval(mean),
        gain=difference_interval(chosen, second=single),
        gain_over_mean=difference_interval(chosen, second=mean),
    )
