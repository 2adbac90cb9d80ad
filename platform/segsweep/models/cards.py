"""A trained model in a few words and numbers: its Dice on whole held-out cases with bootstrap intervals, as rows and as Markdown."""

from collections.abc import Iterable, Sequence

import numpy as np

from segsweep.evaluation.statistics import Interval, mean_interval
from segsweep.evaluation.whole_scans import Scores

# MLflow's registry takes 5000 characters of a description.
MOST_ROWS = 50


def overall(scores: Scores) -> Interval:
    """The mean over structures of their means over cases, which a result calls `dice`; cases are drawn whole."""
    names = structures(scores)
    return mean_interval([[values.get(name, np.nan) for name in names] for values in scores.values()])


def per_structure(scores: Scores) -> dict[str, Interval]:
    """The mean over cases of every structure, by name."""
    return {
        name: mean_interval([values.get(name, np.nan) for values in scores.values()]) for name in structures(scores)
    }


def structures(scores: Scores) -> list[str]:
    """Names of all that was scored in any case."""
    return sorted({name for values in scores.values() for name in values})


def in_words(scores: Scores) -> str:
    """`0.713 to 0.790 (95 %, 20 cases)`: the interval of `overall`."""
    mean = overall(scores)
    return f"{span(mean)} (95 %, {counted(mean.cases, 'case')})"


def card(scores: Scores) -> str:
    """Markdown: the mean Dice with its interval, then a table with those of every structure; nothing where none was scored."""
    found = per_structure(scores)
    if not found:
        return ""
    mean, several = overall(scores), counted(len(found), "structure")
    shown = list(found.items())[:MOST_ROWS]
    rows = [(name, f"{one.mean:.3f}", span(one), str(one.cases)) for name, one in shown]
    more = len(found) - len(shown)
    return "\n".join(
        [
            f"**Dice {mean.mean:.3f}** on {counted(mean.cases, 'case')} held out (95 % interval {span(mean)}), mean of {several}.",
            "",
            markdown_table(("structure", "Dice", "95 % interval", "cases"), rows=rows),
            *([f"\n{more} more are in the run's table `dice_per_structure.json`."] if more else []),
        ]
    )


def span(interval: Interval) -> str:
    """`0.713 to 0.790`."""
    return f"{interval.low:.3f} to {interval.high:.3f}"


def counted(number: int, noun: str) -> str:
    """`1 case`, `20 cases`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def markdown_table(heads: Sequence[str], *, rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown. MLflow's pages leave no room between columns, so each but the first begins with a space of its own."""

    def line(cells: Sequence[str]) -> str:
        first, *others = (cell.replace("|", "\\|") for cell in cells)
        return f"| {first} |" + "".join(f" &emsp;{cell} |" for cell in others)

    return "\n".join([line(heads), "|---" * len(heads) + "|", *map(line, rows)])
