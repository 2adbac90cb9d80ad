"""Box, violin and strip plots of scores per structure and model, as HTML rows with inline SVG that stretch with the page."""

import html
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# Okabe and Ito's palette, main model first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
# Height of a model's lane: in units of the drawing, and in pixels.
LANE, PIXELS = 10, 22
# A density of fewer cases would draw what is not there.
LEAST_FOR_VIOLIN, VIOLIN_POINTS = 5, 25


def strips(values: Mapping[str, Mapping[str, Sequence[float]]], *, title: str) -> str:
    """A row a structure of values from 0 to 1: `values[structure][model]`; lanes have the models' order, from the top.

    A dot is a case; the box runs from quartile to quartile with a bar at the median, in a violin where there are cases enough.
    """
    known = [
        value for models in values.values() for scores in models.values() for value in scores if math.isfinite(value)
    ]
    ticks = _ticks(min(known, default=0.0))
    axis = "".join(f"<span>{tick:g}</span>" for tick in ticks)
    rows = "".join(
        f'<span class="name">{html.escape(structure)}</span>{_row(models, ticks=ticks, label=f"{structure}: {title}")}'
        for structure, models in values.items()
    )
    return f'<div class="plot"><div class="axis" aria-hidden="true">{axis}</div>{rows}</div>'


def _ticks(least: float) -> tuple[float, ...]:
    """Where the axis is marked, from the first mark below the least value to 1."""
    begin = min(math.floor(max(least, 0.0) * 5), 4) / 5
    parts = {0.0: 5, 0.2: 4, 0.4: 6, 0.6: 4, 0.8: 4}[begin]
    return tuple(round(begin + (1 - begin) * i / parts, 4) for i in range(parts + 1))


def _row(models: Mapping[str, Sequence[float]], *, ticks: Sequence[float], label: str) -> str:
    height = LANE * len(models)
    places = np.linspace(0, 100, len(ticks))
    grid = "".join(f"M{x:.4g} 0v{height}" for x in places)
    lanes = "".join(
        _lane(
            np.array([score for score in scores if math.isfinite(score)], dtype=float),
            model=model, colour=COLOURS[place % len(COLOURS)], y=LANE * (place + 0.5), low=ticks[0],
        )
        for place, (model, scores) in enumerate(models.items())
    )  # fmt: skip
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 {height}" preserveAspectRatio="none" role="img" '
        f'aria-label="{html.escape(label)}" style="height:{PIXELS * len(models)}px"><path class="grid" d="{grid}"/>{lanes}</svg>'
    )


def _lane(scores: NDArray[np.float64], *, model: str, colour: str, y: float, low: float) -> str:
    if not len(scores):
        return f"<g><title>{html.escape(model)}: no value</title></g>"
    x = 100 * (np.clip(scores, low, 1.0) - low) / (1 - low)
    first, median, third = np.quantile(x, (0.25, 0.5, 0.75))
    quartiles = " to ".join(f"{value:.3f}" for value in np.quantile(scores, (0.25, 0.75)))
    words = (
        f"{model}: median {np.median(scores):.3f}, quartiles {quartiles}, least {scores.min():.3f}, {len(scores)} cases"
    )
    violin = f'<path d="{_violin(x, y=y)}" fill="{colour}" fill-opacity=".18"/>' if len(x) >= LEAST_FOR_VIOLIN else ""
    # A fixed up and down keeps dots of equal value apart without any chance in the picture.
    dots = "".join(f"M{place:.1f} {y + (i % 3 - 1) * 2:.4g}h0" for i, place in enumerate(x))
    return (
        f'<g stroke="none"><title>{html.escape(words)}</title>{violin}'
        f'<rect x="{first:.1f}" y="{y - 3:.4g}" width="{max(third - first, 0.1):.1f}" height="6" fill="{colour}" fill-opacity=".3"/>'
        f'<path class="dots" d="{dots}" stroke="{colour}"/>'
        f'<path d="M{median:.1f} {y - 4:.4g}v8" stroke="#000" stroke-width="2.5"/></g>'
    )


def _violin(x: NDArray[np.float64], *, y: float) -> str:
    """Outline of a Gaussian density of places from 0 to 100 (Silverman's width), between the least and the largest of them."""
    spread = min(float(x.std(ddof=1)), float(np.subtract(*np.quantile(x, (0.75, 0.25)))) / 1.34 or math.inf)
    width = max(0.9 * spread * len(x) ** -0.2, 0.3)
    places = np.linspace(x.min(), x.max(), VIOLIN_POINTS)
    density = np.exp(-0.5 * ((places[:, None] - x) / width) ** 2).sum(axis=1)
    half = 0.48 * LANE * density / density.max()
    upper = [f"{place:.1f} {y - h:.2f}" for place, h in zip(places, half, strict=True)]
    lower = [f"{place:.1f} {y + h:.2f}" for place, h in zip(places[::-1], half[::-1], strict=True)]
    return f"M{'L'.join(upper + lower)}z"
