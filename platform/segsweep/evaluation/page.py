"""What the HTML pages share: one file on its own with nothing fetched, tables that sort at a click, numbers and intervals."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence

STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{font:16px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;margin:0 auto;max-width:64rem;padding:1rem}
h1{font-size:1.6rem;margin:.5rem 0}h2{font-size:1.2rem;margin:2rem 0 .5rem;border-bottom:1px solid #ddd}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums;width:100%}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid #e5e5e5;white-space:nowrap}
th:first-child,td:first-child{text-align:left}table.text th:nth-child(2),table.text td:nth-child(2){text-align:left}
th button{font:inherit;font-weight:600;border:0;background:none;padding:0;cursor:pointer}
tr.all td{font-weight:600}.muted{color:#555;font-size:.9rem}.warn{background:#fff4d6;padding:.5rem .8rem;border-left:4px solid #E69F00}
svg.strips{width:100%;height:auto;font:12px system-ui,sans-serif}svg .grid{stroke:#ddd}
.key{display:inline-block;width:.9em;height:.9em;border-radius:2px;margin:0 .3em 0 .8em;vertical-align:-.1em}
figure{margin:1rem 0}figure img{width:100%;height:auto;background:#000}figcaption{font-size:.9rem}
@media print{body{max-width:none;padding:0}figure,tr,svg{break-inside:avoid}.wide{overflow:visible}th,td{white-space:normal}}
"""

SCRIPT = """
for(const button of document.querySelectorAll('th button'))button.onclick=()=>{
const head=button.parentElement,body=head.closest('table').tBodies[0],i=head.cellIndex,up=head.ariaSort!=='ascending';
for(const other of head.parentElement.cells)other.ariaSort=null;head.ariaSort=up?'ascending':'descending';
const key=row=>row.cells[i].dataset.v??row.cells[i].textContent,num=v=>v===''||isNaN(v)?null:Number(v);
[...body.rows].sort((a,b)=>{const p=key(a),q=key(b),x=num(p),y=num(q);if(p===''||q==='')return(p==='')-(q==='');
return(x!==null&&y!==null?x-y:p.localeCompare(q))*(up?1:-1)}).forEach(row=>body.append(row))}
"""


def page(title: str, *, body: str) -> str:
    """The whole HTML text; `title` is plain text, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>{body}<script>{SCRIPT}</script></body></html>\n"
    )


def table(heads: Sequence[str], *, rows: Iterable[Sequence[str]], foot: Sequence[str] = (), kind: str = "") -> str:
    """A table of cells that `text`, `number` and `interval` made; `kind` "text" has words in its second column."""
    head = "".join(f'<th scope="col"><button>{html.escape(text)}</button></th>' for text in heads)
    body = "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    last = f'<tfoot><tr class="all">{"".join(foot)}</tr></tfoot>' if foot else ""
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{last}</table></div>'


def text(value: object) -> str:
    """A cell of plain text."""
    return f"<td>{html.escape(str(value))}</td>"


def number(value: float | None, *, digits: int, sign: str = "") -> str:
    """A cell with a number of so many decimals, with its sign always where `sign` is "+"; a dash for none."""
    if value is None or not math.isfinite(value):
        return '<td data-v="">-</td>'
    return f'<td data-v="{value!r}">{value:{sign}.{digits}f}</td>'


def interval(entry: Mapping[str, float], *, sign: str = "") -> str:
    """A cell with a mean and the ends of its interval (mean, low, high, cases); a dash without cases."""
    if not entry["cases"]:
        return '<td data-v="">-</td>'
    low, high = format(entry["low"], f"{sign}.3f"), format(entry["high"], f"{sign}.3f")
    return f'<td data-v="{entry["mean"]!r}">{entry["mean"]:{sign}.3f} <span class="muted">[{low}, {high}]</span></td>'
