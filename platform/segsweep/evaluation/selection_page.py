"""The page of a choice among candidates: singles and ensembles in one table, the chosen members, and the honest gain; one HTML file."""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from segsweep.evaluation.page import page, table, text


def render(record: Mapping[str, Any]) -> str:
    """The HTML text of what an ensemble's selection.json holds."""
    title = f"Ensemble of {record['dataset']}"
    kind = "" if record["better"] else ' class="warn"'
    body = (
        f"<h1>{html.escape(title)}</h1><p{kind}>{html.escape(record['verdict'])}.</p>"
        "<h2>Alone and together</h2>"
        + _table(
            ["models", "rule", record["measure"], "difference to the best single", "seconds a case"],
            rows=(
                [
                    row["name"],
                    row["kind"],
                    interval(row["score"]),
                    interval(row["difference"], sign="+"),
                    seconds(row["seconds"]),
                ]
                for row in record["rows"]
            ),
        )
        + f"<p class='muted'>{html.escape(record['metric'])}, with 95 % bootstrap intervals over {len(record['cases'])} cases "
        "that no candidate was trained on. The greedy row was chosen by these cases, which flatters it. "
        f"Probabilities are kept within {record['precision']:.4f}, in {record['cached_bytes'] / 1e6:.3g} MB.</p>"
        "<h2>On cases that the choice did not see</h2>"
        + _nested(record)
        + "<h2>Members</h2>"
        + _table(
            ["model", "address", "weight", f"{record['measure']} lost without it", "seconds a case"],
            rows=(
                [one["letter"], one["uri"], f"{one['weight']:.3f}", number(one["gain"]), seconds(one["seconds"])]
                for one in record["members"]
            ),
            kind="text",
        )
        + "<h2>Candidates</h2>"
        + _table(
            ["model", "address", "seconds a case"],
            rows=([one["letter"], one["uri"], seconds(one["seconds"])] for one in record["candidates"]),
            kind="text",
        )
        + "<h2>Disagreement</h2>"
        + _disagreement(record)
    )
    return page(title, body=body)


def interval(values: Mapping[str, float | None], *, sign: str = "", ends: int = 4) -> str:
    """`0.8123 (0.7900 to 0.8300)`, its ends with so many digits."""
    low, high = (number(values[end], sign=sign, digits=ends) for end in ("low", "high"))
    return f"{number(values['mean'], sign=sign)} ({low} to {high})"


def number(value: float | None, *, sign: str = "", digits: int = 4) -> str:
    """So many digits behind the point; `-` where there is none."""
    return "-" if value is None else f"{value:{sign}.{digits}f}"


def seconds(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def _nested(record: Mapping[str, Any]) -> str:
    nested = record["nested"]
    rows = (
        ("greedy", nested["chosen"], None),
        ("best single", nested["single"], nested["gain"]),
        ("mean of the best singles", nested["mean"], nested["gain_over_mean"]),
    )
    cells = ([name, interval(score), interval(gain, sign="+") if gain else ""] for name, score, gain in rows)
    note = "<p class='muted'>Cross-validated: in each fold, members, weights and best singles are chosen by the other folds.</p>"
    return _table(["models", record["measure"], "greedy gains over it"], rows=cells) + note


def _disagreement(record: Mapping[str, Any]) -> str:
    letters = [one["letter"] for one in record["candidates"]]
    rows = (
        [letter, *(f"{share:.4f}" for share in shares)]
        for letter, shares in zip(letters, record["disagreement"], strict=True)
    )
    note = "<p class='muted'>Share of voxels with unlike labels among those that either calls foreground, mean over cases.</p>"
    return _table(["model", *letters], rows=rows) + note


def _table(heads: Sequence[str], *, rows: Iterable[Sequence[str]], kind: str = "") -> str:
    return table(heads, rows=([text(cell) for cell in row] for row in rows), kind=kind)
