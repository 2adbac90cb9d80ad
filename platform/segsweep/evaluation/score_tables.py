"""The long tables of a report: cases by their means, worst first, and every score of the main model."""

import html
import math
from collections.abc import Collection, Mapping, Sequence

from segsweep.evaluation.metrics import Score
from segsweep.evaluation.page import number, table, text

METRICS = {"dice": "Dice", "nsd": "NSD"}
SEARCH = '<input type="search" placeholder="case or structure" aria-label="show only rows with these words">'


def open_button(case: str, *, structure: str) -> str:
    """A button that shows a case in the slice viewer, at a structure."""
    return (
        f'<button type="button" class="open" data-case="{html.escape(case)}" data-structure="{html.escape(structure)}">'
        "view</button>"
    )


def case_table(scores: Mapping[str, Sequence[Score]], *, viewed: Collection[str]) -> str:
    """A row a case with each model's means over structures and the main model's worst one; `viewed` get a button."""
    main, *_ = scores
    grouped = {model: _by_case(rows) for model, rows in scores.items()}
    heads = ["case", *(f"{model} {label}" for model in scores for label in METRICS.values())]
    heads += [f"worst structure of {main}", "its Dice"]
    cells = []
    for case, own in sorted(grouped[main].items(), key=lambda item: _first(_mean(item[1], metric="dice"))):
        worst = min(own, key=lambda score: _first(score.dice))
        button = open_button(case, structure=worst.structure) if case in viewed else ""
        means = (
            number(_mean(rows.get(case, ()), metric=metric), digits=3)
            for rows in grouped.values()
            for metric in METRICS
        )
        cells.append(
            [f"<td>{html.escape(case)}{button}</td>", *means, text(worst.structure), number(worst.dice, digits=3)]
        )
    return SEARCH + table(heads, rows=cells)


def score_table(scores: Sequence[Score]) -> str:
    """A row a case and structure, the lowest Dice first."""
    columns = {
        "dice": 3, "iou": 3, "nsd": 3, "hd95_mm": 2, "hd100_mm": 2, "asd_reference_to_prediction_mm": 2,
        "asd_prediction_to_reference_mm": 2, "volume_reference_ml": 2, "volume_prediction_ml": 2,
    }  # fmt: skip
    names = ["Dice", "IoU", "NSD", "HD95 mm", "HD mm", "ASD ref→pred mm", "ASD pred→ref mm", "ref ml", "pred ml"]
    rows = [
        [text(s.case), text(s.structure), *(number(getattr(s, column), digits=n) for column, n in columns.items())]
        for s in sorted(scores, key=lambda s: _first(s.dice))
    ]
    return SEARCH + table(["case", "structure", *names], rows=rows, kind="text")


def _by_case(scores: Sequence[Score]) -> dict[str, list[Score]]:
    found: dict[str, list[Score]] = {}
    for score in scores:
        found.setdefault(score.case, []).append(score)
    return found


def _mean(scores: Sequence[Score], *, metric: str) -> float:
    values = [value for value in (getattr(score, metric) for score in scores) if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


def _first(value: float) -> float:
    """What is not scored comes last."""
    return math.inf if math.isnan(value) else value
