"""Which candidates make the best ensemble: greedy selection with replacement, bagged (Caruana et al., ICML 2004), and its honest gain.

An ensemble is a weight for every candidate. Its score is the mean Dice over cases, then over structures, on the grid of the
candidates' probabilities. Scores on the cases that the choice was made by flatter it; nested cross-validation over cases does not.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segsweep.errors import ModelError, RecipeError
from segsweep.evaluation.contested import Contest
from segsweep.evaluation.statistics import Interval, difference_interval

Weights = NDArray[np.float64]
Scores = NDArray[np.float64]

# Picks of one greedy search at most, and without progress; the best of the ensembles on its way is taken. 255 * PICKS stays below 2**16.
PICKS, PATIENCE = 12, 3
# Folds of the nested cross-validation, and the fewest independent cases (groups) for which it says anything.
FOLDS, LEAST_CASES = 5, 5


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What an ensemble may cost, in seconds per case and in different members, and how it is searched for.

    Every bag searches a random half of the candidates (all of them where there is one bag); their weights are averaged. Raises
    RecipeError for a value that cannot be used.
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
    """Weights (candidates,) that sum to 1, and the candidate that is best alone; they are its alone where no mean beat it."""

    weights: Weights
    best: int

    @property
    def members(self) -> list[int]:
        """Candidates that take part, the heaviest first."""
        return [int(index) for index in np.argsort(-self.weights, kind="stable") if self.weights[index] > 0]


@dataclass(frozen=True, kw_only=True)
class Selected:
    """A choice and what speaks for it.

    `gains[i]` is what the mean Dice loses without member i (NaN for others, and for a member that is alone). `nested` is the gain over
    the best single candidate on cases that neither was chosen by. `disagreement` (candidates, candidates) is the mean over cases.
    """

    choice: Choice
    gains: NDArray[np.float64]
    nested: Interval
    disagreement: NDArray[np.float64]

    @property
    def better(self) -> bool:
        """Whether the nested gain's interval lies above zero."""
        return self.nested.low > 0


def select(
    contests: Sequence[Contest], *, costs: Sequence[float], limits: Limits, groups: Sequence[str] | None = None
) -> Selected:
    """The ensemble for these cases. `costs` are seconds per case; cases of one group (a patient) stay together in the nested folds.

    Raises ModelError when there are too few groups, or no candidate keeps within the budget.
    """
    names = [contest.case for contest in contests] if groups is None else list(groups)
    if len(set(names)) < LEAST_CASES:
        raise ModelError(
            f"{len(set(names))} independent cases are out of fold for all candidates; expected at least {LEAST_CASES}"
        )
    choice = choose(contests, costs=costs, limits=limits)
    return Selected(
        choice=choice,
        gains=_gains(contests, choice=choice),
        nested=_nested(contests, groups=names, costs=costs, limits=limits),
        disagreement=np.mean([contest.disagreement for contest in contests], axis=0),
    )


def choose(contests: Sequence[Contest], *, costs: Sequence[float], limits: Limits) -> Choice:
    """Bagged greedy selection; the best single candidate where that is no worse on these cases. Raises ModelError as `select` does."""
    pool = [index for index, seconds in enumerate(costs) if seconds <= limits.budget_seconds]
    if not pool:
        raise ModelError(
            f"no candidate segments a case within budget_seconds={limits.budget_seconds:g} (the fastest takes "
            f"{min(costs):.3g} s); raise the budget, or name faster candidates"
        )
    singles = [score(dice_table(contests, weights=one_hot(index, count=len(costs)))) for index in pool]
    best = pool[int(np.argmax(singles))]
    weights = _bagged(contests, pool=pool, costs=costs, limits=limits)
    if score(dice_table(contests, weights=weights)) <= max(singles):
        weights = one_hot(best, count=len(costs))
    return Choice(weights=weights, best=best)


def dice_table(contests: Sequence[Contest], *, weights: Weights) -> Scores:
    """Dice (cases, structures) of the weighted mean of the candidates' probabilities."""
    return np.stack([contest.dice(_weighted(contest, weights=weights), total=weights.sum()) for contest in contests])


def score(table: Scores) -> float:
    """Mean over structures of their means over cases; a structure that no case has counts for nothing."""
    scored = ~np.isnan(table)
    counts = scored.sum(axis=0)
    return float(np.mean(np.where(scored, table, 0.0).sum(axis=0)[counts > 0] / counts[counts > 0]))


