import re
from xml.dom import minidom

import pytest

from segsweep.evaluation.sweep_charts import Axis, Line, bars, curves, parallel, scatter


def points(drawing: str, *, name: str) -> list[tuple[float, float]]:
    """Places of the line that has a trial's name."""
    found = re.search(rf'points="([^"]*)"[^>]*><title>{name}<', drawing)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_an_axis_runs_from_low_to_high_by_powers_or_by_choices() -> None:
    assert Axis(name="levels", low=2, high=6).share(3) == 0.25
    assert Axis(name="rate", low=1e-4, high=1e-2, log=True).share(1e-3) == pytest.approx(0.5)
    assert [Axis(name="net", choices=("a", "b")).share(choice) for choice in ("a", "b")] == [0.25, 0.75]
    assert Axis(name="same", low=3, high=3).share(3) == 0.5


def test_a_line_goes_through_its_values_and_the_foot_where_it_has_none() -> None:
    axes = (Axis(name="levels", low=2, high=6), Axis(name="a<b"), Axis(name="dice"))
    lines = (
        Line(name="one", values={"levels": 2, "a<b": 1.0, "dice": 0.5}, rank=1.0),
        Line(name="two", values={"levels": 6}),
    )
    drawn = parallel(axes, lines=lines)
    minidom.parseString(drawn)
    (x0, low), (x1, high), (x2, middle) = points(drawn, name="one")
    assert x0 < x1 < x2 and high < middle < low, "y runs downwards"
    (_, top), *absent = points(drawn, name="two")
    assert top == high and all(y > low for _, y in absent)
    assert drawn.index("<title>two") < drawn.index("<title>one"), "the best is drawn last"


def test_costs_join_the_front_and_equal_values_divide_nothing() -> None:
    trials = {"slow": (9.0, 0.9), "fast": (1.0, 0.7), "bad": (9.0, 0.1)}
    drawn = scatter(trials, front=("slow", "fast"), x="seconds", y="dice")
    minidom.parseString(drawn)
    assert drawn.count("<circle") == 3 and drawn.count('fill="#D55E00"') == 2
    ((x0, y0), (x1, y1)) = (
        tuple(map(float, pair.split(","))) for pair in re.findall(r'points="([^"]+)"', drawn)[0].split()
    )
    assert x0 < x1 and y0 > y1, "from the fast one up to the good one"
    assert "nan" not in scatter({"a": (1.0, 0.5), "b": (1.0, 0.5)}, front=("a",), x="seconds", y="dice")


def test_bars_and_curves_are_well_formed() -> None:
    drawn = bars({"rate & co": 0.2, "width": 0.8})
    minidom.parseString(drawn)
    assert drawn.index("width<") < drawn.index("rate &amp; co")
    lines = curves({"one": [(1, 0.1), (2, 0.4)], "two": [(1, 0.2)]}, ranks={"one": 1.0}, y="Dice")
    minidom.parseString(lines)
    assert lines.count("stroke-dasharray") == 1 and len(points(lines, name="one")) == 2
