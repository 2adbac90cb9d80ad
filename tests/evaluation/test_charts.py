import math
from xml.dom import minidom

from segsweep.evaluation.charts import strips


def test_strips_are_well_formed_and_complete():
    values = {"a & b": {"one": [0.1, 0.5, math.nan], "two": [math.nan]}, "c": {"one": [1.0], "two": [0.0]}}
    drawing = minidom.parseString(strips(values, title="Dice <1>"))
    assert len(drawing.getElementsByTagName("circle")) == 4
    texts = [node.firstChild.data for node in drawing.getElementsByTagName("text") if node.firstChild]  # type: ignore[attr-defined]
    assert {"a & b", "c", "no value"} <= set(texts)
    assert all(0 <= float(dot.getAttribute("cx")) <= 720 for dot in drawing.getElementsByTagName("circle"))
