"""Line charts as SVG text, coloured by the page's CSS variables so that they follow its light or dark theme."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

WIDTH, HEIGHT = 560, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 26, 12, 44
MOST_POINTS = 300
SMALLEST = 1e-12  # less is nothing on a logarithmic axis
COLOURS = 6  # the page defines --series-0 ... --series-5
DASHES = ("", "7 4", "2 3", "10 3 2 3")


@dataclass(frozen=True)
class Series:
    """One line: its points, the number of its colour, its dash pattern, and its name in the legend."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    dash: int = 0
    markers: bool = False


@dataclass(frozen=True)
class Axis:
    """Maps values to pixels from ``start`` to ``end``, linearly or in the logarithm."""

    low: float
    high: float
    log: bool
    start: float
    end: float

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values within the axis: decades (with 2 and 5 where few), or steps of 1, 2 or 5 within one decade."""
        if self.log and self.high >= 10 * self.low:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            stride = max(1, math.ceil(len(decades) / 8))
            factors = (1, 2, 5) if len(decades) <= 3 else (1,)
            ticks = [factor * 10.0**decade for decade in decades[::stride] for factor in factors]
        else:
            step = _round_step((self.high - self.low) / 5)
            first = math.ceil(self.low / step - 1e-9)
            ticks = [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [tick for tick in ticks if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9) or tick == 0]


def line_chart(
    series: Sequence[Series], x_label: str, y_label: str, *, log_x: bool = False, log_y: bool = False
) -> str:
    """An ``<svg>`` of the series, or "" when none has a point to draw.

    Non-finite values are left out, and on a logarithmic axis those under 1e-12; long lines are thinned to
    the means of 300 stretches.
    """
    lines = [(one, _points(one, log_x, log_y)) for one in series]
    lines = [(one, points) for one, points in lines if points]
    if not lines:
        return ""
    every = [point for _, points in lines for point in points]
    x_axis = _axis([x for x, _ in every], log_x, LEFT, WIDTH - RIGHT, margin=0.0)
    y_axis = _axis([y for _, y in every], log_y, HEIGHT - BOTTOM, TOP, margin=0.06)
    parts = [*_frame(x_axis, y_axis, x_label, y_label), *(_line(one, points, x_axis, y_axis) for one, points in lines)]
    title = f'role="img" aria-label="{escape(y_label)} against {escape(x_label)}"'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" {title}>{"".join(parts)}</svg>'


def legend(series: Sequence[Series]) -> str:
    """The names of the series beside a sample of their lines, as HTML."""
    entries = []
    for one in series:
        stroke = f'class="line" style="--stroke:var(--series-{one.colour % COLOURS})" {_dash(one)}'
        sample = f'<svg class="key" viewBox="0 0 30 10"><path d="M1 5H29" {stroke}/></svg>'
        entries.append(f"<span>{sample}{escape(one.name)}</span>")
    return f'<div class="legend">{"".join(entries)}</div>'


def number(value: float) -> str:
    """A number as a reader wants it: four significant digits, thousands separated, no needless zeros."""
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _points(one: Series, log_x: bool, log_y: bool) -> list[tuple[float, float]]:
    points = [
        (float(x), float(y))
        for x, y in zip(one.x, one.y, strict=True)
        if math.isfinite(x) and math.isfinite(y) and (x > SMALLEST or not log_x) and (y > SMALLEST or not log_y)
    ]
    if len(points) <= MOST_POINTS:
        return points
    edges = [round(index * len(points) / MOST_POINTS) for index in range(MOST_POINTS + 1)]
    stretches = [points[low:high] for low, high in pairwise(edges)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in stretches]


def _axis(values: list[float], log: bool, start: float, end: float, margin: float) -> Axis:
    low, high = min(values), max(values)
    if log:
        spread = max((high / low) ** margin, 1.0) if high > low else 2.0
        return Axis(low / spread, high * spread, True, start, end)
    spread = (high - low) * margin if high > low else max(abs(high), 1.0) * 0.1
    return Axis(low - spread, high + spread, False, start, end)


def _round_step(width: float) -> float:
    power = 10.0 ** math.floor(math.log10(width))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= width * (1 - 1e-9))


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for tick in x_axis.ticks():
        x = f"{x_axis(tick):.1f}"
        yield f'<path class="grid" d="M{x} {TOP}V{bottom}"/>'
        yield f'<text x="{x}" y="{bottom + 17}" text-anchor="middle">{number(tick)}</text>'
    for tick in y_axis.ticks():
        y = y_axis(tick)
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
        yield f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>'
    yield f'<path class="frame" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
    yield f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'
    middle = (TOP + bottom) / 2
    yield f'<text transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'


def _line(one: Series, points: list[tuple[float, float]], x_axis: Axis, y_axis: Axis) -> str:
    pixels = [(f"{x_axis(x):.1f}", f"{y_axis(y):.1f}") for x, y in points]
    path = "M" + "L".join(f"{x} {y}" for x, y in pixels)
    marks = ""
    if one.markers or len(points) == 1:
        for (x, y), (value_x, value_y) in zip(pixels, points, strict=True):
            tip = f"<title>{escape(one.name)}: {number(value_x)}, {number(value_y)}</title>"
            marks += f'<circle cx="{x}" cy="{y}" r="3">{tip}</circle>'
    style = f'style="--stroke:var(--series-{one.colour % COLOURS})"'
    return f'<g {style}><path class="line" d="{path}" {_dash(one)}/>{marks}</g>'


def _dash(one: Series) -> str:
    pattern = DASHES[one.dash % len(DASHES)]
    return f'stroke-dasharray="{pattern}"' if pattern else ""
