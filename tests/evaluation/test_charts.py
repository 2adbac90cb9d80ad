import math
import re
from xml.dom import minidom

from segsweep.evaluation.charts import LEAST_FOR_VIOLIN, strips


def test_strips_are_well_formed_and_complete():
    many = [0.5 + 0.05 * i for i in range(LEAST_FOR_VIOLIN)]
    values = {"a & b": {"one": [0.1, 0.5, math.nan], "two": [math.nan]}, "c": {"one": [1.0], "two": many}}
    drawing = minidom.parseString(strips(values, title="Dice <1>"))
    assert len(drawing.getElementsByTagName("svg")) == 2
    paths = [path.getAttribute("d") for path in drawing.getElementsByTagName("path")]
    dots = [path for path in paths if "h0" in path]
    assert [path.count("h0") for path in dots] == [2, 1, LEAST_FOR_VIOLIN]
    assert len([path for path in paths if path.endswith("z")]) == 1, "too few cases have no shape"
    titles = [node.firstChild.data for node in drawing.getElementsByTagName("title")]  # type: ignore[union-attr]
    assert titles[1] == "two: no value" and titles[2] == (
        "one: median 1.000, quartiles 1.000 to 1.000, least 1.000, 1 cases"
    )
    assert {span.firstChild.data for span in drawing.getElementsByTagName("span")} >= {"a & b", "c"}  # type: ignore[union-attr]


def test_a_place_is_the_share_of_the_axis():
    drawn = strips({"liver": {"one": [0.5, 0.7, 1.0]}}, title="Dice")
    assert re.findall(r"<span>([\d.]+)</span>", drawn) == ["0.4", "0.5", "0.6", "0.7", "0.8", "0.9", "1"]
    dots = re.search(r'class="dots" d="([^"]+)"', drawn)
    assert dots is not None
    assert [float(place) for place in re.findall(r"M([\d.]+) ", dots[1])] == [16.7, 50.0, 100.0]


def test_equal_scores_and_none_at_all_are_drawn():
    drawn = strips({"liver": {"one": [0.9] * 9}, "spleen": {"one": []}}, title="Dice")
    assert "nan" not in drawn and "inf" not in drawn
