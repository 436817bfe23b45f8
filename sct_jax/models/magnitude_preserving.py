"""Layers that keep the magnitude of activations and weights in expectation (EDM2: Karras et al. 2024,
arXiv 2312.02696; the equations cited are its).

There are no biases and no learned norms. A kernel's own length has no meaning, as it is used normalised; training
overwrites it by the normalised one (`project`), so that the learning rate means the same throughout. Images are NHWC,
kernels [..., in, out], parameters float32; a layer computes in the dtype of its input.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sct_jax.models.layers import Layer, attention
from sct_jax.models.products import convolve, matmul

EPS = 1e-4
SMALLEST_SQUARE = 1e-30  # of a magnitude: below it is a zero vector, whose norm has no gradient


def normalize(x: jax.Array, axes: int | Sequence[int] = -1) -> jax.Array:
    """x over its root mean square along `axes` (plus 1e-4), float32 inside; the channels of a pixel by default."""
    values = x.astype(jnp.float32)
    square = jnp.mean(jnp.square(values), axis=axes, keepdims=True)
    return (values / (EPS + jnp.sqrt(jnp.maximum(square, SMALLEST_SQUARE)))).astype(x.dtype)


def normalized_kernel(kernel: jax.Array) -> jax.Array:
    """[..., in, out] with the weights of each output at root mean square 1 / (1 + 1e-4 / theirs)."""
    return normalize(kernel, tuple(range(kernel.ndim - 1)))


def effective_kernel(kernel: jax.Array, gain: jax.Array | float) -> jax.Array:
    """What multiplies the input: the weights of each output a vector of length `gain` (eq. 47, 66)."""
    fan_in = math.prod(kernel.shape[:-1])
    return (normalized_kernel(kernel) * (gain / math.sqrt(fan_in))).astype(kernel.dtype)


def project(params: Any) -> Any:
    """The same nested dict with every kernel overwritten by its normalised value: forced weight normalisation (eq. 66).

    No output changes but for the 1e-4 of `normalize`. Gains and the fixed Fourier features stay to the last bit.
    """
    return {
        key: project(value) if isinstance(value, Mapping) else normalized_kernel(value) if key == "kernel" else value
        for key, value in params.items()
    }


def mp_silu(x: jax.Array) -> jax.Array:
    """SiLU over the magnitude that it leaves of a unit normal (eq. 81)."""
    return jax.nn.silu(x) / 0.596


def mp_sum(a: jax.Array, b: jax.Array, balance: float) -> jax.Array:
    """(1 - balance) a + balance b at the magnitude of its independent terms (eq. 88)."""
    return (a + (b - a) * balance) / math.sqrt((1 - balance) ** 2 + balance**2)


def mp_cat(a: jax.Array, b: jax.Array, balance: float) -> jax.Array:
    """[..., A] and [..., B] -> [..., A + B] of unit magnitude; each contributes as `balance` says, whatever its width
    (eq. 103)."""
    widths = a.shape[-1], b.shape[-1]
    scale = math.sqrt(sum(widths) / ((1 - balance) ** 2 + balance**2))
    first, second = scale / math.sqrt(widths[0]) * (1 - balance), scale / math.sqrt(widths[1]) * balance
    return jnp.concatenate([first * a, second * b], axis=-1)


class MPFourier(nnx.Module):
    """[B] -> [B, channels] float32: sqrt(2) cosines at fixed random frequencies and phases (eq. 75).

    Both are kept with the parameters, so that a checkpoint holds them, and receive no gradient.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.frequencies = nnx.Param(2 * math.pi * jax.random.normal(rngs.params(), (channels,)))
        self.phases = nnx.Param(2 * math.pi * jax.random.uniform(rngs.params(), (channels,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        frequencies, phases = lax.stop_gradient((self.frequencies[...], self.phases[...]))
        return math.sqrt(2) * jnp.cos(x.astype(jnp.float32)[:, None] * frequencies + phases)


class MPLinear(Layer):
    """x [..., in] -> [..., out], times `gain`."""

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (in_features, out_features)))

    def __call__(self, x: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
        return matmul(x, effective_kernel(self.kernel[...], gain), self.forward_mode)


class MPConv(Layer):
    """A same-padded convolution [B, H, W, in] -> [B, H, W, out], times `gain`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, rngs: nnx.Rngs):
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape))

    def __call__(self, x: jax.Array, gain: jax.Array | float = 1.0) -> jax.Array:
        return convolve(x, effective_kernel(self.kernel[...], gain), forward_mode=self.forward_mode)


class MPAttention(Layer):
    """The attention branch over the pixels of [B, H, W, C]: q | k | v of unit magnitude, attention, projection.

    ValueError when the channels are no multiple of `head_channels`.
    """

    def __init__(self, channels: int, head_channels: int, *, rngs: nnx.Rngs):
        if channels % head_channels:
            raise ValueError(
                f"{channels} channels do not divide into attention heads of {head_channels}: change model.channels or "
                "model.attention_head_channels"
            )
        self.head_channels = head_channels
        self.qkv = MPLinear(channels, 3 * channels, rngs=rngs)
        self.out = MPLinear(channels, channels, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, channels // self.head_channels, self.head_channels)
        qkv = normalize(qkv)
        attended = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.forward_mode)
        return self.out(attended.reshape(x.shape))
