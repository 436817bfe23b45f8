"""EMA profiles against hand-computed sequences."""

import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.errors import UserError
from sct_jax.training import ema


def test_a_constant_profile_by_hand():
    profile = ema.parse_profile("constant:0.9")
    average, expected = {"w": jnp.float32(1.0)}, 1.0
    for step, value in enumerate([2.0, 4.0, -1.0]):
        average = ema.update(average, {"w": jnp.float32(value)}, ema.decay_at(profile, jnp.int32(step), 128))
        expected = 0.9 * expected + 0.1 * value
    np.testing.assert_allclose(average["w"], expected, rtol=1e-6)


def test_a_half_life_halves():
    # After half_life images of a constant new value, half of the old one is left.
    profile = ema.parse_profile("half_life:1000")
    average = jnp.float32(1.0)
    for step in range(10):
        average = ema.update(average, jnp.float32(0.0), ema.decay_at(profile, jnp.int32(step), 100))
    np.testing.assert_allclose(average, 0.5, rtol=1e-5)


def test_the_ramp_limits_the_half_life_to_a_share_of_the_images_seen():
    profile = ema.parse_profile("half_life:500000:0.05")
    assert float(ema.decay_at(profile, jnp.int32(0), 512)) == 0.0  # nothing seen yet: take the parameters
    for step, half_life in ((1000, 0.05 * 512_000), (100_000, 500_000)):
        np.testing.assert_allclose(ema.decay_at(profile, jnp.int32(step), 512), 0.5 ** (512 / half_life), rtol=1e-5)


@pytest.mark.parametrize(("std", "gamma"), [(0.05, 16.97), (0.1, 6.94), (0.075, 10.29), (0.288, 0.018)])
def test_a_power_profile_has_the_exponent_of_its_width(std, gamma):
    profile = ema.parse_profile(f"power:{std}")
    assert profile.gamma == pytest.approx(gamma, abs=0.005)
    # The weights τ^γ on [0, 1], integrated numerically: their standard deviation is the one asked for.
    middles = (np.arange(100_000) + 0.5) / 100_000
    weights = middles**profile.gamma / np.sum(middles**profile.gamma)
    mean = np.sum(weights * middles)
    assert np.sqrt(np.sum(weights * (middles - mean) ** 2)) == pytest.approx(std, rel=1e-4)


def test_a_power_profile_by_hand():
    # γ + 1 = 17.9722 at 0.05: β = 0, (1/2)^17.9722 = 3.889e-6, (2/3)^17.9722 = 6.843e-4; at k = 100,000: 1 − 1.797e-4.
    profile = ema.parse_profile("power:0.05")
    decays = [float(ema.decay_at(profile, jnp.int32(step), 128)) for step in (0, 1, 2, 99_999)]
    assert decays[0] == 0.0  # the first update copies the parameters
    np.testing.assert_allclose(decays[1:3], [3.889e-6, 6.843e-4], rtol=1e-3)
    assert 1 - decays[3] == pytest.approx(1.797e-4, rel=1e-3)
    average = jnp.float32(5.0)
    for step, value in enumerate([1.0, 3.0, -2.0]):
        average = ema.update(average, jnp.float32(value), ema.decay_at(profile, jnp.int32(step), 128))
    after_two = 3.0 + 3.889e-6 * (1.0 - 3.0)
    np.testing.assert_allclose(average, -2.0 + 6.843e-4 * (after_two + 2.0), rtol=1e-5)


def test_a_power_profile_weighs_steps_by_the_power_of_their_number():
    # The product of the decays telescopes: after n updates the first value keeps the share n^{−(γ+1)}, whatever n.
    profile = ema.parse_profile("power:0.1")
    average = jnp.float32(0.0)
    for step in range(6):
        average = ema.update(average, jnp.float32(step == 0), ema.decay_at(profile, jnp.int32(step), 1))
    np.testing.assert_allclose(average, 6.0 ** -(profile.gamma + 1), rtol=1e-4)


def test_a_parameter_that_never_moves_is_kept_to_the_last_bit():
    value = jnp.float32(0.1234567)
    average = value
    for step in range(50):
        average = ema.update(average, value, ema.decay_at(ema.parse_profile("constant:0.999"), jnp.int32(step), 1))
    assert average == value


@pytest.mark.parametrize(
    "text", ["0.999", "constant", "constant:1.5", "half_life:-3", "half_life:a", "power", "power:0.3", "power:0"]
)
def test_what_is_no_profile_is_refused(text):
    with pytest.raises(UserError, match="is no profile"):
        ema.parse_profile(text)
