"""The quality report as files: quality.json for programs, and quality.html, one page that needs nothing else, for people."""

import base64
import dataclasses
import io
import json
from collections import Counter
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from segsweep.data import storage
from segsweep.data.quality import Finding, QualityReport, Severity, three_digits
from segsweep.data.store import Store
from segsweep.errors import StoreError

# More pictures, or rows, would make the page too large to open.
MOST_PICTURES, MOST_ROWS = 40, 2000
SOFT_TISSUE_HU = (-160, 240)
# What lies above it is patient or couch. Pictures leave out the air around, but for a rim (voxels).
BODY_HU, RIM = -500, 3
PLURALS: Mapping[Severity, str] = {"error": "errors", "warning": "warnings", "info": "notes"}
LOOKED_FOR = (
    "unreadable cases, implausible values and padding, left and right swapped, pairs off the midline or of unlike size, absent structures, "
    "unusual volumes, loose fragments, and scans that are there twice"
)
# Okabe and Ito's colours, which colour-blind people tell apart.
CONCERNED, OTHER = "#E69F00", "#56B4E9"

# The browser itself holds the page to what it brings, and runs nothing.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0 2rem; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.count { display: inline-block; margin-right: 2rem; } .count b { font-size: 1.8rem; display: block; }
.error { color: #A33E00; font-weight: 600; } .warning { color: #7A5C00; font-weight: 600; } .info { color: #555; }
figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; }
figcaption { font-size: .85rem; color: #555; max-width: 16rem; }
"""


def write(report: QualityReport, *, store: Store, folder: str | Path) -> str:
    """Write quality.json and quality.html into `folder`, which may be remote (in place of older ones); returns the page's address."""
    page = f"{folder}/quality.html"
    values = json.dumps(dataclasses.asdict(report), indent=1)
    for path, text in ((f"{folder}/quality.json", values), (page, _page(report, store=store))):
        storage.write_bytes(path, text.encode())
    return page


def _page(report: QualityReport, *, store: Store) -> str:
    counts = Counter(found.severity for found in report.findings)
    shown = [(report.num_cases, "cases"), *((counts[name], plural) for name, plural in PLURALS.items())]
    numbers = "".join(f'<span class="count"><b>{number}</b>{name}</span>' for number, name in shown)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>Quality of {escape(report.dataset)}</title>"
        f"<style>{STYLE}</style><h1>Quality of {escape(report.dataset)}</h1><p>{numbers}</p>"
        f"<h2>Findings</h2>{_findings(report)}<h2>Structures</h2>{_structures(report)}"
        f"{_pictures(report, store=store)}<p class='info'>Digest of the store: {escape(report.digest)}</p></html>\n"
    )


def _findings(report: QualityReport) -> str:
    if not report.findings:
        return f"<p>Nothing to report. Looked for: {LOOKED_FOR}.</p>"
    rows = "".join(
        f'<tr><td class="{found.severity}">{found.severity}</td><td>{escape(found.case_id or "all")}</td>'
        f"<td>{escape(found.structure)}</td><td>{escape(found.message)}</td></tr>"
        for found in report.findings[:MOST_ROWS]
    )
    left_out = len(report.findings) - MOST_ROWS
    note = (
        f"<p>The first {MOST_ROWS} findings, the worst; {left_out} more are in quality.json.</p>"
        if left_out > 0
        else ""
    )
    return f"{note}<table><tr><th>severity<th>case<th>structure<th>what was found</tr>{rows}</table>"


def _structures(report: QualityReport) -> str:
    rows = "".join(
        f"<tr><td>{escape(one.name)}</td>"
        + "".join(f'<td class="number">{number}</td>' for number in (one.annotated, one.present))
        + "".join(
            f'<td class="number">{three_digits(volume)}</td>'
            for volume in (one.median_ml, one.smallest_ml, one.largest_ml)
        )
        + "</tr>"
        for one in report.structures
    )
    heads = ("annotated", "present", "median ml", "smallest ml", "largest ml")
    return f"<table><tr><th>structure{''.join(f'<th class=number>{head}' for head in heads)}</tr>{rows}</table>"


def _pictures(report: QualityReport, *, store: Store) -> str:
    """A picture of each case with an error or a warning, the worst first."""
    concerned: dict[str, list[Finding]] = {}
    for found in report.findings:
        if found.case_id and found.severity != "info":
            concerned.setdefault(found.case_id, []).append(found)
    figures = [
        _figure(found, case_id=case_id, store=store) for case_id, found in list(concerned.items())[:MOST_PICTURES]
    ]
    if not figures:
        return ""
    left_out = len(concerned) - len(figures)
    note = f" The first {MOST_PICTURES} cases; {left_out} more have findings." if left_out else ""
    legend = f"Orange: what the findings name; blue: other structures; the patient's left is on the right.{note}"
    return f"<h2>Pictures</h2><p>{legend}</p>{''.join(figures)}"


def _figure(findings: list[Finding], *, case_id: str, store: Store) -> str:
    names = sorted({found.structure for found in findings if found.structure})
    said = [": ".join(filter(None, (found.structure, found.message))) for found in findings]
    caption = escape(f"{case_id}: {'; '.join(said)}")
    try:
        png = _overlay(case_id, names=names, store=store)
    except StoreError:
        return f"<figure><figcaption>{caption} (the case cannot be read)</figcaption></figure>"
    text = base64.b64encode(png).decode("ascii")
    return (
        f'<figure><img alt="{caption}" src="data:image/png;base64,{text}"><figcaption>{caption}</figcaption></figure>'
    )


def _overlay(case_id: str, *, names: list[str], store: Store) -> bytes:
    """PNG of the axial slice where the named structures are largest, or of the middle one."""
    grid = store.grid(case_id)
    label = grid.read_label()
    wanted = np.zeros(label.shape, dtype=bool)
    for name in names:
        wanted |= store.table.mask(label, structure=name)
    middle = int(wanted.sum(axis=(1, 2)).argmax()) if wanted.any() else grid.shape[0] // 2
    image = grid.read_image((slice(middle, middle + 1), slice(None), slice(None)))[0, 0]
    _, mm_y, mm_x = grid.geometry.spacing
    figure = Figure(figsize=(2.8, 2.8), dpi=90, facecolor="black")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.imshow(image, cmap="gray", vmin=SOFT_TISSUE_HU[0], vmax=SOFT_TISSUE_HU[1], aspect=mm_y / mm_x)
    others = (label[middle] > 0) & (label[middle] != store.table.ignored) & ~wanted[middle]
    _outline(axes, mask=others, colour=OTHER)
    _outline(axes, mask=wanted[middle], colour=CONCERNED)
    _zoom(axes, mask=(image > BODY_HU) | wanted[middle])
    stream = io.BytesIO()
    canvas.print_png(stream)
    return stream.getvalue()


def _outline(axes: Axes, *, mask: NDArray[np.bool_], colour: str) -> None:
    if mask.any() and min(mask.shape) > 1:
        # A rim of background closes outlines at the edge of the picture.
        height, width = mask.shape
        rows, columns = np.arange(-1, height + 1), np.arange(-1, width + 1)
        axes.contour(columns, rows, np.pad(mask, 1).astype(float), levels=[0.5], colors=[colour], linewidths=1.0)


def _zoom(axes: Axes, *, mask: NDArray[np.bool_]) -> None:
    """Show what the mask holds; an empty one changes nothing."""
    if mask.any():
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        axes.set_xlim(columns[0] - RIM, columns[-1] + RIM)
        axes.set_ylim(rows[-1] + RIM, rows[0] - RIM)
