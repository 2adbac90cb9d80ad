"""The page of a comparison holds every figure, its difference and every notice; nothing is fetched, and no text becomes markup."""

import re
from typing import Any

from segsweep.evaluation.comparison import render

ROW: dict[str, Any] = {
    "name": "Dice & <CE>",
    "state": "finished",
    "reason": "",
    "trainable": "unet",
    "start": "",
    "members": [],
    "epochs": 10,
    "published_epochs": 1000,
    "patch_size": [16, 32, 40],
    "published_patch_size": None,
    "trial": "trial-0000",
    "metrics": {
        "dice": {"published": 0.7861, "ours": 0.5, "difference": -0.2861},
        "nsd": {"published": 0.727, "ours": None, "difference": None},
    },
}
LEFT_OUT: dict[str, Any] = {
    "name": "mean of two",
    "state": "left out",
    "reason": "needs the model of B",
    "trainable": "",
    "start": "",
    "members": ["A", "B"],
    "metrics": {"dice": {"published": 0.9, "ours": None, "difference": None}},
}
DOCUMENT: dict[str, Any] = {
    "title": "gtv_loss on <clinic>",
    "source": "A poster, table 1",
    "measured": "Dice of 20 cases",
    "dataset": "clinic",
    "fold": 2,
    "cases": ["c1", "c2"],
    "structures": ["GTVp"],
    "scale": 0.01,
    "notices": ["Scaled: 0.01 & less.", "Other data."],
    "rows": [ROW, LEFT_OUT],
}


def rows_of(page: str) -> list[list[str]]:
    """The cells of every body row."""
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page) if "<td" in row]


def test_figures_stand_beside_each_other_with_their_difference() -> None:
    page = render(DOCUMENT)
    heads = re.findall(r"<button>(.*?)</button>", page)
    assert heads[:5] == ["row", "dice published", "dice ours", "dice difference", "nsd published"], "no empty columns"
    figures = rows_of(page)
    assert figures[0] == ["Dice &amp; &lt;CE&gt;", "0.7861", "0.5000", "-0.2861", "0.7270"]
    assert figures[1] == ["mean of two", "0.9000", "-", "-", "-"]


def test_the_page_says_how_rows_were_run_and_on_what() -> None:
    page = render(DOCUMENT)
    runs = rows_of(page)[2:]
    assert runs[0] == ["Dice &amp; &lt;CE&gt;", "finished", "unet", "", "10 (1000)", "16x32x40 (-)", "trial-0000"]
    assert runs[1][1:] == ["left out: needs the model of B", "mean of A, B", "", "", "", ""]
    assert '<p class="warn">Scaled: 0.01 &amp; less.<br>Other data.</p>' in page
    assert "2 cases that fold 2 holds out, 1 structures (GTVp)" in page and "c1, c2" in page
    assert '<p class="warn">' not in render({**DOCUMENT, "notices": []})


def test_the_page_stands_alone() -> None:
    page = render(DOCUMENT)
    assert "<clinic>" not in page and "<CE>" not in page
    assert not re.search(r"""(src|href)=|@import|url\(""", page)
