"""Charts are well-formed, put points where their axes say, and leave out what cannot be drawn."""

import math
import re
from xml.etree import ElementTree

import pytest

from sct_jax.report.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axis, Series, legend, line_chart, number


def coordinates(svg):
    """The points of each line in an SVG, in pixels."""
    paths = [element.get("d") for element in ElementTree.fromstring(svg).iter() if element.get("class") == "line"]
    return [[tuple(map(float, point.split())) for point in re.split("[ML]", path) if point] for path in paths]


def test_linear_points_span_the_frame_in_proportion():
    ((left, middle, right),) = coordinates(line_chart([Series("a", [0, 25, 100], [1, 2, 3])], "x", "y"))
    assert left[0] == LEFT
    assert right[0] == WIDTH - RIGHT
    assert middle[0] == pytest.approx(LEFT + 0.25 * (WIDTH - RIGHT - LEFT), abs=0.06)
    assert HEIGHT - BOTTOM > left[1] > middle[1] > right[1] > TOP
    assert middle[1] == pytest.approx((left[1] + right[1]) / 2, abs=0.06)


def test_logarithmic_axes_space_decades_evenly():
    svg = line_chart([Series("a", [0.01, 1, 100], [1, 10, 100])], "x", "y", log_x=True, log_y=True)
    ((a, b, c),) = coordinates(svg)
    assert b[0] - a[0] == pytest.approx(c[0] - b[0], abs=0.15)
    assert b[1] - a[1] == pytest.approx(c[1] - b[1], abs=0.15)


def test_what_cannot_be_drawn_is_left_out():
    values = [1.0, math.nan, math.inf, 0.0, -1.0, 2.0]
    assert len(coordinates(line_chart([Series("a", range(6), values)], "x", "y", log_y=True))[0]) == 2
    assert len(coordinates(line_chart([Series("a", range(6), values)], "x", "y"))[0]) == 4
    assert line_chart([Series("a", [1.0], [math.nan])], "x", "y") == ""
    assert line_chart([], "x", "y") == ""


def test_long_lines_are_thinned_to_means():
    ((*_, last),) = [points := coordinates(line_chart([Series("a", range(9000), [0, 2] * 4500)], "x", "y"))[0]]
    assert len(points) == 300
    assert {y for _, y in points} == {last[1]}  # each stretch averages to 1


@pytest.mark.parametrize("value", [0.0, 5.0, 1e-9])
def test_one_point_and_constant_lines_are_drawn(value):
    svg = line_chart([Series("a", [3], [value])], "x", "y", log_y=value > 0)
    assert ElementTree.fromstring(svg).findall(".//circle")
    assert "nan" not in svg
    assert len(coordinates(line_chart([Series("a", [1, 2], [value, value])], "x", "y"))[0]) == 2


def test_names_are_escaped():
    nasty = "<script>&"
    chart = line_chart([Series(nasty, [1, 2], [1, 2], markers=True)], nasty, nasty)
    ElementTree.fromstring(chart)
    assert "<script>" not in chart + legend([Series(nasty, [], [])])


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (Axis(0, 4000, False, 0, 1), [0, 1000, 2000, 3000, 4000]),
        (Axis(0.02, 0.98, False, 0, 1), [0.2, 0.4, 0.6, 0.8]),
        (Axis(0.3, 0.9, True, 0, 1), [0.4, 0.6, 0.8]),
        (Axis(0.1, 10, True, 0, 1), [0.1, 0.2, 0.5, 1, 2, 5, 10]),
        (Axis(1e-4, 1, True, 0, 1), [1e-4, 1e-3, 1e-2, 0.1, 1]),
    ],
)
def test_ticks_are_round_and_within(axis, expected):
    assert axis.ticks() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1000, "1,000"),
        (0.17346, "0.1735"),
        (1e-4, "1e-4"),
        (2.5e7, "2.5e7"),
        (11500.5, "11,500"),
        (80.0, "80"),
    ],
)
def test_numbers_read_well(value, text):
    assert number(value) == text
