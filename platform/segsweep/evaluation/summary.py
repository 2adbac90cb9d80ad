"""What the scores of several models come to: means with intervals, paired differences, ranks; as JSON-able values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segsweep.evaluation.lesions import LesionScore
from segsweep.evaluation.metrics import Score
from segsweep.evaluation.ranking import Ranked, contest, ranking
from segsweep.evaluation.statistics import Interval, difference_interval, holm, mean_interval, mean_ranks, wilcoxon

METRICS = ("dice", "nsd")
ERRORS = (
    "hd95_mm",
    "hd100_mm",
    "asd_reference_to_prediction_mm",
    "asd_prediction_to_reference_mm",
    "assd_mm",
    "volume_error_percent",
)


def summarise(
    scores: Mapping[str, Sequence[Score]],
    *,
    lesions: Mapping[str, Sequence[LesionScore]] | None = None,
    ranked: Ranked = "structures",
) -> dict[str, Any]:
    """Per model and structure: means with 95 % intervals; per compared model: paired differences from the first one, and a ranking.

    The first model is the main one. Differences are main minus other; their p-values (Wilcoxon) are Holm-adjusted over structures.
    """
    main = next(iter(scores))
    structures = list(dict.fromkeys(score.structure for score in scores[main]))
    cases = list(dict.fromkeys(score.case for score in scores[main]))
    tables = {
        model: {
            metric: _table(rows, metric=metric, cases=cases, structures=structures) for metric in (*METRICS, *ERRORS)
        }
        for model, rows in scores.items()
    }
    return {
        "cases": cases,
        "structures": structures,
        "models": {model: _means(table, structures=structures) for model, table in tables.items()},
        "differences": {
            model: {
                metric: _differences(tables[main][metric], other=table[metric], structures=structures)
                for metric in METRICS
            }
            for model, table in tables.items()
            if model != main
        },
        "mean_rank": _ranks(tables) if len(tables) > 1 else {},
        "ranking": ranking(contest(tables, metrics=METRICS), by=ranked) if len(tables) > 1 else {},
        "lesions": {model: _lesions(rows, cases=cases) for model, rows in (lesions or {}).items() if rows},
    }


def finite(value: Any) -> Any:
    """The same value with NaN and infinity as None, which JSON can hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table(rows: Sequence[Score], *, metric: str, cases: list[str], structures: list[str]) -> NDArray[np.float64]:
    table = np.full((len(cases), len(structures)), np.nan)
    row_of = {case: i for i, case in enumerate(cases)}
    column_of = {structure: i for i, structure in enumerate(structures)}
    for score in rows:
        if score.case in row_of and score.structure in column_of:
            table[row_of[score.case], column_of[score.structure]] = getattr(score, metric)
    return table


def _means(table: Mapping[str, NDArray], *, structures: list[str]) -> dict[str, Any]:
    overall = {metric: _interval(mean_interval(table[metric])) for metric in METRICS}
    each = {
        structure: {metric: _interval(mean_interval(values[:, i])) for metric, values in table.items()}
        for i, structure in enumerate(structures)
    }
    return {"overall": overall, "structures": each}


def _lesions(rows: Sequence[LesionScore], *, cases: list[str]) -> dict[str, Any]:
    """By structure: mean F1 and Dice over cases with intervals, and the lesions of all cases together."""
    found = {}
    for structure in dict.fromkeys(row.structure for row in rows):
        own = [row for row in rows if row.structure == structure and row.case in cases]
        counts = {name: sum(getattr(row, name) for row in own) for name in ("found", "missed", "invented")}
        means = {name: _interval(mean_interval([getattr(row, name) for row in own])) for name in ("f1", "dice")}
        found[structure] = means | counts
    return found


def _differences(first: NDArray, *, other: NDArray, structures: list[str]) -> dict[str, Any]:
    pvalues = [wilcoxon(first[:, i], second=other[:, i]) for i in range(len(structures))]
    adjusted = holm(pvalues)
    each = {
        structure: _interval(difference_interval(first[:, i], second=other[:, i]))
        | {"p": pvalues[i], "p_holm": float(adjusted[i])}
        for i, structure in enumerate(structures)
    }
    return {"overall": _interval(difference_interval(first, second=other)), "structures": each}


def _ranks(tables: Mapping[str, Mapping[str, NDArray]]) -> dict[str, float]:
    """Rank-then-average as SegRap does: every structure and metric is a contest of the models' means over cases."""
    contests = np.concatenate([_contests(tables, metric=metric) for metric in METRICS])
    contests = contests[~np.isnan(contests).all(axis=1)]
    ranks = mean_ranks(contests) if len(contests) else np.full(len(tables), np.nan)
    return dict(zip(tables, ranks.tolist(), strict=True))


def _contests(tables: Mapping[str, Mapping[str, NDArray]], *, metric: str) -> NDArray:
    means = [[mean_interval(column, resamples=1).mean for column in table[metric].T] for table in tables.values()]
    return np.array(means).T


def _interval(interval: Interval) -> dict[str, Any]:
    return {"mean": interval.mean, "low": interval.low, "high": interval.high, "cases": interval.cases}
