"""The report: one HTML file that opens anywhere, with nothing fetched from a network."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segsweep.evaluation import viewer
from segsweep.evaluation.charts import COLOURS, strips
from segsweep.evaluation.metrics import Score
from segsweep.evaluation.page import ends, interval, number, page, probability, sections, table, text
from segsweep.evaluation.ranking_page import ranking_section
from segsweep.evaluation.score_tables import METRICS, case_table, score_table
from segsweep.evaluation.sources import Source
from segsweep.evaluation.tally import remarks
from segsweep.evaluation.worst import legend, look


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report is made from. `models` and `source` are read again for the pictures of the worst cases.

    `view` is for the slice viewer: so many of the worst cases, or cases by name.
    """

    title: str
    scores: Mapping[str, Sequence[Score]]
    summary: Mapping[str, Any]
    source: Source
    models: Mapping[str, Source]
    view: int | tuple[str, ...] = 3


def render(report: Report) -> str:
    """The whole HTML text."""
    summary, scores = report.summary, report.scores
    main = next(iter(scores))
    seen = look(scores[main], source=report.source, model=report.models[main], view=report.view)
    lead = (
        f"{len(summary['cases'])} cases, {len(summary['structures'])} structures, profile <b>{html.escape(summary['profile'])}</b>. "
        "Means with 95 % bootstrap intervals over cases."
    )
    parts = {
        "Structures": _means(summary),
        "Against the others": _paired(summary),
        "Ranking": ranking_section(summary),
        "Every case": _distributions(scores),
        "Worst results": legend() + seen.figures if seen.figures else "",
        "Slice viewer": viewer.render(seen.packed) + _left_out(seen.left_out),
        "Cases": case_table(scores, viewed={case.about["case"] for case in seen.packed}),
        "All scores": _all_scores(scores),
    }
    head = f"<h1>{html.escape(report.title)}</h1><p>{lead}</p>{_remarks(summary)}{_cards(summary)}"
    script = viewer.SCRIPT.read_text() if seen.packed else ""
    return page(f"{report.title}: evaluation", body=head + sections(parts), script=script)


def _left_out(cases: Sequence[str]) -> str:
    if not cases:
        return ""
    names = html.escape(", ".join(cases))
    most = viewer.MOST_VALUES - 1
    return f"<p class='warn'>Not shown, for want of a prediction or reference, or for more than {most} label values: {names}.</p>"


def _cards(summary: Mapping[str, Any]) -> str:
    """Each model's means over everything, in large figures; the colour is the model's in the plots below."""
    shown = []
    for place, (model, entries) in enumerate(summary["models"].items()):
        figures = "".join(
            f'<dt>{label}</dt><dd class="mean">{entry["mean"]:.3f}</dd><dd>{ends(entry)}</dd>'
            for label, entry in ((label, entries["overall"][metric]) for metric, label in METRICS.items())
            if entry["cases"]
        )
        colour = COLOURS[place % len(COLOURS)]
        shown.append(
            f'<div class="card" style="border-top-color:{colour}"><b>{html.escape(model)}</b><dl>{figures}</dl></div>'
        )
    return f'<div class="cards">{"".join(shown)}</div>'


def _remarks(summary: Mapping[str, Any]) -> str:
    lines = [html.escape(line) for line in remarks(summary)]
    return f'<p class="warn">{"<br>".join(lines)}</p>' if lines else ""


def _means(summary: Mapping[str, Any]) -> str:
    models = summary["models"]
    heads = ["structure", *(f"{model} {label}" for model in models for label in METRICS.values())]
    heads += ["cases", "HD95 mm"]
    main = next(iter(models.values()))
    rows = []
    for name in summary["structures"]:
        cells = [interval(model["structures"][name][metric]) for model in models.values() for metric in METRICS]
        own = main["structures"][name]
        rows.append([text(name), *cells, text(own["dice"]["cases"]), number(own["hd95_mm"]["mean"], digits=2)])
    overall = [interval(model["overall"][metric]) for model in models.values() for metric in METRICS]
    return table(heads, rows=rows, foot=[text("all"), *overall, text(main["overall"]["dice"]["cases"]), text("")])


def _paired(summary: Mapping[str, Any]) -> str:
    if not summary["differences"]:
        return ""
    main = html.escape(next(iter(summary["models"])))
    heads = ["structure", "compared with", "Dice difference", "p (Holm)", "NSD difference", "p (Holm)"]
    overall, each = [], []
    for model, metrics in summary["differences"].items():
        overall.append(_difference("all", model=model, entries=[metrics[metric]["overall"] for metric in METRICS]))
        each += [
            _difference(name, model=model, entries=[metrics[metric]["structures"][name] for metric in METRICS])
            for name in summary["structures"]
        ]
    ranks = ", ".join(f"{html.escape(model)} {rank:.2f}" for model, rank in summary["mean_rank"].items())
    return (
        f"<p class='muted'>{main} minus the other model on the same cases, with 95 % interval; "
        f"p by Wilcoxon's signed ranks, Holm-adjusted over structures. Mean rank over structures and metrics (1 is best): {ranks}.</p>"
        + table(heads, rows=overall, kind="text")
        + f"<details><summary>every structure</summary>{table(heads, rows=each, kind='text')}</details>"
    )


def _difference(name: str, *, model: str, entries: Sequence[Mapping[str, Any]]) -> list[str]:
    figures = (cell for entry in entries for cell in (interval(entry, sign="+"), probability(entry.get("p_holm"))))
    return [text(name), text(model), *figures]


def _distributions(scores: Mapping[str, Sequence[Score]]) -> str:
    keys = (
        f'<span class="key" style="background:{COLOURS[i % len(COLOURS)]}"></span>{html.escape(model)}'
        for i, model in enumerate(scores)
    )
    plots = "".join(
        f"<h3>{label}</h3>{strips(_values(scores, metric=metric), title=label)}" for metric, label in METRICS.items()
    )
    return (
        f"<p>{''.join(keys)}</p><p class='muted'>A dot is a case, the box runs from quartile to quartile, the bar is the median, "
        f"the pale shape shows where scores are dense.</p>{plots}"
    )


def _all_scores(scores: Mapping[str, Sequence[Score]]) -> str:
    """Closed at first: a long table takes a browser its time."""
    main, *others = scores
    rest = (
        f" Those of the other models are in {', '.join(f'scores_{html.escape(name)}.csv' for name in others)}."
        if others
        else ""
    )
    return (
        f"<p class='muted'>{html.escape(main)}, one row a case and structure, as in scores.csv.{rest}</p>"
        f"<details><summary>{len(scores[main])} rows</summary>{score_table(scores[main])}</details>"
    )


def _values(scores: Mapping[str, Sequence[Score]], *, metric: str) -> dict[str, dict[str, list[float]]]:
    structures = dict.fromkeys(score.structure for rows in scores.values() for score in rows)
    values = {structure: {model: [] for model in scores} for structure in structures}
    for model, rows in scores.items():
        for score in rows:
            values[score.structure][model].append(getattr(score, metric))
    return values
