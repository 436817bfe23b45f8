"""``sct_jax.load`` and ``Model``: what a Python user calls."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sct_jax
from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.errors import UserError


@pytest.fixture(scope="module")
def model(tiny_run):
    return sct_jax.load(tiny_run)


def test_denoise_is_the_identity_without_noise(model):
    x = jnp.linspace(-1, 1, 2 * 64).reshape(2, 8, 8, 1)
    np.testing.assert_allclose(model.denoise(x, jnp.zeros(2)), x, atol=1e-6)


def test_sample_takes_labels_in_turn_and_is_in_range(model):
    images = model.sample(6, steps=2, seed=1, labels=np.array([3, 4]))
    assert images.shape == (6, 8, 8, 1)
    assert np.abs(images).max() <= 1
    again = model.sample(4, steps=2, seed=1, labels=[3, 4, 3, 4])
    np.testing.assert_allclose(images[:4], again, atol=1e-5)


def test_the_profile_chooses_the_weights(tiny_run, model):
    raw = sct_jax.load(tiny_run, "raw")
    assert model.profile == "constant:0.9"
    x, t = jnp.ones((1, 8, 8, 1)), jnp.ones(1)
    assert not jnp.array_equal(model.denoise(x, t), raw.denoise(x, t))


def test_an_older_checkpoint_loads_by_its_folder(tiny_run, model):
    assert sct_jax.load(tiny_run / "checkpoints" / "2").step == 2
    assert model.step == 4


@pytest.mark.parametrize("labels", [[10], [-2], [[1]]])
def test_labels_that_are_no_classes_are_refused(model, labels):
    with pytest.raises(ValueError, match="labels must be"):
        model.denoise(jnp.zeros((1, 8, 8, 1)), jnp.ones(1), labels)


def test_shapes_that_do_not_fit_are_refused(model):
    with pytest.raises(ValueError, match="denoise needs"):
        model.denoise(jnp.zeros((1, 16, 16, 1)), jnp.ones(1))
    with pytest.raises(UserError, match="out of range"):
        model.sample(1, labels=[])


@pytest.mark.parametrize("name", ["film_mlp", "ddpmpp"])
def test_no_labels_is_the_label_minus_one(name):
    config = config_lib.default_config()
    config.model.update({"name": name, "channels": 8, "channel_mult": (1,), "num_blocks": 1, "conditional": True})
    network = models.build(config.model, DataSpec(8, 1, 3, 10))
    params = jax.tree.map(lambda p: p + 0.1, jax.jit(network.init)(jax.random.key(0)))  # biases are not 0
    x, t = jnp.ones((2, 8, 8, 1)), jnp.ones(2)
    denoise = jax.jit(network.denoise)
    assert jnp.array_equal(denoise(params, x, t), denoise(params, x, t, jnp.array([-1, -1])))
    assert not jnp.array_equal(denoise(params, x, t), denoise(params, x, t, jnp.array([0, 1])))
