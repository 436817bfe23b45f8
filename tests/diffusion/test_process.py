"""The process and its steps: identities, and Heun's order on a Gaussian whose flow is known."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.diffusion import process


def test_euler_step_with_the_sample_is_the_sample_plus_less_noise():
    key = jax.random.key(0)
    x_0, noise = jax.random.normal(key, (2, 5, 4, 4, 3))
    t = jnp.array([0.002, 0.1, 1.0, 10.0, 80.0])
    r = t * jnp.array([0.999, 0.5, 0.0, 0.9, 0.25])
    x_r = process.euler_step(process.add_noise(x_0, noise, t), x_0, t, r)
    expected = process.add_noise(x_0, noise, r)
    assert jnp.max(jnp.abs(x_r - expected) / process.per_image(1 + r, x_r)) < 1e-5


def test_euler_step_ends_at_the_estimate_and_stays_at_r_equal_t():
    x_t, estimate = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 1))
    t = jnp.array([0.5, 2.0, 30.0])
    assert jnp.array_equal(process.euler_step(x_t, estimate, t, jnp.zeros(3)), estimate)
    assert jnp.array_equal(process.euler_step(x_t, estimate, t, t), x_t)


def gaussian(std):
    """For data N(0, std²): the exact denoiser, and the exact flow, which scales x by √(std² + t²)."""
    return lambda x, t: x * std**2 / (std**2 + process.per_image(t, x) ** 2)


def test_heun_matches_the_closed_form_flow_of_a_gaussian_with_second_order():
    x = jax.random.normal(jax.random.key(2), (3, 2, 2, 1)) * 80.0
    exact = x * jnp.sqrt((0.5**2 + 0.002**2) / (0.5**2 + 80.0**2))
    step = jax.jit(functools.partial(process.heun_step, gaussian(0.5)))
    errors = []
    for steps in (20, 40, 80):
        grid = process.karras_grid(steps + 1)[::-1]
        y = x
        for t, r in itertools.pairwise(grid):
            y = step(y, jnp.float32(t), jnp.float32(r))
        errors.append(float(jnp.max(jnp.abs(y - exact)) / jnp.max(jnp.abs(exact))))
    assert errors[0] < 0.05
    assert 3.0 < errors[0] / errors[1] < 5.5  # halving the step quarters the error
    assert 3.0 < errors[1] / errors[2] < 5.5


def test_heun_step_to_zero_is_the_denoised_image():
    x = jax.random.normal(jax.random.key(3), (2, 2, 2, 1))
    t = jnp.array([0.3, 3.0])
    np.testing.assert_allclose(
        process.heun_step(gaussian(0.5), x, t, jnp.zeros(2)), gaussian(0.5)(x, t), rtol=1e-5, atol=1e-6
    )


def test_karras_grid_is_edms():
    grid = process.karras_grid(18)
    assert grid[0] == pytest.approx(0.002, rel=1e-12)
    assert grid[-1] == pytest.approx(80.0, rel=1e-12)
    # The published EDM levels of 18 steps (NVIDIA's generate.py prints them), a few of them.
    np.testing.assert_allclose(grid[::-1][[1, 2, 9, 16]], [57.586, 40.786, 1.9237, 0.0075280], rtol=2e-3)


@pytest.mark.parametrize("bad", [(1, 0.002, 80.0), (5, 0.0, 80.0), (5, 2.0, 1.0)])
def test_karras_grid_refuses_impossible_bounds(bad):
    with pytest.raises(ValueError, match="karras_grid"):
        process.karras_grid(*bad)
