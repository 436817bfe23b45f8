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


def test_a_parameter_that_never_moves_is_kept_to_the_last_bit():
    value = jnp.float32(0.1234567)
    average = value
    for step in range(50):
        average = ema.update(average, value, ema.decay_at(ema.parse_profile("constant:0.999"), jnp.int32(step), 1))
    assert average == value


@pytest.mark.parametrize("text", ["0.999", "constant", "constant:1.5", "half_life:-3", "half_life:a", "power:0.1"])
def test_what_is_no_profile_is_refused(text):
    with pytest.raises(UserError, match="is no profile"):
        ema.parse_profile(text)
