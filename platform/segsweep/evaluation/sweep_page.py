"""The page of a sweep: its trials and how they ended, their curves, which parameters matter, and what a score costs; one HTML file."""

import html
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from segsweep.evaluation import comparison
from segsweep.evaluation.page import number, page, sections, table, text
from segsweep.evaluation.sweep_charts import Axis, Line, bars, curves, parallel, scatter

Trial = Mapping[str, Any]


def render(document: Mapping[str, Any]) -> str:
    """The HTML text of what a sweep's sweep.json holds."""
    trials = document["trials"]
    ranks = _ranks(document)
    counts = ", ".join(
        f"{count} {html.escape(state)}" for state, count in Counter(trial["state"] for trial in trials).items()
    )
    best = next((trial for trial in trials if ranks.get(trial["name"]) == 1.0), None)
    first = document["objectives"][0]
    head = f"<h1>{html.escape(document['title'])}</h1><p>{len(trials)} trials ended: {counts}.</p>"
    if best:
        drawn = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in best["params"].items()
        )
        head += (
            f'<div class="cards"><div class="card"><b>best: {html.escape(best["name"])}</b><dl><dt>{html.escape(first)}</dt>'
            f'<dd class="mean">{best["values"][first]:.4f}</dd><dd>{html.escape(drawn)}</dd></dl></div></div>'
        )
    parts = {
        "Published and ours": _published(document.get("comparison")),
        "Trials": _trials(document),
        "Learning curves": _curves(trials, ranks=ranks),
        "Parameters": _parallel(document, ranks=ranks),
        "Importance": _importance(document["importance"]),
        "Score and cost": "".join(_cost(cost, trials=trials, score=first) for cost in document["costs"]),
    }
    return page(document["title"], body=head + sections(parts))


def _ranks(document: Mapping[str, Any]) -> dict[str, float]:
    """Trials with a score, from 0 (the worst by the first objective) to 1."""
    first = document["objectives"][0]
    scored = sorted(
        (trial for trial in document["trials"] if first in trial["values"]), key=lambda trial: trial["values"][first]
    )
    most = max(len(scored) - 1, 1)
    return {trial["name"]: 1.0 if trial is scored[-1] else i / most for i, trial in enumerate(scored)}


def _published(document: Mapping[str, Any] | None) -> str:
    if document is None:
        return ""
    notices = "<br>".join(html.escape(notice) for notice in document["notices"])
    warning = f'<p class="warn">{notices}</p>' if notices else ""
    return f"<p>{html.escape(document['source'])}</p>{warning}{comparison.figures(document['rows'])}"


def _trials(document: Mapping[str, Any]) -> str:
    trials = document["trials"]
    values = dict.fromkeys(name for trial in trials for name in trial["values"])
    params = dict.fromkeys(name for trial in trials for name in trial["params"])
    rows = [
        [
            text(trial["name"]),
            text(f"{trial['state']}: {trial['reason']}" if trial["reason"] else trial["state"]),
            *(number(trial["values"].get(name), digits=4) for name in values),
            text(trial["epochs"]),
            *(_param(trial["params"].get(name)) for name in params),
        ]
        for trial in trials
    ]
    return table(["trial", "state", *values, "epochs run", *params], rows=rows, kind="text")


def _param(value: Any) -> str:
    """A number as it is; a dash for what a trial did not draw."""
    if value is None:
        return number(None, digits=0)
    return f'<td data-v="{value!r}">{value:.4g}</td>' if isinstance(value, float) else text(value)


def _curves(trials: Sequence[Trial], *, ranks: Mapping[str, float]) -> str:
    series = {trial["name"]: trial["curve"] for trial in trials if trial["curve"]}
    if not series:
        return ""
    note = "<p class='muted'>Brighter ended better, the best is thick; grey dashes ended without a score. Of several folds, the first.</p>"
    return curves(series, ranks=ranks, y="Dice of patches, smoothed") + note


def _parallel(document: Mapping[str, Any], *, ranks: Mapping[str, float]) -> str:
    """Of what was drawn and differs; the scores come last."""
    trials = document["trials"]
    axes = [axis for axis in map(_axis, document["axes"]) if axis.choices or axis.high > axis.low]
    if not axes:
        return ""
    for name in document["objectives"]:
        scores = [trial["values"][name] for trial in trials if name in trial["values"]]
        axes += [Axis(name=name, low=min(scores), high=max(scores))] if scores else []
    lines = [
        Line(name=trial["name"], values={**trial["params"], **trial["values"]}, rank=ranks.get(trial["name"]))
        for trial in trials
    ]
    note = (
        "<p class='muted'>A line is a trial; brighter is better, the best is thick, grey dashes have no score. What a trial did not draw "
        "is at the foot.</p>"
    )
    return parallel(axes, lines=lines) + note


def _axis(values: Mapping[str, Any]) -> Axis:
    return Axis(
        name=values["name"], choices=tuple(values["choices"]), low=values["low"], high=values["high"], log=values["log"]
    )


def _importance(document: Mapping[str, Any]) -> str:
    if not document["shares"]:
        return f"<p>{html.escape(document['note'])}</p>"
    return f"{bars(document['shares'])}<p class='muted'>{html.escape(document['note'])}</p>"


def _cost(cost: Mapping[str, Any], *, trials: Sequence[Trial], score: str) -> str:
    name = cost["name"]
    points = {
        trial["name"]: (trial["values"][name], trial["values"][score])
        for trial in trials
        if name in trial["values"] and score in trial["values"]
    }
    return f"<h3>{html.escape(f'{score} against {name}')}</h3>{scatter(points, front=cost['front'], x=name, y=score)}"
