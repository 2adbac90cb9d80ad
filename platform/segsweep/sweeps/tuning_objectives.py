"""What a sweep optimises: the mean Dice of whole scans, alone or beside what a model costs, and which trials are the best of several."""

from collections.abc import Mapping, Sequence
from typing import Literal

from segsweep.errors import unknown

Direction = Literal["maximize", "minimize"]

DICE = "dice"
# By the names that a result has: Dice as a fraction, the median seconds of a held-out scan, the most memory (10^9 bytes).
DIRECTIONS: Mapping[str, Direction] = {
    DICE: "maximize",
    "seconds_per_case": "minimize",
    "memory_gb": "minimize",
}


def parse_objectives(text: str) -> tuple[str, ...]:
    """`dice,seconds_per_case` as names. Raises ValueError for other names, one twice, or none that is dice: by it trials are listed."""
    names = tuple(text.split(","))
    for name in names:
        if name not in DIRECTIONS:
            raise ValueError(f"objective={text}: {unknown(name, kind='objectives', known=DIRECTIONS)}")
    if names[0] != DICE or len(set(names)) < len(names):
        raise ValueError(f"objective={text} cannot be used: expected dice first, then each of the others at most once")
    return names


def front(values: Sequence[Mapping[str, float]], *, objectives: Sequence[str]) -> list[int]:
    """Which of these are on the Pareto front: none other is as good in every objective and better in one."""
    gains = [[entry[name] * (1 if DIRECTIONS[name] == "maximize" else -1) for name in objectives] for entry in values]
    return [
        index
        for index, own in enumerate(gains)
        if not any(
            other != own and all(theirs >= ours for theirs, ours in zip(other, own, strict=True)) for other in gains
        )
    ]


def worst(values: Sequence[Sequence[float]], *, objectives: Sequence[str]) -> list[float]:
    """The worst that was seen in each objective; 0 in all where nothing was seen."""
    if not values:
        return [0.0 for _ in objectives]
    columns = zip(*values, strict=True)
    return [
        min(column) if DIRECTIONS[name] == "maximize" else max(column)
        for name, column in zip(objectives, columns, strict=True)
    ]
