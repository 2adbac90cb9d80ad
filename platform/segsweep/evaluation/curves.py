"""The learning curves of a training as one small picture: loss on the left, Dice on the right, over epochs, as SVG."""

import math
from collections.abc import Mapping, Sequence

from segsweep.evaluation.charts import COLOURS

PANEL, HEIGHT, LEFT, TOP, BOTTOM, GAP = 330, 220, 44, 30, 30, 20
# What the right panel shows, with its words.
DICE = {"patch_dice": "patches", "patch_dice_smoothed": "patches, smoothed", "dice_scan": "whole scans"}

Points = list[tuple[float, float]]


def learning_curves(epochs: Sequence[Mapping[str, float]]) -> str:
    """SVG of epochs with `epoch` and any of `loss`, `patch_dice`, `patch_dice_smoothed` and `dice_scan`."""
    last = max(epoch["epoch"] for epoch in epochs)
    loss = _points(epochs, key="loss")
    values = [value for _, value in loss] or [0.0]
    low, high = min(values), max(values)
    dice = {words: _points(epochs, key=key) for key, words in DICE.items()}
    panels = (
        _panel({"loss": loss}, title="loss", low=low, high=high if high > low else low + 1.0, last=last, x=0)
        + _panel(dice, title="Dice", low=0.0, high=1.0, last=last, x=PANEL + GAP)
    )  # fmt: skip
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * PANEL + GAP} {HEIGHT}" width="{2 * PANEL + GAP}" '
        f'height="{HEIGHT}" font-family="sans-serif" font-size="11" role="img" aria-label="learning curves">'
        f'<rect width="100%" height="100%" fill="white"/>{panels}</svg>'
    )


def _points(epochs: Sequence[Mapping[str, float]], *, key: str) -> Points:
    """What is finite: a training may have gone astray."""
    return [(epoch["epoch"], epoch[key]) for epoch in epochs if math.isfinite(epoch.get(key, math.nan))]


def _panel(series: Mapping[str, Points], *, title: str, low: float, high: float, last: float, x: int) -> str:
    """A frame with its title and limits, a line and a word for every series that has points."""

    def place(epoch: float, value: float) -> str:
        across = LEFT + (PANEL - LEFT - 8) * epoch / max(last, 1)
        up = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - low) / (high - low)
        return f"{x + across:.1f},{up:.1f}"

    parts = [
        f'<rect x="{x + LEFT}" y="{TOP}" width="{PANEL - LEFT - 8}" height="{HEIGHT - TOP - BOTTOM}" fill="none" stroke="#bbb"/>',
        f'<text x="{x + LEFT}" y="{TOP - 8}" font-weight="bold">{title}</text>',
        f'<text x="{x + LEFT - 4}" y="{TOP + 10}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{x + LEFT - 4}" y="{HEIGHT - BOTTOM}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{x + PANEL - 8}" y="{HEIGHT - BOTTOM + 16}" text-anchor="end">epoch {last:g}</text>',
    ]
    drawn = {words: points for words, points in series.items() if points}
    for number, (words, points) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        line = " ".join(place(*point) for point in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if len(points) == 1:  # a line of one point shows nothing
            across, up = line.split(",")
            parts.append(f'<circle cx="{across}" cy="{up}" r="2.5" fill="{colour}"/>')
        if len(drawn) > 1:
            parts.append(f'<text x="{x + LEFT + 40 + 100 * number}" y="{TOP - 8}" fill="{colour}">{words}</text>')
    return "".join(parts)
