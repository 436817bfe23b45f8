"""Schedules: functions of the step alone; the mapping t -> r agrees with the original ECT (golden numbers)."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sct_jax.diffusion import process, times


def test_lognormal_has_its_mean_and_standard_deviation():
    log_t = np.log(times.lognormal(jax.random.key(0), (200_000,), -1.1, 2.0))
    assert log_t.mean() == pytest.approx(-1.1, abs=0.02)
    assert log_t.std() == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize("bounds", [(0.002, 80.0), (1.0, 80.0)])
@pytest.mark.parametrize("kind", ["lognormal", "student"])
def test_truncated_times_have_their_distribution_and_stay_within_bounds(kind, bounds):
    # TCM: stage 1 truncates the lognormal, stage 2 draws ln t of Student's t, scale 0.2, 0.01 degrees of freedom.
    draw, whole = {
        "lognormal": (times.truncated_lognormal, stats.norm(-1.1, 2.0)),
        "student": (times.truncated_student, stats.t(0.01, 0.0, 0.2)),
    }[kind]
    mean, std = whole.args[-2:]
    t = np.asarray(draw(jax.random.key(1), (100_000,), mean, std, *bounds), np.float64)
    assert bounds[0] * (1 - 1e-5) <= t.min()
    assert t.max() <= bounds[1] * (1 + 1e-5)
    low, high = whole.cdf(np.log(bounds))
    distance = stats.kstest(np.log(t), lambda x: np.clip((whole.cdf(x) - low) / (high - low), 0, 1)).statistic
    assert distance < 0.005  # 100,000 perfect draws exceed it once in 70


def test_smooth_and_staged_agree_where_stages_begin_and_only_there():
    starts = jnp.arange(0, 100_000, 25_000)
    staged, smooth = (times.stage(starts, 25_000, s) for s in ("staged", "smooth"))
    assert staged.tolist() == smooth.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert float(times.stage(jnp.int32(37_500), 25_000, "staged")) == 1.0
    assert float(times.stage(jnp.int32(37_500), 25_000, "smooth")) == 1.5


def test_the_matched_schedule_is_smooth_and_crosses_every_stage_at_its_middle():
    """So that its mean is the stages'; the smooth schedule's is half a stage more."""
    steps, stages = 25_000, 8
    middles = jnp.arange(stages) * steps + steps // 2
    matched, staged = (times.stage(middles, steps, s) for s in ("smooth_matched", "staged"))
    assert matched.tolist() == staged.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    every = jnp.arange(stages * steps)
    mean = {s: float(np.asarray(times.stage(every, steps, s), np.float64).mean()) for s in times.SCHEDULES}
    assert mean["staged"] == 3.5
    assert mean["smooth"] == pytest.approx(4.0, abs=1e-4)
    assert mean["smooth_matched"] == pytest.approx(3.5 + 1 / 64, abs=1e-4)  # the first half stage is cut at 0
    rise = np.diff(np.asarray(times.stage(every, steps, "smooth_matched")))
    assert rise.min() >= 0
    assert rise.max() < 1.1 / steps


def test_zero_stage_steps_means_a_fixed_q():
    assert [float(times.stage(jnp.int32(10**6), 0, s)) for s in times.SCHEDULES] == [0.0, 0.0, 0.0]
    t = jnp.array([100.0])  # n(t) -> 1, so r/t = 1 − 1/256 at q = 256 (ECT's one-hour recipe)
    np.testing.assert_allclose(times.map_to_r(t, jnp.float32(0), q=256.0) / t, 1 - 1 / 256, rtol=1e-5)


def test_r_grows_towards_t_with_the_stage_and_stops_at_the_limit():
    t = jnp.geomspace(1e-3, 80.0, 40)
    rows = [times.map_to_r(t, jnp.float32(s)) for s in range(13)]
    assert jnp.all(rows[0] >= 0)
    for earlier, later in itertools.pairwise(rows):
        assert jnp.all(later >= earlier)
    np.testing.assert_allclose(rows[-1] / t, 0.999, rtol=1e-6)
    assert jnp.all(rows[-1] < t)


def test_without_a_limit_r_stays_below_t_in_float32():
    """Also where the mapping's ratio rounds to 1, and for every mantissa near a power of two."""
    t = np.concatenate([np.geomspace(1e-6, 1e6, 4001), 1 + np.arange(16) * 2.0**-23, 2 - np.arange(16) * 2.0**-23])
    t = jnp.asarray(t, jnp.float32)
    for stage in (0, 15, 23, 24, 40):
        r = jax.jit(times.map_to_r, static_argnames="ratio_limit")(t, jnp.float32(stage), ratio_limit=1.0)
        assert jnp.all(r < t)
        assert jnp.all(jnp.isfinite(1.0 / (t - r)))
    r = times.map_to_r(t, jnp.float32(15), ratio_limit=1.0)  # ECT's last stage in 400,000 steps
    exact = (1 + 8 / (1 + np.exp(np.minimum(np.asarray(t, np.float64), 700)))) / 2**16
    np.testing.assert_allclose((t - r) / t, exact, rtol=0.005)  # what the rounding of r leaves


def test_ects_own_count_of_ticks_begins_a_stage_one_step_later():
    """ECT closes its first tick after one step and each further one after 100 (12.8 kimg of 128), stages are 250."""
    steps = np.arange(1, 100_001)
    ticks = 1 + (steps - 1) // 100
    theirs = (ticks - 1) // 250
    ours = np.asarray(times.stage(jnp.asarray(steps - 1), 25_000, "staged"))
    np.testing.assert_array_equal(ours, theirs)
    earlier = np.asarray(times.stage(jnp.asarray(steps), 25_000, "staged"))
    assert steps[earlier != theirs].tolist() == [25_000, 50_000, 75_000, 100_000]


