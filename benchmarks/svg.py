"""Charts of ``sct_jax.report.plots`` as files of their own: with a style sheet and a legend inside."""

from collections.abc import Sequence

from sct_jax.report.plots import DASHES, Series

COLOURS = ("#3563c9", "#c4572b", "#3a8a4d", "#8a4db0", "#b08a1e", "#2b8a94")


def stand_alone(chart: str, series: Sequence[Series]) -> str:
    """A chart of :func:`~sct_jax.report.plots.line_chart` as the text of an SVG file."""
    style = (
        "<style>text{font:11px sans-serif;fill:#444}.grid{stroke:#ddd}.frame{stroke:#888;fill:none}"
        ".line{fill:none;stroke:var(--stroke);stroke-width:2}circle{fill:var(--stroke)}:root{"
        + "".join(f"--series-{index}:{colour};" for index, colour in enumerate(COLOURS))
        + "}</style>"
    )
    entries = []
    for row, one in enumerate(series):
        colour, y = COLOURS[one.colour % len(COLOURS)], 27 + 15 * row
        dash = f' stroke-dasharray="{DASHES[one.dash % len(DASHES)]}"' if one.dash else ""
        entries.append(
            f'<path d="M360 {y}h24" style="stroke:{colour};stroke-width:2"{dash}/>'
            f'<text x="390" y="{y + 4}">{one.name}</text>'
        )
    head, body = chart.split(">", 1)
    body = body.removesuffix("</svg>")
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{body}{"".join(entries)}</svg>\n'
