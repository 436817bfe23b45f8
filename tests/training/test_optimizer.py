"""Optimizers: RAdam against PyTorch's numbers, and the learning-rate schedules."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sct_jax import config as config_lib
from sct_jax.training import optimizer

GOLDEN = Path(__file__).parent.parent / "parity" / "golden" / "radam.npz"


def settings(**fields):
    config = config_lib.default_config()
    config.optimizer.update(fields)
    return config.optimizer


def test_radam_follows_pytorchs():
    golden = np.load(GOLDEN)
    rule = optimizer.build(settings(name="radam", lr=1e-2), 1000)
    value = jnp.asarray(golden["start"])
    state = rule.init(value)
    for grad, expected in zip(golden["grads"], golden["path"], strict=True):
        updates, state = rule.update(jnp.asarray(grad), state, value)
        value = optax.apply_updates(value, updates)
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_radams_first_five_updates_grow_with_the_gradient_and_no_others():
    """The sum of a loss over 3,072 values moves the weights 3,072 times as far as their mean in these five alone."""
    rule = optimizer.build(settings(name="radam", lr=1.0), 10)
    grads = np.random.default_rng(0).normal(1.0, 0.2, 8).astype(np.float32)
    state = rule.init(jnp.zeros(2))
    for count, grad in enumerate(grads, start=1):
        (mean, total), state = rule.update(grad * jnp.array([1.0, 3072.0]), state, jnp.zeros(2))
        rho = 1999 - 2 * count * 0.999**count / (1 - 0.999**count)
        assert (rho < 5) == (count <= 5)
        assert float(total / mean) == pytest.approx(3072 if rho < 5 else 1, rel=1e-4)


def test_adams_first_update_is_the_learning_rate_against_the_sign():
    rule = optimizer.build(settings(name="adam", lr=0.1), 10)
    updates, _ = rule.update(jnp.array([3.0, -0.01]), rule.init(jnp.zeros(2)), jnp.zeros(2))
    np.testing.assert_allclose(updates, [-0.1, 0.1], rtol=1e-4)


def test_clipping_bounds_the_norm_that_reaches_the_rule():
    clipped = optimizer.build(settings(name="adam", lr=1.0, clip_norm=1.0, eps=1e3), 10)
    updates, _ = clipped.update(jnp.array([30.0, 40.0]), clipped.init(jnp.zeros(2)), jnp.zeros(2))
    np.testing.assert_allclose(updates, [-0.6e-3, -0.8e-3], rtol=1e-2)  # eps dominates: the update is g/eps


def test_schedules():
    constant = optimizer.learning_rate(settings(lr=1.0, ramp_steps=10), 100)
    np.testing.assert_allclose([constant(0), constant(4), constant(9), constant(50)], [0.1, 0.5, 1, 1], rtol=1e-6)
    decayed = optimizer.learning_rate(settings(lr=1.0, decay="inverse_sqrt", decay_reference_steps=2000), 10**6)
    np.testing.assert_allclose([decayed(0), decayed(2000), decayed(8000)], [1, 1, 0.5], rtol=1e-6)
    cosine = optimizer.learning_rate(settings(lr=1.0, decay="cosine"), 100)
    np.testing.assert_allclose([cosine(0), cosine(50), cosine(100)], [1, 0.5, 0], atol=1e-6)
