"""Which cases a batch draws from: all alike, those of large datasets more rarely, or those of one dataset by quota."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from segsweep.learning.patches import TrainingCase

Sampling = Literal["uniform", "sqrt", "quota"]


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One training step of one of `ranks` workers that train together: all that is drawn follows from these numbers alone."""

    seed: int = 0
    epoch: int = 0
    step: int = 0
    rank: int = 0
    ranks: int = 1

    def generator(self) -> np.random.Generator:
        """The generator of this step's draws, of this worker's own."""
        return np.random.default_rng((self.seed, self.rank, self.epoch, self.step))


def choose(
    cases: Sequence[TrainingCase],
    *,
    number: int,
    sampling: Sampling,
    iterations: int,
    turn: Turn,
    generator: np.random.Generator,
) -> list[TrainingCase]:
    """The cases of a batch, with replacement. By quota they are of one source, the same for all workers of a step."""
    if sampling == "quota":
        sources = tuple(sorted({case.source for case in cases}))
        order = source_order(sources, iterations=iterations, seed=turn.seed, epoch=turn.epoch)
        cases = [case for case in cases if case.source == order[turn.step % iterations]]
    shares = case_shares([case.source for case in cases]) if sampling == "sqrt" else None
    return [cases[index] for index in generator.choice(len(cases), size=number, p=shares)]


def case_shares(sources: Sequence[int]) -> NDArray[np.float64]:
    """How likely each case is drawn, given its source: in proportion to 1/sqrt(cases of that source) (MultiTalent, training)."""
    sizes = Counter(sources)
    weights = np.asarray([sizes[source] ** -0.5 for source in sources])
    return weights / weights.sum()


@lru_cache(maxsize=4)
def source_order(sources: tuple[int, ...], *, iterations: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The source of every step of an epoch: drawn among those that have not had their equal share of steps yet (UniSeg, training).

    Steps that cannot be shared equally go to sources drawn anew in every epoch.
    """
    generator = np.random.default_rng((seed, epoch, len(sources), iterations, 0))
    left = np.full(len(sources), iterations // len(sources))
    left[generator.permutation(len(sources))[: iterations % len(sources)]] += 1
    order = []
    for _ in range(iterations):
        chosen = generator.choice(np.flatnonzero(left))
        left[chosen] -= 1
        order.append(sources[chosen])
    return tuple(order)
