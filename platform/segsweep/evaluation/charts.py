"""Box and strip plots of scores per structure and model, as inline SVG."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np

# Okabe and Ito's palette, main model first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LEFT, WIDTH, LANE, GAP, TOP = 150, 720, 18, 10, 24


def strips(values: Mapping[str, Mapping[str, Sequence[float]]], *, title: str) -> str:
    """SVG of values from 0 to 1: `values[structure][model]`, a dot a case, a box from quartile to quartile, a bar at the median."""
    parts = []
    top = TOP
    for structure, models in values.items():
        middle = top + LANE * len(models) / 2 + 4
        parts.append(f'<text x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end">{html.escape(structure)}</text>')
        for place, (model, scores) in enumerate(models.items()):
            parts.append(_lane(scores, model=model, colour=COLOURS[place % len(COLOURS)], y=top + LANE * (place + 0.5)))
        top += LANE * len(models) + GAP
    grid = "".join(_line(value / 5, bottom=top) for value in range(6))
    label = html.escape(title)
    return (
        f'<svg class="strips" viewBox="0 0 {WIDTH} {top + 4}" role="img" aria-label="{label}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{label}</title>{grid}{"".join(parts)}</svg>'
    )


def _lane(scores: Sequence[float], *, model: str, colour: str, y: float) -> str:
    finite = [value for value in scores if math.isfinite(value)]
    if not finite:
        return f'<text x="{LEFT + 4}" y="{y + 4:.1f}">no value</text>'
    low, median, high = (_x(float(value)) for value in np.quantile(finite, (0.25, 0.5, 0.75)))
    box = f'<rect x="{low:.1f}" y="{y - 6:.1f}" width="{max(high - low, 1):.1f}" height="12" fill="{colour}" fill-opacity=".2"/>'
    bar = f'<line x1="{median:.1f}" x2="{median:.1f}" y1="{y - 7:.1f}" y2="{y + 7:.1f}" stroke="{colour}" stroke-width="2.5"/>'
    # A fixed up and down keeps dots of equal value apart without any chance in the picture.
    dots = "".join(
        f'<circle cx="{_x(value):.1f}" cy="{y + (i % 3 - 1) * 3.5:.1f}" r="2" fill="{colour}" fill-opacity=".7"/>'
        for i, value in enumerate(finite)
    )
    return f"<g><title>{html.escape(model)}</title>{box}{bar}{dots}</g>"


def _line(value: float, *, bottom: float) -> str:
    x = _x(value)
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 6}" y2="{bottom:.1f}" class="grid"/>'
        f'<text x="{x:.1f}" y="{TOP - 10}" text-anchor="middle">{value:.1f}</text>'
    )


def _x(value: float) -> float:
    return LEFT + (WIDTH - LEFT - 16) * min(1.0, max(0.0, value))
