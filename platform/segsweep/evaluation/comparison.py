"""The page of a published comparison: the paper's figures beside ours, and how each row was run; one HTML file on its own."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segsweep.evaluation.report import SCRIPT, STYLE

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
        + _figures(document["rows"])
        + "<h2>As it was run</h2>"
        + _runs(document["rows"])
        + "<h2>What ours is measured on</h2>"
        + _measured(document)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def _figures(rows: Sequence[Mapping[str, Any]]) -> str:
    """A column triple for every figure that ours has too; one for a figure that only the paper has."""
    names = dict.fromkeys(name for row in rows for name in row["metrics"])
    parts = {
        name: [part for part in PARTS if any(_value(row, name, part) is not None for row in rows)] for name in names
    }
    heads = ["row", *(f"{name} {part}" for name in names for part in parts[name])]
    cells = (
        [
            _text(row["name"]),
            *(_number(_value(row, name, part), signed=part == "difference") for name in names for part in parts[name]),
        ]
        for row in rows
    )
    note = "<p class='muted'>Fractions from 0 to 1; the difference is ours minus published.</p>"
    return _table(heads, rows=cells) + note


def _runs(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ["row", "state", "trainable", "starts from", "epochs (published)", "patch (published)", "trial"]
    cells = (
        [
            _text(row["name"]),
            _text(f"{row['state']}: {row['reason']}" if row["reason"] else row["state"]),
            _text(f"mean of {', '.join(row['members'])}" if row["members"] else row["trainable"]),
            _text(row["start"]),
            _text("" if row["members"] else f"{row.get('epochs', '-')} ({row['published_epochs']})"),
            _text("" if row["members"] else f"{_size(row.get('patch_size'))} ({_size(row['published_patch_size'])})"),
            _text(row.get("trial", "")),
        ]
        for row in rows
    )
    note = "<p class='muted'>Patches in voxels (z, y, x); where the paper gives none, the store's plan counts.</p>"
    return _table(heads, rows=cells, kind="text") + note


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


def _table(heads: Sequence[str], *, rows: Iterable[Sequence[str]], kind: str = "") -> str:
    head = "".join(f'<th scope="col"><button>{html.escape(text)}</button></th>' for text in heads)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _text(value: object) -> str:
    return f"<td>{html.escape(str(value))}</td>"


def _number(value: float | None, *, signed: bool) -> str:
    if value is None or not math.isfinite(value):
        return '<td data-v="">-</td>'
    return f'<td data-v="{value!r}">{value:{"+" if signed else ""}.4f}</td>'