def one_hot(index: int, *, count: int) -> Weights:
    """The weights of a candidate alone."""
    return np.eye(count)[index]


def uniform(indices: Sequence[int], *, count: int) -> Weights:
    """The weights of a plain mean."""
    return np.isin(np.arange(count), indices) / len(indices)


def _weighted(contest: Contest, *, weights: Weights) -> NDArray[np.float64]:
    total = np.zeros(contest.values.shape[1:])
    for index in np.flatnonzero(weights):
        total += weights[index] * contest.values[index]
    return total


def _bagged(contests: Sequence[Contest], *, pool: Sequence[int], costs: Sequence[float], limits: Limits) -> Weights:
    generator = np.random.default_rng(limits.seed)
    size = len(pool) if limits.bags == 1 else math.ceil(len(pool) / 2)
    votes = np.zeros(len(costs))
    for _ in range(limits.bags):
        bag = sorted(generator.choice(pool, size, replace=False).tolist())
        votes += _greedy(contests, pool=bag, costs=costs, limits=limits)
    return _affordable(votes / limits.bags, costs=costs, limits=limits)


def _greedy(contests: Sequence[Contest], *, pool: Sequence[int], costs: Sequence[float], limits: Limits) -> Weights:
    """The weights of one search. Sums of quantised probabilities are whole numbers, so that they are exact whatever their order."""
    sums = [np.zeros(contest.values.shape[1:], dtype=np.uint16) for contest in contests]
    picks: list[int] = []
    reached: list[float] = []
    for turn in range(1, PICKS + 1):
        found = {
            index: score(
                np.stack(
                    [
                        contest.dice(total + contest.values[index], total=turn)
                        for contest, total in zip(contests, sums, strict=True)
                    ]
                )
            )
            for index in pool
            if _fits({*picks, index}, costs=costs, limits=limits)
        }
        pick = max(found, key=lambda index: found[index])
        picks.append(pick)
        reached.append(found[pick])
        for contest, total in zip(contests, sums, strict=True):
            total += contest.values[pick]
        if turn - int(np.argmax(reached)) > PATIENCE:
            break
    kept = picks[: int(np.argmax(reached)) + 1]
    return np.bincount(kept, minlength=len(costs)) / len(kept)


def _affordable(weights: Weights, *, costs: Sequence[float], limits: Limits) -> Weights:
    """The heaviest members that keep within the limits together: each bag did, all bags need not."""
    kept: set[int] = set()
    for index in np.argsort(-weights, kind="stable"):
        if weights[index] > 0 and _fits({*kept, int(index)}, costs=costs, limits=limits):
            kept.add(int(index))
    chosen = np.where(np.isin(np.arange(len(weights)), list(kept)), weights, 0.0)
    return chosen / chosen.sum()


def _fits(members: set[int], *, costs: Sequence[float], limits: Limits) -> bool:
    return len(members) <= limits.most and sum(costs[index] for index in sorted(members)) <= limits.budget_seconds


def _gains(contests: Sequence[Contest], *, choice: Choice) -> NDArray[np.float64]:
    gains = np.full(len(choice.weights), np.nan)
    whole = score(dice_table(contests, weights=choice.weights))
    for index in choice.members:
        rest = np.where(np.arange(len(gains)) == index, 0.0, choice.weights)
        if rest.any():
            gains[index] = whole - score(dice_table(contests, weights=rest))
    return gains


def _nested(contests: Sequence[Contest], *, groups: Sequence[str], costs: Sequence[float], limits: Limits) -> Interval:
    """Gain of the chosen ensemble over the best single candidate, each case by what was chosen without its group."""
    order = np.random.default_rng(limits.seed).permutation(sorted(set(groups)))
    fold_of = {str(group): place % FOLDS for place, group in enumerate(order)}
    ours, single = [], []
    for fold in range(FOLDS):
        inside = [contest for contest, group in zip(contests, groups, strict=True) if fold_of[group] != fold]
        outside = [contest for contest, group in zip(contests, groups, strict=True) if fold_of[group] == fold]
        choice = choose(inside, costs=costs, limits=limits)
        ours.append(dice_table(outside, weights=choice.weights))
        single.append(dice_table(outside, weights=one_hot(choice.best, count=len(costs))))
    return difference_interval(np.concatenate(ours), second=np.concatenate(single))
