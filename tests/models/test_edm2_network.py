"""EDM2 as a function: what it is at first, where it drops, its dtype, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.diffusion.condition import Condition
from sct_jax.errors import UserError
from sct_jax.models.edm2 import EDM2, EDM2Block

SPEC = DataSpec(8, 1, 4, 64)
X = np.random.default_rng(1).standard_normal((3, 8, 8, 1)).astype(np.float32)
T = np.array([0.02, 0.7, 30.0], np.float32)
LABELS = np.array([0, 3, -1], np.int32)
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these networks run in milliseconds and compile in seconds


def settings(**fields):
    config = config_lib.default_config()
    small = dict(channels=8, channel_mult=(1,), num_blocks=1, attention_resolutions=(), attention_head_channels=8)
    config.model.update(name="edm2", conditional=True, **{**small, "channel_mult_embedding": 2, **fields})
    return config.model


def compiled(**fields):
    """The network, and its denoiser as a function of ``(params, x, t, labels)``."""
    network = models.build(settings(**fields), SPEC)
    denoise = jax.jit(network.denoise, compiler_options=FAST_COMPILE)
    return network, lambda params, x, t, labels, **options: denoise(params, x, t, Condition(labels), **options)


def gains(params):
    return [leaf for leaf in jax.tree.leaves(params) if leaf.ndim == 0]


def with_gains(params):
    """The parameters with gains other than their initial zero, so that no branch is silent."""
    return jax.tree.map(lambda leaf: leaf if leaf.ndim else leaf + 0.8, params)


@pytest.fixture(scope="module")
def tiny():
    network, denoise = compiled(dropout=0.5)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    generator = np.random.default_rng(0)
    draw = lambda leaf: np.float32(generator.standard_normal(leaf.shape)) * (leaf.ndim > 0)  # noqa: E731
    return network, denoise, jax.tree.map(draw, shapes)


def test_at_first_it_is_the_preconditioners_skip_and_expects_a_loss_of_order_one(tiny):
    network, denoise, params = tiny
    initial = jax.jit(lambda key: gains(network.init(key)))(jax.random.key(0))
    assert len(initial) == 6  # of five blocks and the output
    assert not any(initial)
    expected = 0.25 / (T**2 + 0.25)
    np.testing.assert_allclose(denoise(params, X, T, LABELS), expected[:, None, None, None] * X, rtol=1e-5)
    assert set(params["uncertainty"]) == {"fourier", "linear"}
    u = jax.jit(network.uncertainty)(params, T)
    assert u.shape == (3,)
    assert 0 < np.abs(u).max() < 5


def test_label_and_noise_level_condition_the_result(tiny):
    _, denoise, params = tiny
    params = with_gains(params)
    base = denoise(params, X, T, LABELS)
    other_label = denoise(params, X, T, np.array([1, 3, -1]))
    assert np.abs(base - other_label)[0].max() > 1e-3
    np.testing.assert_allclose(base[1:], other_label[1:], atol=1e-6)


def test_bfloat16_is_float32_to_its_digits(tiny):
    _, denoise, params = tiny
    params = with_gains(params)
    _, rough = compiled(compute_dtype="bfloat16")
    exact, rounded = denoise(params, X, T, LABELS), rough(params, X, T, LABELS)
    assert rounded.dtype == jnp.float32
    error = np.abs(exact - rounded).max() / np.abs(exact).max()
    assert 0 < error < 0.03


@pytest.mark.parametrize(("largest", "levels"), [(0, {0, 1, 2}), (4, {1, 2}), (3, {2}), (8, {0, 1, 2}), (1, set())])
def test_dropout_stays_at_low_resolutions(largest, levels):
    options = dict(channels=8, channel_mult=(1, 1, 1), num_blocks=1, attention_resolutions=())
    options |= dict(image_size=8, in_channels=1, out_channels=1, attention_head_channels=8)
    network = nnx.eval_shape(lambda: EDM2(dropout=0.4, dropout_max_resolution=largest, rngs=nnx.Rngs(0), **options))
    for stage in (network.encoder, network.decoder):
        blocks = {name: block for name, block in stage.items() if isinstance(block, EDM2Block)}
        assert {int(name[5]) for name, block in blocks.items() if block.dropout == 0.4} == levels
        assert all(block.dropout == 0 for name, block in blocks.items() if int(name[5]) not in levels)


def test_a_dropout_key_is_the_masks(tiny):
    _, denoise, params = tiny
    params = with_gains(params)
    draws = [denoise(params, X, T, LABELS, dropout_key=jax.random.key(seed)) for seed in (1, 1, 2)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 1e-2
    assert np.abs(draws[0] - denoise(params, X, T, LABELS)).max() > 1e-2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(augment_dim=9), "model.augment_dim"),
        (dict(attention_head_channels=64), "model.attention_head_channels"),
        (dict(channel_mult=(1, 1, 1, 1, 1)), "image_size 8 is not divisible by 16"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        models.build(settings(**fields), SPEC)


def test_the_head_may_be_left_out():
    network = models.build(settings(uncertainty_channels=0), SPEC)
    assert network.uncertainty is None
    assert "uncertainty" not in jax.eval_shape(network.init, jax.random.key(0))
