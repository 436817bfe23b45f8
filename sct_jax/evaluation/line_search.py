"""The noise levels of a few sampling steps that minimise a score: golden sections in ln t, one level at a time."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

GOLDEN = (math.sqrt(5) - 1) / 2
SCAN = 7  # levels tried over the whole range of each before any section: a score need not have one valley
MARGIN = 0.05  # in ln t, that neighbouring levels keep from each other
WIDTH = 0.5  # in ln t, on either side of the best level, searched again once another level has moved
GAIN = 1e-3  # relative; a round that gains less is the last

Times = tuple[float, ...]


class Tried(NamedTuple):
    """Descending noise levels and their score."""

    times: Times
    value: float


class Found(NamedTuple):
    """The best levels, all that were tried in their order, and whether the search ended before the tries did."""

    best: Tried
    tried: list[Tried]
    done: bool


class _Spent(Exception):
    """All tries are used up."""


class _Ledger:
    """Measures levels given as ln t below a fixed first level; nothing twice, and no more than ``most`` times."""

    def __init__(self, measure: Callable[[Times], float], first: float, most: int):
        self._measure, self._first, self._most = measure, first, most
        self.tried: dict[Times, float] = {}

    def __call__(self, logs: Sequence[float]) -> float:
        times = (self._first, *(float(f"{math.exp(log):.6g}") for log in logs))
        if times not in self.tried:
            if len(self.tried) >= self._most:
                raise _Spent
            self.tried[times] = float(self._measure(times))
        return self.tried[times]

    @property
    def best(self) -> Tried:
        times = min(self.tried, key=lambda times: self.tried[times])
        return Tried(times, self.tried[times])


def search(
    measure: Callable[[Times], float],
    start: Sequence[float],
    *,
    low: float,
    high: float,
    tolerance: float = 0.02,
    most: int = 40,
) -> Found:
    """The best levels found.

    ``start[0]`` stays; each other level is scanned over its whole range between its neighbours, then narrowed by
    golden sections (Kiefer, 1953) to ``tolerance`` in ln t. Of several levels this is repeated around the best,
    one after the other, until a round gains less than a thousandth.

    Args:
      measure: the score of descending noise levels, lower is better; the same levels must give the same score.
      start: descending levels, two or more.
      low: the least noise level to try.
      high: the greatest of all but the first.
      tolerance: in ln t.
      most: calls of ``measure``.

    Raises:
      ValueError: for levels that do not descend, or a range in which there is no room for them.
    """
    start = tuple(float(t) for t in start)
    if len(start) < 2 or not all(later < earlier for earlier, later in itertools.pairwise(start)):
        raise ValueError(f"need two or more descending levels, got {start}")
    floor, top = math.log(low), math.log(min(high, start[0]))
    if top - floor < MARGIN * len(start):
        raise ValueError(f"no room for {len(start) - 1} levels between {low} and {high}")
    ledger, done = _Ledger(measure, start[0], most), False
    try:
        ledger(_inside([math.log(t) for t in start[1:]], floor, top))
        for level in range(len(start) - 1):
            _scan(ledger, level, floor, top, tolerance)
        gains = len(start) > 2
        while gains:
            before = ledger.best.value
            for level in range(len(start) - 1):
                line, bounds = _line(ledger, level, floor, top)
                centre = math.log(ledger.best.times[level + 1])
                _golden(line, max(bounds[0], centre - WIDTH), min(bounds[1], centre + WIDTH), tolerance)
            gains = before - ledger.best.value > GAIN * abs(before)
        done = True
    except _Spent:
        pass
    return Found(ledger.best, [Tried(*one) for one in ledger.tried.items()], done)


def _scan(ledger: _Ledger, level: int, floor: float, top: float, tolerance: float) -> None:
    """Tries one level over all its range, then sections between the neighbours of the best."""
    line, (low, high) = _line(ledger, level, floor, top)
    points = [low + (high - low) * index / (SCAN - 1) for index in range(SCAN)]
    values = [line(point) for point in points]
    best = values.index(min(values))
    _golden(line, points[max(best - 1, 0)], points[min(best + 1, SCAN - 1)], tolerance)


def _line(
    ledger: _Ledger, level: int, floor: float, top: float
) -> tuple[Callable[[float], float], tuple[float, float]]:
    """The score as a function of one ln t, the others as in the best so far, and the range that they leave it."""
    logs = [math.log(t) for t in ledger.best.times[1:]]
    above = logs[level - 1] - MARGIN if level else top
    below = logs[level + 1] + MARGIN if level + 1 < len(logs) else floor
    return lambda log: ledger([*logs[:level], log, *logs[level + 1 :]]), (min(below, above), above)


def _golden(line: Callable[[float], float], low: float, high: float, tolerance: float) -> None:
    left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
    at_left, at_right = line(left), line(right)
    while high - low > tolerance:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - GOLDEN * (high - low)
            at_left = line(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + GOLDEN * (high - low)
            at_right = line(right)


def _inside(logs: list[float], floor: float, top: float) -> list[float]:
    """The levels themselves where they lie in the range, else as many spread evenly over it."""
    if all(floor <= log <= top for log in logs):
        return logs
    return [top - (top - floor) * (index + 1) / (len(logs) + 1) for index in range(len(logs))]
