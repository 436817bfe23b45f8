"""iCT has no official code: its schedule, probabilities and loss against float64 of its paper's formulas and facts."""

import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax.diffusion import process, times
from sct_jax.objectives import consistency, pairs
from sct_jax.objectives.table import ROWS

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "ict_schedule.npz"))
TOTAL, BOUNDS = 400_000, (0.002, 80.0)


def make_config(**objective):
    config = config_lib.default_config()
    config.total_steps = TOTAL
    config.objective.update(ROWS["ict"] | objective)
    return config


def test_the_grid_doubles_seven_times_at_the_golden_steps():
    steps = np.arange(TOTAL + 1)
    expected = GOLDEN["points"][np.searchsorted(GOLDEN["first_step"], steps, side="right") - 1]
    points = np.asarray(times.num_scales(jnp.asarray(steps), TOTAL, 10, 1280, "doubling"))
    assert np.array_equal(points, expected)  # all 400,001 of them
    intervals = np.unique(points) - 1
    assert intervals.tolist() == [10 * 2**n for n in range(8)]
    assert np.flatnonzero(np.diff(points)).tolist() == [50_000 * n - 1 for n in range(1, 8)]  # K' = 400,000 / 8


@jax.jit
def probabilities(points):
    log_p = times.grid_log_probabilities(points, 1281, -1.1, 2.0, *BOUNDS)
    return log_p, jax.nn.softmax(log_p)


@pytest.mark.parametrize("num", [11, 161, 1281])
def test_probabilities_of_the_intervals(num):
    log_p, p = probabilities(jnp.int32(num))
    p = np.asarray(p, np.float64)
    assert p.sum() == pytest.approx(1.0, abs=1e-5)
    assert np.all(p[num - 1 :] == 0.0)  # intervals that the grid does not have
    golden = GOLDEN[f"probabilities_{num}"]
    np.testing.assert_allclose(p[: num - 1], golden, atol=1e-6)
    assert 0.5 * np.abs(p[: num - 1] - golden).sum() < 1e-4  # of the whole distribution
    # In the grid's coordinate t^{1/7} the lognormal peaks at ln t = −1.1 − 2²/7; P_mean = 1.1 would be far off.
    peak, grid = int(np.argmax(log_p)), process.karras_grid(num)
    assert grid[max(peak - 1, 0)] < math.exp(-1.1 - 4 / 7) < grid[peak + 2]


def test_draws_follow_the_probabilities():
    count = 4000
    t, r = jax.jit(pairs.build(make_config().objective, TOTAL), static_argnums=1)(
        jax.random.key(0), count, jnp.int32(100_000)
    )
    grid = process.karras_grid(41)
    index = np.abs(np.asarray(r)[:, None] - grid).argmin(axis=1)
    np.testing.assert_allclose(r, grid[index], rtol=1e-5)
    np.testing.assert_allclose(t, grid[index + 1], rtol=1e-5)  # neighbours
    p = np.asarray(probabilities(jnp.int32(41))[1], np.float64)[:40]
    observed = np.bincount(index, minlength=40) / count
    assert np.all(np.abs(observed - p) < 5 * np.sqrt(p * (1 - p) / count))


def test_the_loss_is_the_papers():
    # λ(σ) d(f(x + σ_{i+1} z, σ_{i+1}), sg[f(x + σ_i z, σ_i)]), d = √(‖·‖² + c²) − c with c = 0.00054 √D, λ = 1/gap.
    def network(x, t):
        return np.tanh(x) / (1 + t**2) + 0.1 * np.sin(3 * x)

    def denoise(params, x, t, condition=None, dropout_key=None):
        t = process.per_image(t, x)
        return jnp.tanh(x) / (1 + t**2) + 0.1 * jnp.sin(3 * x)

    config = make_config(huber_c=0.00054 * math.sqrt(192))
    objective = consistency.build(config, denoise)
    images = np.random.default_rng(1).uniform(-1, 1, (32, 8, 8, 3)).astype(np.float32)

    @jax.jit
    def draws_and_loss(step):
        draws = objective.draw(images, jnp.zeros(32, jnp.int32), jax.random.key(2), step)
        return draws, objective.loss(None, {}, draws, None)

    for step in (0, 200_000):
        draws, (losses, metrics) = draws_and_loss(jnp.int32(step))
        x, t, r = (np.asarray(a, np.float64) for a in (images, draws["t"], draws["r"]))
        wide = lambda a: a[:, None, None, None]  # noqa: E731
        noise = (np.asarray(draws["x_t"], np.float64) - x) / wide(t)
        difference = network(x + wide(t) * noise, wide(t)) - network(x + wide(r) * noise, wide(r))
        c = 0.00054 * math.sqrt(192)
        expected = (np.sqrt((difference**2).sum(axis=(1, 2, 3)) + c**2) - c) / (t - r)
        np.testing.assert_allclose(losses, expected, rtol=2e-3)
        assert not metrics["terminal"].any()  # the grid ends at t_min: the network is asked there, too


def test_the_published_c_of_cifar10_is_the_rows():
    assert ROWS["ict"]["huber_c"] == pytest.approx(0.03, abs=1e-4)  # the paper's 0.03 for D = 3,072
