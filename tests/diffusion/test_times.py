"""Schedules: functions of the step alone; the mapping t -> r agrees with the original ECT (golden numbers)."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.diffusion import times


def test_lognormal_has_its_mean_and_standard_deviation():
    log_t = np.log(times.lognormal(jax.random.key(0), (200_000,), -1.1, 2.0))
    assert log_t.mean() == pytest.approx(-1.1, abs=0.02)
    assert log_t.std() == pytest.approx(2.0, abs=0.02)


def test_smooth_and_staged_agree_where_stages_begin_and_only_there():
    starts = jnp.arange(0, 100_000, 25_000)
    staged, smooth = (times.stage(starts, 25_000, s) for s in ("staged", "smooth"))
    assert staged.tolist() == smooth.tolist() == [0.0, 1.0, 2.0, 3.0]
    assert float(times.stage(jnp.int32(37_500), 25_000, "staged")) == 1.0
    assert float(times.stage(jnp.int32(37_500), 25_000, "smooth")) == 1.5


def test_zero_stage_steps_means_a_fixed_q():
    assert float(times.stage(jnp.int32(10**6), 0, "smooth")) == 0.0
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


def test_small_t_is_terminal_at_first():
    # 1 + 8 sigmoid(−t) > 2 for t < ln 7 = 1.9459: r = 0 there at stage 0, positive above (ECT, eq. 17).
    r = times.map_to_r(jnp.array([0.01, 1.9, 2.0]), jnp.float32(0))
    assert r[0] == 0
    assert r[1] == 0
    assert r[2] > 0


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="schedule"):
        times.stage(jnp.int32(0), 10, "jumpy")
