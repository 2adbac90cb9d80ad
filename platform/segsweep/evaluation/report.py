"""The report: one HTML file that opens anywhere, with nothing fetched from a network."""

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segsweep.evaluation.charts import COLOURS, strips
from segsweep.evaluation.metrics import Score
from segsweep.evaluation.page import interval, number, page, table, text
from segsweep.evaluation.pictures import PREDICTION_COLOUR, REFERENCE_COLOUR, three_planes
from segsweep.evaluation.ranking_page import ranking_section
from segsweep.evaluation.sources import Source, read_case

NUM_PICTURES = 8
METRICS = {"dice": "Dice", "nsd": "NSD"}


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a report is made from. `models` and `source` are read again for the pictures of the worst cases."""

    title: str
    scores: Mapping[str, Sequence[Score]]
    summary: Mapping[str, Any]
    source: Source
    models: Mapping[str, Source]


def render(report: Report) -> str:
    """The whole HTML text."""
    summary = report.summary
    lead = (
        f"{len(summary['cases'])} cases, {len(summary['structures'])} structures, profile <b>{html.escape(summary['profile'])}</b>. "
        "Means with 95 % bootstrap intervals over cases."
    )
    parts = [
        f"<h1>{html.escape(report.title)}</h1><p>{lead}</p>",
        _remarks(summary),
        "<h2>Means per structure</h2>",
        _means(summary),
        _paired(summary),
        ranking_section(summary),
        "<h2>Every case</h2>",
        _key(report.scores),
        *(
            f"<h3>{label}</h3>{strips(_values(report.scores, metric=metric), title=label)}"
            for metric, label in METRICS.items()
        ),
        _worst(report),
        "<h2>All scores</h2>",
        _all_scores(next(iter(report.scores.values()))),
    ]
    return page(f"{report.title}: evaluation", body="".join(parts))


def _remarks(summary: Mapping[str, Any]) -> str:
    told = {
        "missing_cases": "no prediction for",
        "structures_not_predicted": "does not predict",
        "cases_with_forbidden_values": "forbidden label values (scored 0) in",
    }
    lines = [
        f"{html.escape(model)}: {text} {html.escape(', '.join(names))}"
        for key, text in told.items()
        for model, names in summary[key].items()
    ]
    outside = summary["structures_outside_profile"]
    lines += [f"not scored by this profile: {html.escape(', '.join(outside))}"] if outside else []
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
    rows = []
    for model, metrics in summary["differences"].items():
        for name in ("all", *summary["structures"]):
            row = [text(name), text(model)]
            for metric in METRICS:
                entry = metrics[metric]["overall"] if name == "all" else metrics[metric]["structures"][name]
                row += [interval(entry, sign="+"), number(entry.get("p_holm", math.nan), digits=3)]
            rows.append(row)
    ranks = ", ".join(f"{html.escape(model)} {rank:.2f}" for model, rank in summary["mean_rank"].items())
    return (
        f"<h2>{main} against the others</h2><p class='muted'>{main} minus the other model on the same cases, with 95 % interval; "
        f"p by Wilcoxon's signed ranks, Holm-adjusted over structures. Mean rank over structures and metrics (1 is best): {ranks}.</p>"
        + table(heads, rows=rows, kind="text")
    )


def _worst(report: Report) -> str:
    """The main model's worst structures first, at most one a case and structure, read again for their pictures."""
    name, scores = next(iter(report.scores.items()))
    ranked = sorted((s for s in scores if not math.isnan(s.dice)), key=lambda s: (s.dice, s.nsd))[:NUM_PICTURES]
    pictures = "".join(_figure(score, source=report.source, model=report.models[name]) for score in ranked)
    legend = (
        f'<span class="key" style="background:{REFERENCE_COLOUR}"></span>reference (solid)'
        f'<span class="key" style="background:{PREDICTION_COLOUR}"></span>prediction (dashed)'
    )
    return (
        f"<h2>Worst cases</h2><p>{legend}</p><p class='muted'>Through the structure's centre; CT window -160 to 240 HU; "
        f"the patient's right is on the left.</p>{pictures}"
    )


def _figure(score: Score, *, source: Source, model: Source) -> str:
    truth = source.read(score.case)
    reference = truth.mask(score.structure)
    predicted = read_case(model, case=score.case, like=truth) if score.case in model.cases else None
    found = predicted.mask(score.structure) if predicted else reference & False
    image = source.image(score.case)
    png = three_planes(image, reference=reference, prediction=found, spacing=truth.geometry.spacing)
    label = f"{html.escape(score.case)}, {html.escape(score.structure)}: Dice {score.dice:.3f}, NSD {score.nsd:.3f}"
    if not math.isnan(score.hd95_mm):
        label += f", HD95 {score.hd95_mm:.1f} mm"
    if png is None:
        return f"<figure><figcaption>{label} (both masks are empty)</figcaption></figure>"
    text = base64.b64encode(png).decode()
    return f'<figure><img alt="{label}" src="data:image/png;base64,{text}"><figcaption>{label}</figcaption></figure>'


def _all_scores(scores: Sequence[Score]) -> str:
    columns = {
        "dice": 3, "iou": 3, "nsd": 3, "hd95_mm": 2, "hd100_mm": 2, "asd_reference_to_prediction_mm": 2,
        "asd_prediction_to_reference_mm": 2, "volume_reference_ml": 2, "volume_prediction_ml": 2,
    }  # fmt: skip
    names = ["Dice", "IoU", "NSD", "HD95 mm", "HD mm", "ASD ref→pred mm", "ASD pred→ref mm", "ref ml", "pred ml"]
    rows = [
        [text(s.case), text(s.structure), *(number(getattr(s, column), digits=n) for column, n in columns.items())]
        for s in sorted(scores, key=lambda s: (math.isnan(s.dice), s.dice))
    ]
    return table(["case", "structure", *names], rows=rows, kind="text")


def _key(scores: Mapping[str, Sequence[Score]]) -> str:
    keys = (
        f'<span class="key" style="background:{COLOURS[i % len(COLOURS)]}"></span>{html.escape(model)}'
        for i, model in enumerate(scores)
    )
    return f"<p>{''.join(keys)}</p><p class='muted'>A dot is a case, the box runs from quartile to quartile, the bar is the median.</p>"


def _values(scores: Mapping[str, Sequence[Score]], *, metric: str) -> dict[str, dict[str, list[float]]]:
    structures = dict.fromkeys(score.structure for rows in scores.values() for score in rows)
    return {
        structure: {
            model: [getattr(s, metric) for s in rows if s.structure == structure] for model, rows in scores.items()
        }
        for structure in structures
    }
