"""The look of the report: one style sheet, the same in light and dark, and small pieces of HTML."""

from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --text: #1d2430; --quiet: #5a6473; --back: #ffffff; --panel: #f5f7fa; --rule: #d9dfe7;
  --mark: #fff1c2; --best: #00694f; --series-0: #0b63b0; --series-1: #c2410c; --series-2: #00785a; --series-3: #8b3fa8;
  --series-4: #7a6200; --series-5: #b3245f; }
@media (prefers-color-scheme: dark) { :root { --text: #e6eaf0; --quiet: #9aa5b4; --back: #12161c; --panel: #1b212a;
  --rule: #333c48; --mark: #4a3f14; --best: #5fd3ab; --series-0: #6db3f2; --series-1: #ff9d5c; --series-2: #4ecba0;
  --series-3: #cf9cf0; --series-4: #d9c04a; --series-5: #ff8ab5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 75rem; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .6rem; padding-bottom: .25rem; border-bottom: 2px solid var(--rule); }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .4rem; }
p { margin: .3rem 0 .7rem; max-width: 62rem; }
.quiet, figcaption, .note { color: var(--quiet); font-size: .88rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { padding: .38rem .8rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th { color: var(--quiet); font-weight: 600; vertical-align: bottom; white-space: normal;
  max-width: 9rem; }
th:first-child, td:first-child, .words td { text-align: left; }
td.best { color: var(--best); font-weight: 700; }
tr.differs td { background: var(--mark); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(27rem, 100%), 1fr)); gap: 1.2rem; }
figure { margin: 0; }
.chart { background: var(--panel); border-radius: 10px; padding: .8rem .9rem .6rem; }
.chart > figcaption { color: var(--text); font-weight: 600; font-size: .95rem; margin-bottom: .2rem; }
.chart > svg { display: block; width: 100%; height: auto; }
svg text { font: 12px system-ui, sans-serif; fill: var(--quiet); }
svg .grid { stroke: var(--rule); stroke-width: 1; fill: none; }
svg .frame { stroke: var(--quiet); stroke-width: 1.2; fill: none; }
svg .line { stroke: var(--stroke); stroke-width: 2; fill: none; stroke-linejoin: round; }
svg circle { fill: var(--stroke); }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .85rem; }
.legend span { display: inline-flex; align-items: center; gap: .4rem; }
.key { width: 30px; height: 10px; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1rem; }
.strip img { display: block; width: 100%; height: auto; image-rendering: pixelated; border-radius: 4px; }
details { margin: .5rem 0; }
summary { cursor: pointer; font-weight: 600; }
pre { background: var(--panel); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto; font-size: .82rem; }
code { font-size: .92em; }
"""


def document(title: str, body: Iterable[str]) -> str:
    """The whole page; it names no other file and no address."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, best: Iterable[tuple[int, int]] = ()) -> str:
    """A table of plain texts; ``best`` are the (row, column) of cells to set off."""
    marked = set(best)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = ""
    for i, row in enumerate(rows):
        cells = (f"<td{' class=best' if (i, j) in marked else ''}>{escape(cell)}</td>" for j, cell in enumerate(row))
        body += f"<tr>{''.join(cells)}</tr>"
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def chart(title: str, svg: str, legend: str, note: str = "") -> str:
    """A framed chart with its title, legend and, in small print, a note."""
    small = f'<div class="note">{escape(note)}</div>' if note else ""
    return f'<figure class="chart"><figcaption>{escape(title)}</figcaption>{svg}{legend}{small}</figure>'
