"""The page of a published comparison: the paper's figures beside ours, and how each row was run; one HTML file on its own."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from segsweep.evaluation.page import number, page, table, text

PARTS = ("published", "ours", "difference")


def render(document: Mapping[str, Any]) -> str:
    """The HTML text of what a comparison's comparison.json holds."""
    title = html.escape(document["title"])
    notices = "<br>".join(html.escape(text) for text in document["notices"])
    body = (
        f"<h1>{title}</h1><p>{html.escape(document['source'])}</p>"
        f"<p class='muted'>Published: {html.escape(document['measured'])}.</p>"
        + (f'<p class="warn">{notices}</p>' if notices else "")
        + "<h2>Published and ours</h2>"
        + figures(document["rows"])
        + "<h2>As it was run</h2>"
        + _runs(document["rows"])
        + "<h2>What ours is measured on</h2>"
        + _measured(document)
    )
    return page(document["title"], body=body)


def figures(rows: Sequence[Mapping[str, Any]]) -> str:
    """A column triple for every figure that ours has too; one for a figure that only the paper has."""
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    parts = {
        name: [part for part in PARTS if any(_value(row, name, part) is not None for row in rows)] for name in names
    }
    heads = ["row", *(f"{name} {part}" for name in names for part in parts[name])]
    cells = (
        [
            text(row["name"]),
            *(
                number(_value(row, name, part), digits=4, sign="+" if part == "difference" else "")
                for name in names
                for part in parts[name]
            ),
        ]
        for row in rows
    )
    note = "<p class='muted'>Fractions from 0 to 1; the difference is ours minus published.</p>"
    return table(heads, rows=cells) + note


def _runs(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ["row", "state", "trainable", "starts from", "epochs (published)", "patch (published)", "trial"]
    cells = (
        [
            text(row["name"]),
            text(f"{row['state']}: {row['reason']}" if row["reason"] else row["state"]),
            text(f"mean of {', '.join(row['members'])}" if row["members"] else row["trainable"]),
            text(row["start"]),
            text("" if row["members"] else f"{row.get('epochs', '-')} ({row['published_epochs']})"),
            text("" if row["members"] else f"{_size(row.get('patch_size'))} ({_size(row['published_patch_size'])})"),
            text(row.get("trial", "")),
        ]
        for row in rows
    )
    note = "<p class='muted'>Patches in voxels (z, y, x); where the paper gives none, the store's plan counts.</p>"
    return table(heads, rows=cells, kind="text") + note


def _measured(document: Mapping[str, Any]) -> str:
    cases, structures = document["cases"], document["structures"]
    return (
        f"<p>Dice on whole scans of {html.escape(document['dataset'])}: {len(cases)} cases that fold {document['fold']} holds out, "
        f"{len(structures)} structures ({html.escape(', '.join(structures))}); mean over cases, then over structures.</p>"
        f"<p class='muted'>{html.escape(', '.join(cases))}</p>"
    )


def _value(row: Mapping[str, Any], name: str, part: str) -> float | None:
    return row["metrics"].get(name, {}).get(part)


def _size(size: Sequence[int] | None) -> str:
    return "x".join(map(str, size)) if size else "-"
