"""The pages' common parts: no text becomes markup, and what is no number is a dash that sorts last."""

import math

from segsweep.evaluation.page import interval, number, page, table, text


def test_text_never_becomes_markup() -> None:
    shown = page("a < b", body=table(["<head>"], rows=[[text("<i>")]], foot=[text("all")]))
    assert "<title>a &lt; b</title>" in shown and "&lt;head&gt;" in shown and "<td>&lt;i&gt;</td>" in shown
    assert "<tfoot>" in shown and "<tfoot>" not in table(["head"], rows=[])


def test_numbers_keep_their_value_for_sorting() -> None:
    assert number(0.12345, digits=2, sign="+") == '<td data-v="0.12345">+0.12</td>'
    assert {number(value, digits=2) for value in (None, math.nan, math.inf)} == {'<td data-v="">-</td>'}
    assert "[+0.100, +0.300]" in interval({"mean": 0.2, "low": 0.1, "high": 0.3, "cases": 4}, sign="+")
    assert interval({"mean": 0.2, "low": 0.1, "high": 0.3, "cases": 0}) == '<td data-v="">-</td>'
