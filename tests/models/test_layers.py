"""The layers: initialisers, resampling as linear maps, float32 islands."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from sct_jax.models import layers
from sct_jax.models.layers import Conv, FourierEmbedding, GroupNorm, Init, Linear

BOX, TENT = (0.5, 0.5), (0.125, 0.375, 0.375, 0.125)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    ("mode", "variance", "bound"),
    [
        ("xavier_uniform", 2 / (300 + 500), np.sqrt(6 / (300 + 500))),
        ("xavier_normal", 2 / (300 + 500), np.inf),
        ("kaiming_uniform", 1 / 300, np.sqrt(3 / 300)),
        ("kaiming_normal", 1 / 300, np.inf),
    ],
)
def test_initialisers_have_their_variance_and_bound(mode, variance, bound):
    draw = np.asarray(layers.initialise(jax.random.key(0), (300, 500), mode, 300, 500))
    assert draw.var() == pytest.approx(variance, rel=0.02)
    assert abs(draw.mean()) < 3 * np.sqrt(variance / draw.size)
    assert np.abs(draw).max() <= bound
    if bound == np.inf:
        assert np.abs(draw).max() > 4 * np.sqrt(variance)  # a normal law has tails


def test_unknown_initialiser_is_named():
    with pytest.raises(ValueError, match="'glorot'"):
        layers.initialise(jax.random.key(0), (2, 2), "glorot", 2, 2)


def test_the_bias_is_drawn_with_the_kernels_fans_and_its_own_weight():
    conv = Conv(16, 4096, 3, rngs=nnx.Rngs(0), init=Init("kaiming_uniform", weight=1e-5, bias_weight=2))
    assert np.asarray(conv.bias[...]).var() == pytest.approx(4 / (16 * 9), rel=0.1)
    assert np.abs(conv.kernel[...]).max() <= 1e-5 * np.sqrt(3 / (16 * 9))
    assert not np.any(Linear(4, 4, rngs=nnx.Rngs(0)).bias[...])


@pytest.mark.parametrize("taps", [BOX, TENT])
def test_upsampling_is_four_times_the_transpose_of_downsampling(taps):
    small, large = normal(0, 2, 3, 3, 4), normal(1, 2, 6, 6, 4)
    up = jnp.vdot(layers.upsample(small, taps), large)
    down = jnp.vdot(small, layers.downsample(large, taps))
    np.testing.assert_allclose(up, 4 * down, rtol=1e-5)


@pytest.mark.parametrize("taps", [BOX, TENT, (0.1, 0.2, 0.3, 0.4)])
def test_downsampling_is_the_strided_correlation_with_the_outer_product(taps):
    x = normal(0, 2, 8, 8, 3)
    padding = (len(taps) - 1) // 2
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    expected = sum(
        a * b * padded[:, i : i + 7 : 2, j : j + 7 : 2] for i, a in enumerate(taps) for j, b in enumerate(taps)
    )
    np.testing.assert_allclose(layers.downsample(x, taps), expected, atol=1e-6)


def test_box_filter_up_then_down_is_the_identity_and_up_repeats_pixels():
    x = normal(0, 2, 4, 4, 3)
    up = layers.upsample(x, BOX)
    np.testing.assert_array_equal(up, np.repeat(np.repeat(x, 2, 1), 2, 2))
    np.testing.assert_allclose(layers.downsample(up, BOX), x, atol=1e-6)


def test_fused_downsampling_is_convolution_then_filter_of_the_once_padded_image():
    conv = Conv(3, 5, 3, rngs=nnx.Rngs(0), fused_downsample=True, resample_filter=(1, 3, 3, 1))
    x = normal(0, 2, 8, 8, 3)
    convolved = np.asarray(layers.convolve(x, conv.kernel[...], padding=2))
    expected = sum(TENT[i] * TENT[j] * convolved[:, i : i + 7 : 2, j : j + 7 : 2] for i in range(4) for j in range(4))
    np.testing.assert_allclose(conv(x), expected, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_a_convolution_resamples_its_input(size):
    x, options = normal(0, 2, 4, 4, 3), dict(resample_filter=(1, 3, 3, 1))
    up = Conv(3, 5, size, rngs=nnx.Rngs(0), up=True, **options)
    down = Conv(3, 5, size, rngs=nnx.Rngs(0), down=True, **options)
    np.testing.assert_allclose(up(x), layers.convolve(layers.upsample(x, TENT), up.kernel[...]), atol=1e-5)
    np.testing.assert_allclose(down(x), layers.convolve(layers.downsample(x, TENT), down.kernel[...]), atol=1e-5)


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, -1), ()])
def test_filters_that_would_move_or_erase_the_image_are_refused(taps):
    with pytest.raises(ValueError, match="resampling filter"):
        layers.checked_filter(taps)


def test_group_norm_normalises_each_group_of_each_sample():
    x = 5 + 3 * normal(0, 2, 8, 8, 24)
    norm = GroupNorm(24)
    assert norm.groups == 6
    groups = np.asarray(norm(x)).reshape(2, 64, 6, 4)
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(groups.var((1, 3)), 1, atol=1e-4)
    assert GroupNorm(512).groups == 32


def test_group_norm_statistics_are_float32_under_bfloat16():
    # Around 100 bfloat16 steps by 0.5, so statistics in bfloat16 (or mean(x^2) - mean(x)^2) would be useless.
    x = (100 + 2 * normal(0, 2, 16, 16, 8)).astype(jnp.bfloat16)
    exact = np.asarray(x, np.float64).reshape(2, 256, 2, 4)
    exact = (exact - exact.mean((1, 3), keepdims=True)) / np.sqrt(exact.var((1, 3), keepdims=True) + 1e-5)
    y = GroupNorm(8)(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float64), exact.reshape(x.shape), rtol=2**-8, atol=1e-3)


def test_group_norm_survives_a_large_mean():
    x = normal(0, 2, 8, 8, 8)
    np.testing.assert_allclose(GroupNorm(8)(x + 1000), GroupNorm(8)(x), atol=1e-3)


def test_group_norm_refuses_channels_it_cannot_group():
    for channels in (3, 130):
        with pytest.raises(ValueError, match=str(channels)):
            GroupNorm(channels)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_attention_is_the_softmax_average_of_the_values(heads, dtype):
    q, k, v = ((3 * normal(seed, 2, 10, heads, 16)).astype(dtype) for seed in range(3))
    q64, k64, v64 = (np.asarray(a, np.float64) for a in (q, k, v))
    logits = np.einsum("bqhd,bkhd->bhqk", q64, k64) / 4
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), v64)
    # bfloat16 rounds the weights and the result, not the logits (which reach 50).
    tolerance = 1e-5 if dtype == jnp.float32 else 0.02 * np.abs(expected).max()
    result = layers.attention(q, k, v)
    assert result.dtype == dtype
    np.testing.assert_allclose(np.asarray(result, np.float64), expected, atol=tolerance)


def test_attention_softmax_is_float32_under_bfloat16():
    q, k, v = (jnp.ones((1, 4, 1, 4), jnp.bfloat16) for _ in range(3))
    text = str(jax.make_jaxpr(layers.attention)(q, k, v))
    exponentials = [line for line in text.splitlines() if " exp " in line]
    assert exponentials
    assert all("f32" in line for line in exponentials)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.03)])
def test_attention_is_jaxs(dtype, tolerance):
    q, k, v = ((2 * normal(seed, 2, 10, 2, 16)).astype(dtype) for seed in range(3))
    theirs = jax.nn.dot_product_attention(q, k, v, implementation="xla")
    np.testing.assert_allclose(
        *(np.asarray(a, np.float32) for a in (layers.attention(q, k, v), theirs)), atol=tolerance
    )


@pytest.mark.parametrize(
    ("kind", "capability", "dtype", "head_channels", "fused"),
    [
        ("NVIDIA H100 80GB HBM3", "9.0", jnp.bfloat16, 64, True),
        ("NVIDIA H100 80GB HBM3", "9.0", jnp.float32, 64, False),
        ("NVIDIA H100 80GB HBM3", "9.0", jnp.bfloat16, 256, False),
        ("NVIDIA H100 80GB HBM3", "9.0", jnp.bfloat16, 12, False),
        ("NVIDIA TITAN RTX", "7.5", jnp.float16, 64, False),
        ("cpu", None, jnp.bfloat16, 64, False),
    ],
)
def test_fused_attention_is_for_half_precision_on_gpus(monkeypatch, kind, capability, dtype, head_channels, fused):
    device = SimpleNamespace(device_kind=kind, **({"compute_capability": capability} if capability else {}))
    monkeypatch.setattr(jax, "devices", lambda platform=None: [device])
    assert layers.has_fused_attention(dtype, head_channels) == fused
    called = []
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, implementation: called.append(implementation))
    layers.attention(*(jnp.ones((1, 2, 1, head_channels), dtype) for _ in range(3)))
    assert called == (["cudnn"] if fused else [])


def test_positional_embedding_spans_its_frequencies():
    with_endpoint = layers.positional_embedding(jnp.ones(1), 8, endpoint=True)
    without = layers.positional_embedding(jnp.ones(1), 8)
    grid = 1e-4 ** (np.arange(4) / 3)
    np.testing.assert_allclose(with_endpoint[0], np.r_[np.cos(grid), np.sin(grid)], rtol=1e-5)
    grid = 1e-4 ** (np.arange(4) / 4)
    np.testing.assert_allclose(without[0], np.r_[np.cos(grid), np.sin(grid)], rtol=1e-5)


def test_fourier_frequencies_are_kept_but_not_trained():
    embedding = FourierEmbedding(512, rngs=nnx.Rngs(0))
    graph, state = nnx.split(embedding, nnx.Param)
    assert np.std(state["frequencies"][...]) == pytest.approx(16, rel=0.15)
    gradient = jax.grad(lambda params: nnx.merge(graph, params)(jnp.ones(3)).sum())(nnx.to_pure_dict(state))
    np.testing.assert_array_equal(gradient["frequencies"], 0)


def test_dropout_keeps_the_expectation_and_needs_a_key():
    x = jnp.ones((100, 1000))
    dropped = np.asarray(layers.dropout(x, 0.2, jax.random.key(0)))
    assert set(np.unique(dropped)) == {0.0, np.float32(1.25)}
    assert (dropped == 0).mean() == pytest.approx(0.2, abs=0.005)
    np.testing.assert_array_equal(layers.dropout(x, 0.2, None), x)
    np.testing.assert_array_equal(layers.dropout(x, 0.0, jax.random.key(0)), x)


def test_convolve_is_a_cross_correlation_with_zero_padding():
    x, kernel = normal(0, 1, 5, 5, 2), normal(1, 3, 3, 2, 4)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(padded[:, i : i + 5, j : j + 5] @ kernel[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(layers.convolve(x, kernel), expected, atol=1e-5)
    pointwise = normal(2, 1, 1, 2, 4)
    by_convolution = lax.conv_general_dilated(x, pointwise, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(layers.convolve(x, pointwise), by_convolution, atol=1e-5)
