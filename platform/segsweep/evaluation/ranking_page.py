"""The table of a ranking for the report: places, mean ranks by every way to rank, and how often each model leads."""

import math
from collections.abc import Mapping
from typing import Any

from segsweep.evaluation.page import number, table, text

WAYS = {"structures": "by structures", "cases": "by cases", "tested": "by tests"}


def ranking_rows(ranking: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a model, the best first: place, mean ranks, rank divided by the number of models, share of samples led, places."""
    return [
        {
            "place": one["place"],
            "model": name,
            **{f"rank_{way}": rank for way, rank in one["mean_rank"].items()},
            "normalised": one["normalised"],
            "first": one["first"],
            "place_low": one["places"][0],
            "place_high": one["places"][1],
        }
        for name, one in sorted(ranking["models"].items(), key=lambda item: item[1]["place"])
    ]


def ranking_section(summary: Mapping[str, Any]) -> str:
    """HTML of summary["ranking"], without a heading; nothing for a single model."""
    ranking = summary.get("ranking")
    if not ranking:
        return ""
    heads = ["place", "model", *(f"mean rank {label}" for label in WAYS.values())]
    heads += ["rank / models", "first in % of samples", "place in 95 % of samples"]
    rows = [
        [
            text(row["place"]),
            text(row["model"]),
            *(number(row[f"rank_{way}"], digits=2) for way in WAYS),
            number(row["normalised"], digits=2),
            number(100 * row["first"], digits=1),
            text(f"{row['place_low']:.0f} to {row['place_high']:.0f}"),
        ]
        for row in ranking_rows(ranking)
    ]
    tau = ranking["kendall_tau"]
    agreement = (
        "All models tie, so there is no order whose stability could be told."
        if math.isnan(tau["mean"])
        else f"{ranking['resamples']} bootstrap samples of the cases tell how stable the places are: Kendall's tau with this order is "
        f"{tau['mean']:.2f} [{tau['low']:.2f}, {tau['high']:.2f}], 1 being the same order (Wiesenfarth et al. 2021)."
    )
    lead = (
        f"Placed {WAYS[ranking['by']]}, over {ranking['cases']} cases. By structures: ranked in each structure and metric by the mean over "
        "cases (SegRap2023). By cases: ranked in each case and metric by the mean over structures (FLARE). By tests: as by structures, but "
        "models tie unless one is significantly better (one-sided Wilcoxon, Holm, 5 %). "
        f"{agreement}"
    )
    return f"<p class='muted'>{lead}</p>{table(heads, rows=rows, kind='text')}"
