"""What the HTML pages share: one file on its own with nothing fetched, contents, tables that sort, numbers and intervals."""

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
# The browser itself holds a page to what it brings.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, *, body: str, script: str = "") -> str:
    """The whole HTML text; `title` is plain text, `body` is HTML, `script` JavaScript beside that of tables."""
    style, own = ((HERE / name).read_text() for name in ("page.css", "page.js"))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{style}</style></head>\n"
        f"<body>{body}<script>{own}{script}</script></body></html>\n"
    )


def sections(parts: Mapping[str, str]) -> str:
    """A contents bar and a section a title, of HTML; empty ones are left out."""
    shown = {title: body for title, body in parts.items() if body}
    links = "".join(f'<a href="#{_anchor(title)}">{html.escape(title)}</a>' for title in shown)
    bodies = "\n".join(
        f'<section id="{_anchor(title)}"><h2>{html.escape(title)}</h2>{body}</section>' for title, body in shown.items()
    )
    return f'<nav aria-label="contents">{links}</nav>\n{bodies}'


def table(heads: Sequence[str], *, rows: Iterable[Sequence[str]], foot: Sequence[str] = (), kind: str = "") -> str:
    """A table of cells that `text`, `number` and `interval` made; `kind` "text" has words in its second column."""
    head = "".join(f'<th scope="col"><button>{html.escape(text)}</button></th>' for text in heads)
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    last = f'<tfoot><tr class="all">{"".join(foot)}</tr></tfoot>' if foot else ""
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{last}</table></div>'


def text(value: object) -> str:
    """A cell of plain text."""
    return f"<td>{html.escape(str(value))}</td>"


def number(value: float | None, *, digits: int, sign: str = "") -> str:
    """A cell with a number of so many decimals, with its sign always where `sign` is "+"; a dash for none."""
    if value is None or not math.isfinite(value):
        return '<td data-v="">-</td>'
    # Rows are sorted by six digits: all of them would make a long table twice as large.
    return f'<td data-v="{value:.6g}">{value:{sign}.{digits}f}</td>'


def probability(p: float | None) -> str:
    """A cell with a p-value; a dash for none."""
    if p is None or not math.isfinite(p):
        return '<td data-v="">-</td>'
    return f'<td data-v="{p:.6g}">{"&lt;0.001" if p < 0.001 else f"{p:.3f}"}</td>'


def interval(entry: Mapping[str, float], *, sign: str = "") -> str:
    """A cell with a mean and the ends of its interval (mean, low, high, cases); a dash without cases."""
    if not entry["cases"]:
        return '<td data-v="">-</td>'
    return f'<td data-v="{entry["mean"]:.6g}">{entry["mean"]:{sign}.3f} <span class="muted">{ends(entry, sign=sign)}</span></td>'


def ends(entry: Mapping[str, float], *, sign: str = "") -> str:
    """`[0.805, 0.863]`, the ends of an interval."""
    return f"[{entry['low']:{sign}.3f}, {entry['high']:{sign}.3f}]"


def _anchor(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
