"""The page of a decision says by how much, where, on which cases and by what rule; nothing is fetched, and no text becomes markup."""

import re

import numpy as np

from segsweep.evaluation.promotion import compare
from segsweep.evaluation.promotion_report import PromotionReport, render

CASES = [f"case-{number}" for number in range(12)]


def made(*, choices: int = 1, notices: tuple[str, ...] = ()) -> str:
    champion = np.full((12, 3), 0.8)
    gain = np.linspace(0.01, 0.03, 12)[:, None] * np.array([1.0, -1.0, 2.0])
    candidate = champion + gain
    candidate[0, 2] = np.nan
    verdict = compare(
        candidate, champion=champion, structures=["left <eye>", "right\"'><script>", "rare"], choices=choices
    )
    return render(
        PromotionReport(
            title="models:/a/2 against models:/a/1",
            decision=f"promoted: {verdict.reason('Dice')}",
            dataset="clinic & co",
            metric="Dice",
            cases=CASES,
            scores={"models:/a/1": champion, "models:/a/2": candidate},
            verdict=verdict,
            notices=notices,
        )
    )


def rows_of(page: str) -> list[list[str]]:
    """The cells of every row, footers too."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page)
    return [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in rows if "<td" in row]


def test_every_structure_and_case_has_its_difference() -> None:
    rows = rows_of(made())
    eye, right, rare, everything, *cases = rows
    assert eye[:3] == ["left &lt;eye&gt;", "0.8000", "0.8200"] and eye[3].startswith("+0.0200 <span")
    assert (eye[-2:], right[-2:], rare[-2:]) == (["12", "better"], ["12", "worse"], ["11", "better"])
    assert rare[1:3] == ["0.8000", "0.8418"], "means over the cases that both were scored on"
    assert everything[0] == "all" and everything[3].startswith("+0.0139")
    assert [row[0] for row in cases] == CASES
    assert cases[11] == ["case-11", "0.8000", "0.8200", "+0.0200"]


def test_the_rule_and_what_speaks_against_it_stand_there() -> None:
    page = made()
    assert "clinic &amp; co that neither model was trained on: 12 cases, 3 structures" in page
    assert "p corrected below 0.05. Of models" in page and "at most 2.5 % are promoted" in page
    assert 'class="warn"' not in page
    chosen = made(choices=4, notices=("one & two",))
    assert "multiplied by 4: the candidate is the best of so many trials" in chosen
    assert '<p class="warn">one &amp; two</p>' in chosen


def test_the_page_stands_alone() -> None:
    page = made()
    assert "<eye>" not in page and "<svg" in page
    assert page.count("<script") == 1 and "\"'>" not in page
    assert not re.search(r"""(src|href)=|@import|url\(""", page)
