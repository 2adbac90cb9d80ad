"""The page of a choice says what the record says, and nothing in it can break out of its cell."""

from typing import Any

import pytest

from segsweep.evaluation.selection_page import interval, render


def record(**changes: Any) -> dict[str, Any]:
    found = {"mean": 0.8123, "low": 0.79, "high": 0.83, "cases": 6}
    return {
        "dataset": "<b>",
        "measure": "NSD",
        "metric": "NSD at 2 mm",
        "precision": 0.5 / 255,
        "cached_bytes": 12_340_000,
        "cases": ["a", "b"],
        "verdict": "no ensemble beats models:/<i>/1 with confidence",
        "better": False,
        "candidates": [
            {"letter": "A", "uri": "models:/<i>/1", "seconds": 12.34},
            {"letter": "B", "uri": "models:/b/1", "seconds": 2},
        ],
        "rows": [{"name": "A", "kind": "single", "score": found, "difference": found, "seconds": 12.34}],
        "members": [{"letter": "A", "uri": "models:/<i>/1", "weight": 1.0, "gain": None, "seconds": 12.34}],
        "disagreement": [[0.0, 0.125], [0.125, 0.0]],
        "nested": {
            **dict.fromkeys(("chosen", "single", "mean", "gain"), found),
            "gain_over_mean": {"mean": 0.0125, "low": -0.01, "high": 0.03, "cases": 6},
        },
        **changes,
    }


def test_page_shows_scores_members_and_disagreement() -> None:
    page = render(record())
    for text in (
        "<button>NSD</button>",
        "NSD at 2 mm, with 95 %",
        "0.8123 (0.7900 to 0.8300)",
        "+0.8123 (+0.7900 to +0.8300)",
        "<td>12.3</td>",
        "<td>-</td>",
        "<td>0.1250</td>",
        "<td>mean of the best singles</td><td>0.8123 (0.7900 to 0.8300)</td><td>+0.0125 (-0.0100 to +0.0300)</td>",
    ):
        assert text in page, text


def test_names_are_escaped() -> None:
    page = render(record())
    assert "<b>" not in page and "<i>" not in page
    assert "models:/&lt;i&gt;/1" in page


@pytest.mark.parametrize("better", [True, False])
def test_a_verdict_without_confidence_stands_out(better: bool) -> None:
    assert ('<p class="warn">' in render(record(better=better))) != better


def test_an_interval_without_cases_is_a_dash() -> None:
    assert interval({"mean": None, "low": None, "high": None}) == "- (- to -)"
