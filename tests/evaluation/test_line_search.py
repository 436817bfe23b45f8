"""The search for noise levels: known valleys are found, nothing is measured twice, levels stay in order."""

import itertools
import math

import numpy as np
import pytest

from sct_jax.evaluation.line_search import search

T_MAX = 80.0


def gaussian_two_steps(tau, sigma=0.5):
    """Fréchet distance a dimension of two-step samples of a wrong model of N(0, sigma²), in closed form.

    The model scales by the exact factor times ``1 − 0.15 t/(1 + t)``, so that late steps undo too little noise and
    early ones keep what the first step got wrong. Samples are Gaussian: ``v1 = a(T)² T²``, ``v2 = a(τ)² (v1 + τ²)``.
    """

    def factor(t):
        return sigma / math.hypot(sigma, t) * (1 - 0.15 * t / (1 + t))

    first = (factor(T_MAX) * T_MAX) ** 2
    return (factor(tau) * math.sqrt(first + tau**2) - sigma) ** 2


def test_the_best_time_of_a_wrong_model_of_a_gaussian_is_found():
    dense = np.geomspace(0.02, 60, 200_001)
    truth = dense[np.argmin([gaussian_two_steps(tau) for tau in dense])]
    assert 0.1 < truth < 10  # within the range: neither end would do
    best, tried, done = search(
        lambda times: gaussian_two_steps(times[1]), (T_MAX, 0.821), low=0.02, high=60, tolerance=0.01
    )
    assert math.log(best.times[1]) == pytest.approx(math.log(truth), abs=0.01)
    assert best.value == min(value for _, value in tried)
    assert best.times[0] == T_MAX
    assert done


def test_the_deeper_of_two_valleys_is_found():
    def score(times):
        log = math.log(times[1])
        return min((log - 2) ** 2 + 0.8, (log + 2) ** 2)

    best, _, _ = search(score, (T_MAX, 9.0), low=0.02, high=60)
    assert math.log(best.times[1]) == pytest.approx(-2, abs=0.02)


def test_several_levels_are_found_together():
    aims = np.log([6.0, 1.5, 0.3])
    bowl = np.array([[1.0, 0.4, 0.0], [0.4, 1.0, 0.3], [0.0, 0.3, 1.0]])

    def score(times):
        off = np.log(times[1:]) - aims
        return 1 + off @ bowl @ off

    best, tried, _ = search(score, (T_MAX, 20.0, 5.0, 0.8), low=0.02, high=60, most=400)
    np.testing.assert_allclose(np.log(best.times[1:]), aims, atol=0.06)
    assert best.value < 1.005
    assert all(later < earlier for times, _ in tried for earlier, later in itertools.pairwise(times))


def test_nothing_is_measured_twice_and_the_tries_are_counted():
    calls = []

    def score(times):
        calls.append(times)
        return abs(math.log(times[1] / 3)) + abs(math.log(times[2] / 0.5))

    best, tried, done = search(score, (T_MAX, 2.0, 0.8), low=0.02, high=60, most=25)
    assert len(calls) == len(set(calls)) == len(tried) == 25
    assert [one.times for one in tried] == calls
    assert calls[0] == (T_MAX, 2.0, 0.8)
    assert best.value == min(map(score, calls[:25]))
    assert not done


def test_a_start_outside_the_range_is_moved_into_it():
    best, tried, _ = search(lambda times: abs(math.log(times[1])), (T_MAX, 0.001), low=0.1, high=5)
    assert all(0.1 - 1e-6 <= one.times[1] <= 5 + 1e-6 for one in tried)
    assert best.times[1] == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize(
    ("start", "low"), [((80.0,), 0.1), ((80.0, 90.0), 0.1), ((80.0, 3.0, 3.0), 0.1), ((80, 1.0), 59)]
)
def test_levels_without_room_are_refused(start, low):
    with pytest.raises(ValueError, match=r"descending|no room"):
        search(lambda times: 0.0, start, low=low, high=60)
