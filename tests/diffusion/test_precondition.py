"""Preconditioning: the boundary condition, and the unit variances that EDM derives it from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.diffusion.precondition import c_target, coefficients


@pytest.mark.parametrize(
    ("boundary", "t_min", "at"), [("zero", 0.002, 0.0), ("sigma_min", 0.002, 0.002), ("sigma_min", 0.003, 0.003)]
)
def test_the_denoiser_is_the_identity_at_its_boundary(boundary, t_min, at):
    c = coefficients(jnp.array([at]), 0.5, boundary, t_min)
    assert c.c_skip[0] == 1.0
    assert c.c_out[0] == 0.0
    assert jnp.isfinite(c.c_noise[0])


def test_network_input_and_target_have_unit_variance():
    # Var[c_in (x_0 + tε)] = 1, and the network's target (x_0 − c_skip x_t)/c_out has variance 1 (EDM, app. B.6).
    t = jnp.geomspace(1e-3, 80.0, 50)
    c = coefficients(t, 0.5)
    np.testing.assert_allclose(c.c_in**2 * (0.25 + t**2), 1.0, rtol=1e-5)
    target_variance = ((1 - c.c_skip) ** 2 * 0.25 + c.c_skip**2 * t**2) / c.c_out**2
    np.testing.assert_allclose(target_variance, 1.0, rtol=1e-3)


def test_c_noise_is_a_quarter_of_the_log():
    np.testing.assert_allclose(coefficients(jnp.array([1.0, np.e**4])).c_noise, [0.0, 1.0], atol=1e-6)


def test_the_shift_vanishes_at_high_noise():
    plain, shifted = (coefficients(jnp.array([50.0]), 0.5, b) for b in ("zero", "sigma_min"))
    np.testing.assert_allclose(shifted.c_out, plain.c_out, rtol=1e-4)


def test_an_unknown_boundary_is_refused():
    with pytest.raises(ValueError, match="boundary"):
        coefficients(jnp.ones(1), boundary="one")


def test_a_target_time_is_seen_as_a_noise_level_is_and_is_bounded_at_zero():
    s = np.array([0.05, 0.8, 7.0, 80.0], np.float32)
    np.testing.assert_allclose(c_target(s), coefficients(s).c_noise, atol=0.006)
    low = c_target(np.array([0.0, 1e-4, 1e-3, 2e-3, 5e-3], np.float32))
    assert np.all(np.diff(low) > 0.01)  # times near 0 are told apart
    assert -1.75 < low[0] < coefficients(0.002).c_noise
    slope = jax.grad(c_target)(0.0)
    np.testing.assert_allclose(slope, 250, rtol=1e-5)
