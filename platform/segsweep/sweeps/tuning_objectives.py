"""What a sweep optimises: mean Dice or NSD of whole scans, alone or beside what a model costs; and which trials are the best by several."""

from collections.abc import Mapping, Sequence
from typing import Literal

from segsweep.errors import unknown

Direction = Literal["maximize", "minimize"]

DICE, NSD = "dice", "nsd"
# By the names that a result has: Dice and NSD as fractions, the median seconds of a held-out scan, the most memory (10^9 bytes).
DIRECTIONS: Mapping[str, Direction] = {
    DICE: "maximize",
    NSD: "maximize",
    "seconds_per_case": "minimize",
    "memory_gb": "minimize",
}


def parse_objectives(text: str) -> tuple[str, ...]:
    """`dice,seconds_per_case` as names; trials are listed by the first one. Raises ValueError for others, one twice, or a cost first."""
    names = tuple(text.split(","))
    for name in names:
        if name not in DIRECTIONS:
            raise ValueError(f"objective={text}: {unknown(name, kind='objectives', known=DIRECTIONS)}")
    if names[0] not in (DICE, NSD) or len(set(names)) < len(names):
        raise ValueError(
            f"objective={text} cannot be used: expected dice or nsd first, then each of the others at most once"
        )
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
