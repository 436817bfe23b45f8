"""The measured signal is 1 for a network in float32, and finds where rounding drowned the difference."""

import jax
import jax.numpy as jnp
import numpy as np

from sct_jax import config as config_lib
from sct_jax.diffusion import process
from sct_jax.objectives import bootstrap, td_signal
from sct_jax.objectives.table import ROWS


def exact(params, x, t, condition=None, dropout_key=None):
    t = process.per_image(t, x)
    return params * jnp.tanh(x) / (1 + t**2) + 0.1 * jnp.sin(3 * x) * t / (1 + t)


def rounded(params, x, t, condition=None, dropout_key=None):
    """Its value in bfloat16; the derivative of rounding is 1, as it is in a network's forward mode."""
    value = exact(params, x, t)
    return value + jax.lax.stop_gradient(value.astype(jnp.bfloat16).astype(jnp.float32) - value)


def measured(denoise, step, method="ect", **objective):
    config = config_lib.default_config()
    config.objective.update(ROWS[method] | {"stage_steps": 100} | objective)
    measure = jax.jit(td_signal.build(config, denoise, denoise, exact))
    images = jax.random.uniform(jax.random.key(0), (td_signal.IMAGES, 8, 8, 1), minval=-1)
    return measure(jnp.float32(1), images, jnp.zeros(len(images), jnp.int32), jax.random.key(5), jnp.int32(step))


def test_nothing_is_lost_in_float32():
    for method, step in (("ect", 800), ("ict", 9_999)):
        signal = measured(exact, step, method)
        met = np.asarray(signal.share) > 0
        np.testing.assert_allclose(np.asarray(signal.evaluated)[met], 1, atol=1e-4)
        np.testing.assert_allclose(np.asarray(signal.tangent)[met], 1, atol=5e-3)
        np.testing.assert_allclose(np.sum(signal.share), 1, rtol=1e-6)


def test_rounding_drowns_the_difference_as_the_gap_shrinks():
    means = [(s.mean(s.evaluated), s.mean(s.tangent)) for s in (measured(rounded, k) for k in (0, 400, 1000))]
    assert means[0][0] > 0.99
    assert means[0][0] > means[1][0] > means[2][0]
    assert means[2][0] < 0.8
    assert means[2][1] > 0.999
    early, late = measured(rounded, 0), measured(rounded, 1000)
    assert not early.better_as_derivative().any()
    assert late.better_as_derivative().sum() > places_met(late) / 2


def places_met(signal):
    return np.sum(np.asarray(signal.share) > 0)


def test_what_is_sound_is_left_alone():
    """A derivative costs a fifth of a step more: not for the last thousandth of a cosine."""
    places = len(bootstrap.OCTAVES)
    share, tangent = np.full(places, 1 / places), np.ones(places)
    for evaluated, wanted in ((0.999, False), (0.98, True)):
        signal = td_signal.Signal(np.full(places, evaluated), tangent, share)
        assert (signal.better_as_derivative() == wanted).all()
    signal = td_signal.Signal(np.full(places, 0.98), np.full(places, 0.9), share)
    assert not signal.better_as_derivative().any()


def test_what_is_trained_on():
    signal = measured(rounded, 800)
    evaluated, tangent = np.asarray(signal.evaluated), np.asarray(signal.tangent)
    assert np.array_equal(signal.trained("evaluated", None), evaluated)
    assert np.array_equal(signal.trained("tangent", None), tangent)
    chosen = np.arange(len(bootstrap.OCTAVES)) > 8
    assert np.array_equal(signal.trained("mixed", chosen), np.where(chosen, tangent, evaluated))


def test_octaves_that_training_does_not_meet_follow_the_nearest():
    places = len(bootstrap.OCTAVES)
    share = np.zeros(places)
    share[[4, 9]] = 0.5
    tangent = np.zeros(places)
    tangent[9] = 1.0
    signal = td_signal.Signal(np.full(places, 0.5), tangent, share)
    assert signal.better_as_derivative().tolist() == [False] * 7 + [True] * 9


def test_images_are_spread_over_the_octaves_that_there_are():
    place = jnp.array([3] * 1000 + [5] + [7] * 50)
    index, there, share = td_signal._spread(place, 32, 16)
    found = np.asarray(place[index])[np.asarray(there)]
    assert sorted(found.tolist()) == [3, 3, 5, 7, 7]
    np.testing.assert_allclose(np.asarray(share)[[3, 5, 7]], np.array([1000, 1, 50]) / 1051)
