"""The page of a promotion decision: by how much the candidate is better or worse, in which structures, on which cases."""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segsweep.evaluation.charts import COLOURS, strips
from segsweep.evaluation.page import number, page, table, text
from segsweep.evaluation.promotion import Difference, Verdict
from segsweep.evaluation.statistics import Interval

ROLES = ("champion", "candidate")


@dataclass(frozen=True, kw_only=True)
class PromotionReport:
    """What a page is made from. `scores` has the tables (cases, structures) by model, the champion's first; NaN = not scored.

    `decision` is the outcome as a sentence, `notices` are what its reader has to know beside it.
    """

    title: str
    decision: str
    dataset: str
    metric: str
    cases: Sequence[str]
    scores: Mapping[str, NDArray[np.float64]]
    verdict: Verdict
    notices: Sequence[str]


def render(report: PromotionReport) -> str:
    """The whole HTML text."""
    notices = "<br>".join(html.escape(notice) for notice in report.notices)
    body = (
        f"<h1>{html.escape(report.title)}</h1><p><b>{html.escape(report.decision)}</b></p>"
        + (f'<p class="warn">{notices}</p>' if notices else "")
        + f"<h2>Difference in {html.escape(report.metric)}</h2>"
        + _differences(report)
        + "<h2>How it was decided</h2>"
        + _rule(report)
        + "<h2>Every case</h2>"
        + _strips(report)
        + _cases(report)
    )
    return page(report.title, body=body)


def _differences(report: PromotionReport) -> str:
    verdict, tables = report.verdict, tuple(report.scores.values())
    heads = ["structure", *ROLES, "difference", "p", "p corrected", "cases", "candidate is"]
    rows = []
    for column, (name, difference) in enumerate(verdict.structures.items()):
        paired = _paired([scores[:, [column]] for scores in tables])
        rows.append(_row(name, means=[_mean(scores) for scores in paired], difference=difference))
    means = [_mean(scores) for scores in _paired(tables)]
    note = (
        f"<p class='muted'>Candidate minus champion, with {100 * verdict.level:g} % interval. Means over cases that both were scored on; "
        "overall, the mean of the structures' means.</p>"
    )
    return table(heads, rows=rows, foot=_row("all", means=means, difference=verdict.overall)) + note


def _rule(report: PromotionReport) -> str:
    verdict = report.verdict
    chosen = (
        f" Here p was multiplied by {verdict.choices}: the candidate is the best of so many trials on cases among these."
        if verdict.choices > 1
        else ""
    )
    return (
        f"<p>Whole scans of {html.escape(report.dataset)} that neither model was trained on: {verdict.cases} cases, "
        f"{len(verdict.structures)} structures. The candidate takes the champion's place when the studentised bootstrap interval of "
        "the overall difference lies above zero (cases drawn with all their structures) and Wilcoxon's signed ranks of the cases' mean "
        f"differences give p corrected below {1 - verdict.level:.2g}.{chosen} Of models that are equally good, so that their names "
        f"could be swapped, at most {50 * (1 - verdict.level):.2g} % are promoted by that. The p of structures are Holm-adjusted; "
        "they decide nothing.</p>"
    )


def _strips(report: PromotionReport) -> str:
    keys = (
        f'<span class="key" style="background:{COLOURS[i % len(COLOURS)]}"></span>{role} {html.escape(model)}'
        for i, (role, model) in enumerate(zip(ROLES, report.scores, strict=True))
    )
    values = {
        name: {model: scores[:, column].tolist() for model, scores in report.scores.items()}
        for column, name in enumerate(report.verdict.structures)
    }
    return f"<p>{''.join(keys)}</p>{strips(values, title=report.metric)}"


def _cases(report: PromotionReport) -> str:
    champion, candidate = ([_mean(row[None]) for row in scores] for scores in report.scores.values())
    rows = [
        [
            text(case),
            number(champion[i], digits=4),
            number(candidate[i], digits=4),
            number(candidate[i] - champion[i], digits=4, sign="+"),
        ]
        for i, case in enumerate(report.cases)
    ]
    return table(["case", *ROLES, "difference"], rows=rows)


def _row(name: str, *, means: Sequence[float], difference: Difference) -> list[str]:
    return [
        text(name),
        *(number(mean, digits=4) for mean in means),
        _interval(difference.interval),
        _probability(difference.p),
        _probability(difference.p_corrected),
        text(difference.interval.cases),
        text("-" if difference.finding == "open" else difference.finding),
    ]


def _probability(p: float) -> str:
    return number(None, digits=4) if math.isnan(p) else f'<td data-v="{p!r}">{p:.2g}</td>'


def _interval(interval: Interval) -> str:
    """With four decimals: models that compete for a place differ in the third."""
    if not interval.cases:
        return number(None, digits=4)
    ends = f"[{interval.low:+.4f}, {interval.high:+.4f}]"
    return f'<td data-v="{interval.mean!r}">{interval.mean:+.4f} <span class="muted">{ends}</span></td>'


def _paired(tables: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """The tables with NaN wherever one of them has it."""
    both = ~np.isnan(np.sum(tables, axis=0))
    return [np.where(both, scores, np.nan) for scores in tables]


def _mean(scores: NDArray[np.float64]) -> float:
    """Mean over structures of their means over cases."""
    columns = [column[~np.isnan(column)] for column in scores.T]
    means = [column.mean() for column in columns if len(column)]
    return float(np.mean(means)) if means else math.nan