def test_small_t_is_terminal_at_first():
    # 1 + 8 sigmoid(−t) > 2 for t < ln 7 = 1.9459: r = 0 there at stage 0, positive above (ECT, eq. 17).
    r = times.map_to_r(jnp.array([0.01, 1.9, 2.0]), jnp.float32(0))
    assert r[0] == 0
    assert r[1] == 0
    assert r[2] > 0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule"):
        times.stage(jnp.int32(0), 10, "jumpy")


# Grids.


@pytest.mark.parametrize(
    ("growth", "s_0", "s_1", "first", "last"),
    [("fixed", 18, 18, 18, 18), ("progressive", 2, 150, 2, 151), ("doubling", 10, 1280, 11, 1281)],
)
def test_the_grid_grows_from_its_first_to_its_last_size_and_never_shrinks(growth, s_0, s_1, first, last):
    steps = jnp.arange(0, 800_001, 100)
    points = np.asarray(jax.jit(jax.vmap(lambda step: times.num_scales(step, 800_000, s_0, s_1, growth)))(steps))
    assert (points[0], points[-1]) == (first, last)
    assert np.all(np.diff(points) >= 0)
    assert points.max() == times.most_scales(s_0, s_1, growth)
    assert len(np.unique(points)) == {"fixed": 1, "progressive": 150, "doubling": 8}[growth]


def test_doubling_ends_at_s_1_where_it_is_no_power_of_two_times_s_0():
    intervals = np.asarray(times.num_scales(jnp.arange(1000), 1000, 10, 100, "doubling")) - 1
    assert np.unique(intervals).tolist() == [10, 20, 40, 80, 100]


def test_the_targets_decay_slows_with_the_grid():
    # At s_0 intervals it is mu_0; twice as many, its square root (CM, app. C).
    decay = times.target_decay(jnp.array([3, 5, 151]), 2, 0.9)
    np.testing.assert_allclose(decay, [0.9, 0.9**0.5, 0.9 ** (2 / 150)], rtol=1e-6)
    assert times.target_decay(jnp.array(3), 2, 0.0) == 0.0  # no average


@pytest.mark.parametrize("points", [2, 18, 151, 1281])
def test_the_traced_grid_is_the_karras_grid(points):
    ours = jax.jit(times.karras_times, static_argnums=(2, 3))(jnp.arange(points), jnp.int32(points), 0.002, 80.0)
    np.testing.assert_allclose(ours, process.karras_grid(points), rtol=5e-6)


@pytest.mark.parametrize("points", [2, 11, 641])
def test_grid_probabilities_are_the_lognormals_mass_of_each_interval(points):
    log_p = jax.jit(lambda points: times.grid_log_probabilities(points, 641, -1.1, 2.0, 0.002, 80.0))(points)
    p = np.exp(np.asarray(log_p, np.float64))
    assert p.shape == (640,)
    assert np.all(p[points - 1 :] == 0.0)
    normal = stats.norm(-1.1, 2.0)
    mass = np.diff(normal.cdf(np.log(process.karras_grid(points))))
    np.testing.assert_allclose(p[: points - 1], 2 * mass, atol=1e-6)  # erf is twice the normal's
    whole = 2 * np.diff(normal.cdf([math.log(0.002), math.log(80.0)])).item()
    assert p.sum() == pytest.approx(whole, abs=1e-6)


def test_an_unknown_growth_is_refused():
    with pytest.raises(ValueError, match="growth"):
        times.num_scales(jnp.int32(0), 10, 2, 150, "wild")


# Phases.


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_phases_divide_the_path_from_zero_to_t_max(phases):
    edges = times.phase_edges(phases, 0.002, 80.0)
    assert edges.shape == (phases + 1,)
    assert edges.dtype == np.float32
    assert edges[0] == 0.0
    assert edges[-1] == np.float32(80.0)
    assert np.all(np.diff(edges) > 0)
    np.testing.assert_allclose(edges[1:], process.karras_grid(phases + 1)[1:], rtol=1e-6)


@pytest.mark.parametrize("phases", [1, 4, 8])
def test_a_time_belongs_to_the_phase_that_ends_at_or_above_it(phases):
    edges = times.phase_edges(phases, 0.002, 80.0)
    just_above = edges[:-1] * np.float32(1 + 2e-5) + np.float32(1e-30)
    inside = np.geomspace(1e-4, 79.0, 200).astype(np.float32)
    beyond = np.float32([100.0, 1e4])
    t = np.concatenate([edges[1:], just_above, inside, beyond])
    start = jax.jit(lambda t: times.phase_start(t, edges))(t)
    expected = [edges[:-1], edges[:-1]]  # an edge is the last point of its segment, and above it the next begins
    expected += [[max(s for s in edges if s < value) for value in inside], edges[[-2, -2]]]
    assert np.array_equal(start, np.concatenate(expected))


@pytest.mark.parametrize("phases", [2, 4, 5, 8])
def test_a_grid_point_that_is_an_edge_ends_its_phase_however_it_was_rounded(phases):
    edges = times.phase_edges(phases, 0.002, 80.0)
    for intervals in (40, 1280):  # those of iCT
        index = np.arange(1, phases + 1) * (intervals // phases)
        t = jax.jit(lambda index, n: times.karras_times(index, n, 0.002, 80.0))(index, np.int32(intervals + 1))
        assert np.array_equal(times.phase_start(t, edges), edges[:-1])
