"""The page of a sweep: the best first, every state, and nothing that a browser complains of."""

import math
from pathlib import Path
from typing import Any

from segsweep.evaluation.sweep_page import render

EVIL = "\"'><script>alert(1)</script>"


def marked(value: Any, *, keys: bool = False) -> Any:
    """A document whose texts, and names of parameters and measures, would be markup that runs."""
    if isinstance(value, str):
        return value + EVIL
    if isinstance(value, dict):
        free = ("values", "params", "shares")
        return {name + EVIL * keys: marked(item, keys=name in free) for name, item in value.items()}
    return [marked(item) for item in value] if isinstance(value, list) else value


def trial(number: int, *, state: str = "finished", **params: Any) -> dict[str, Any]:
    dice = 0.5 + 0.04 * number
    return {
        "name": f"trial-{number:04d}",
        "state": state,
        "reason": "ValueError: <b>" if state == "failed" else "",
        "epochs": 20,
        "values": {"dice": dice, "seconds_per_case": 3.0 + number % 4} if state == "finished" else {},
        "params": {
            "trainable": ("unet", "resenc_unet")[number % 2],
            "learning_rate": 10 ** (-4 + number / 5),
            **params,
        },
        "config": {},
        "curve": [[epoch, dice * (1 - math.exp(-epoch / 5))] for epoch in range(1, 21 if state == "finished" else 8)],
    }


def document(**changes: Any) -> dict[str, Any]:
    trials = [trial(number, preset=("S", "M")[number % 2]) for number in range(9, -1, -1)]
    trials += [trial(10, state="stopped early"), trial(11, state="failed")]
    numeric = {"choices": [], "log": False}
    return {
        "title": "toy <sweep>",
        "objectives": ["dice"],
        "trials": trials,
        "axes": [
            {"name": "trainable", "choices": ["unet", "resenc_unet"], "low": 0.0, "high": 0.0, "log": False},
            {**numeric, "name": "learning_rate", "low": 1e-4, "high": 10**-1.8, "log": True},
            {"name": "preset", "choices": ["S", "M"], "low": 0.0, "high": 0.0, "log": False},
            {**numeric, "name": "levels", "low": 4.0, "high": 4.0},
        ],
        "importance": {"shares": {"learning_rate": 0.8, "trainable": 0.2}, "note": "fANOVA over 10 trials."},
        "costs": [{"name": "seconds_per_case", "front": ["trial-0009", "trial-0008"]}],
        "comparison": None,
        **changes,
    }


def test_all_trials_and_their_states_are_there_without_markup_of_theirs() -> None:
    page = render(document())
    assert "12 trials ended: 10 finished, 1 stopped early, 1 failed." in page
    assert "best: trial-0009" in page and "failed: ValueError: &lt;b&gt;" in page and "<sweep>" not in page
    assert page.count("<polyline class=") == 24, "a line a trial among the curves and over the parameters"
    assert ">levels</text>" not in page, "what never differs is no axis"


def test_no_text_of_a_sweep_is_run() -> None:
    row = {
        "name": "plain", "state": "finished", "reason": "why", "members": [], "trainable": "unet", "start": "",
        "metrics": {"dice": {"published": 0.8, "ours": 0.7, "difference": -0.1}},
    }  # fmt: skip
    page = render(marked(document(comparison={"source": "A paper", "notices": ["Scaled."], "rows": [row]})))
    assert page.count("<script") == 1 and "&#x27;&gt;&lt;script&gt;alert(1)" in page
    assert "\"'>" not in page


def test_a_sweep_without_any_score_still_has_a_page() -> None:
    page = render(
        document(
            trials=[trial(0, state="failed")],
            axes=[],
            costs=[],
            importance={"shares": {}, "note": "Nothing can be said."},
        )
    )
    assert "1 failed" in page and "Nothing can be said." in page and "best:" not in page


def test_published_figures_come_first() -> None:
    row = {
        "name": "plain", "state": "finished", "reason": "", "members": [], "trainable": "unet", "start": "",
        "metrics": {"dice": {"published": 0.8, "ours": 0.7, "difference": -0.1}},
    }  # fmt: skip
    page = render(document(comparison={"source": "A paper, table 1", "notices": ["Scaled."], "rows": [row]}))
    assert page.index("A paper, table 1") < page.index("<h2>Trials</h2>") and "-0.1000" in page and "Scaled." in page


def test_a_browser_shows_it(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "sweep.html").write_text(render(document()))
    tab = browser.open(tmp_path / "sweep.html", width=390, height=800)
    assert tab.run("document.documentElement.scrollWidth") <= 390
    tab.run("document.querySelectorAll('th button')[2].click()")
    assert tab.run("document.querySelector('tbody tr').cells[0].textContent") == "trial-0000"
    links = tab.run("[...document.querySelectorAll('nav a')].map(link => document.querySelector(link.hash).offsetTop)")
    assert links == sorted(links) and len(links) == 5
    assert tab.complaints() == []
