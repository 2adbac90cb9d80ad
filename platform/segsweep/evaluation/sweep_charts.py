"""Pictures of a sweep as inline SVG: parallel coordinates, importances, a score against its cost, learning curves of all trials."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Stops of viridis, a scale of even lightness that colour-blind people read too; low values first, the palest left out.
SCALE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (189, 200, 40))
GREY, BLACK = "#999", "#000"
WIDTH, HEIGHT, RIM = 720, 300, 56
# Least distance of two axes.
AXIS = 120

Place = Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A parameter or a score of trials: `choices` for a categorical one, else from `low` to `high`, by powers where `log`."""

    name: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def share(self, value: Any) -> float:
        """From 0, low, to 1, high."""
        if self.choices:
            return (self.choices.index(str(value)) + 0.5) / len(self.choices)
        low, high, own = (math.log(x) if self.log else float(x) for x in (self.low, self.high, value))
        return (own - low) / (high - low) if high > low else 0.5


@dataclass(frozen=True, kw_only=True)
class Line:
    """A trial: `values` by axis name (what it has none of is left out), `rank` from 0, the worst, to 1, the best; None without a score."""

    name: str
    values: Mapping[str, Any]
    rank: float | None = None


def parallel(axes: Sequence[Axis], *, lines: Sequence[Line]) -> str:
    """Parallel coordinates, a line a trial; brighter is better, grey has no score. What a trial has no value of is at the foot."""
    step = max(AXIS, (WIDTH - 2 * RIM) // max(len(axes) - 1, 1))
    xs = {axis.name: RIM + step * i for i, axis in enumerate(axes)}
    width = 2 * RIM + step * (len(axes) - 1)
    top, foot = 50, HEIGHT - 40

    def point(axis: Axis, line: Line) -> str:
        value = line.values.get(axis.name)
        y = HEIGHT - 12 if value is None else foot - (foot - top) * axis.share(value)
        return f"{xs[axis.name]},{y:.1f}"

    drawn = "".join(
        _line(" ".join(point(axis, line) for axis in axes), name=line.name, rank=line.rank)
        for line in sorted(lines, key=lambda line: -1.0 if line.rank is None else line.rank)
    )
    frames = "".join(_frame(axis, x=xs[axis.name], up=18 * (i % 2), top=top, foot=foot) for i, axis in enumerate(axes))
    return _svg(drawn + frames, width=width, label="parallel coordinates of all trials")


def bars(values: Mapping[str, float]) -> str:
    """A horizontal bar a name, of shares from 0 to 1, the largest first."""
    ordered = sorted(values.items(), key=lambda item: -item[1])
    rows = "".join(
        f'<text x="190" y="{24 * i + 16}" text-anchor="end">{html.escape(name)}</text>'
        f'<rect x="200" y="{24 * i + 4}" width="{440 * share:.1f}" height="16" fill="#0072B2"/>'
        f'<text x="{206 + 440 * share:.1f}" y="{24 * i + 16}">{share:.2f}</text>'
        for i, (name, share) in enumerate(ordered)
    )
    return _svg(rows, width=WIDTH, height=24 * len(ordered) + 8, label="importance of parameters")


def scatter(points: Mapping[str, tuple[float, float]], *, front: Sequence[str], x: str, y: str) -> str:
    """Trials by name at (x, y); those of the `front` are joined and named."""
    across, up = (_scale([point[i] for point in points.values()], begin, end) for i, begin, end in (
        (0, RIM, WIDTH - 2 * RIM), (1, HEIGHT - RIM, 20),
    ))  # fmt: skip
    best = sorted(front, key=lambda name: points[name])
    path = " ".join(f"{across(points[name][0]):.1f},{up(points[name][1]):.1f}" for name in best)
    marks = "".join(
        f'<circle cx="{across(a):.1f}" cy="{up(b):.1f}" r="{5 if name in front else 4}" fill="{"#D55E00" if name in front else GREY}">'
        f"<title>{html.escape(name)}: {html.escape(x)} {a:.4g}, {html.escape(y)} {b:.4g}</title></circle>"
        for name, (a, b) in points.items()
    )
    names = "".join(
        f'<text x="{across(points[name][0]) + 8:.1f}" y="{up(points[name][1]) + 14:.1f}">{html.escape(name)}</text>'
        for name in best
    )
    return _svg(
        _ends(points.values(), x=x, y=y) + f'<polyline points="{path}" fill="none" stroke="#D55E00"/>{marks}{names}',
        width=WIDTH, label=f"{y} against {x}",
    )  # fmt: skip


def curves(series: Mapping[str, Sequence[tuple[float, float]]], *, ranks: Mapping[str, float], y: str) -> str:
    """A line a trial over epochs, from 0 to 1; brighter is better, grey dashes are trials that `ranks` lacks."""
    last = max((point[0] for points in series.values() for point in points), default=1.0)
    highest = max((point[1] for points in series.values() for point in points), default=1.0)
    points = {name: [(RIM + (WIDTH - 2 * RIM) * a / last, HEIGHT - RIM - (HEIGHT - RIM - 20) * b / (highest or 1.0)) for a, b in own]
              for name, own in series.items()}  # fmt: skip
    drawn = "".join(
        _line(" ".join(f"{a:.1f},{b:.1f}" for a, b in own), name=name, rank=ranks.get(name))
        for name, own in sorted(points.items(), key=lambda item: ranks.get(item[0], -1.0))
    )
    return _svg(
        _ends([(0.0, 0.0), (last, highest)], x="epoch", y=y) + drawn,
        width=WIDTH,
        label=f"{y} of all trials over epochs",
    )


def _line(points: str, *, name: str, rank: float | None) -> str:
    look = f'stroke="{GREY}" stroke-dasharray="4 3"' if rank is None else f'stroke="{_colour(rank)}"'
    wide = 3 if rank == 1 else 1.5
    return (
        f'<polyline class="trial" points="{points}" fill="none" {look} stroke-width="{wide}">'
        f"<title>{html.escape(name)}</title></polyline>"
    )


def _colour(rank: float) -> str:
    place = rank * (len(SCALE) - 1)
    index = min(int(place), len(SCALE) - 2)
    mixed = (round(a + (b - a) * (place - index)) for a, b in zip(SCALE[index], SCALE[index + 1], strict=True))
    return f"#{''.join(f'{value:02x}' for value in mixed)}"


def _frame(axis: Axis, *, x: float, up: int, top: int, foot: int) -> str:
    """The axis' line with its name above, a step higher where its neighbour's name would meet it, and its ends or choices."""
    marks = (
        [(axis.share(choice), choice) for choice in axis.choices]
        if axis.choices
        else [(0.0, f"{axis.low:.3g}"), (1.0, f"{axis.high:.3g}")]
    )
    words = "".join(
        f'<text class="halo" x="{x + 5}" y="{foot - (foot - top) * share + 4:.1f}">{html.escape(word)}</text>'
        for share, word in marks
    )
    return (
        f'<line x1="{x}" x2="{x}" y1="{top}" y2="{foot}" stroke="{BLACK}"/>'
        f'<text x="{x}" y="{34 - up}" text-anchor="middle" font-weight="600">{html.escape(axis.name)}</text>{words}'
    )


def _ends(points: Any, *, x: str, y: str) -> str:
    """Frame, names and ends of a plot's two axes."""
    known = list(points)
    (left, right), (low, high) = ((min(p[i] for p in known), max(p[i] for p in known)) for i in (0, 1))
    bottom, far = HEIGHT - RIM, WIDTH - RIM
    return (
        f'<path d="M{RIM} 14V{bottom + 6}H{far}" fill="none" stroke="{BLACK}"/>'
        f'<text x="{RIM}" y="{bottom + 22}">{left:.3g}</text><text x="{far}" y="{bottom + 22}" text-anchor="end">{right:.3g}</text>'
        f'<text x="{RIM - 6}" y="{bottom}" text-anchor="end">{low:.3g}</text><text x="{RIM - 6}" y="24" text-anchor="end">{high:.3g}</text>'
        f'<text x="{WIDTH / 2}" y="{bottom + 22}" text-anchor="middle" font-weight="600">{html.escape(x)}</text>'
        f'<text x="{RIM + 8}" y="12" font-weight="600">{html.escape(y)}</text>'
    )


def _scale(values: Sequence[float], begin: float, end: float) -> Place:
    """From values to places between two ends; the middle where all are equal."""
    low, high = min(values), max(values)
    return lambda value: begin + (end - begin) * ((value - low) / (high - low) if high > low else 0.5)


def _svg(body: str, *, width: float, label: str, height: float = HEIGHT) -> str:
    return (
        f'<div class="wide"><svg class="chart" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'style="min-width:{0.8 * width:.0f}px" role="img" aria-label="{html.escape(label)}">{body}</svg></div>'
    )
