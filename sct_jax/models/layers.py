"""The layers the U-Nets are made of: images are NHWC, kernels HWIO, parameters float32.

A layer computes in the dtype of its input; the statistics of a norm and the softmax of attention are float32
whatever that is. Nothing here keeps random state: what is random takes an explicit key.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from sct_jax.models.products import add_bias, convolve, matmul

Mode = Literal["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"]


class Init(NamedTuple):
    """How a layer starts: a distribution, a factor on the kernel, a factor on the bias (0: bias zero)."""

    mode: Mode = "kaiming_normal"
    weight: float = 1.0
    bias_weight: float = 0.0


DEFAULT_INIT = Init()
ZERO_INIT = Init(weight=0.0)
GUIDANCE_FEATURES = 64


def initialise(key: jax.Array, shape: Sequence[int], mode: Mode, fan_in: int, fan_out: int) -> jax.Array:
    """A draw, float32 of `shape`, from one of the EDM networks' initialisers; ValueError for another mode."""
    if mode == "xavier_uniform":
        return math.sqrt(6 / (fan_in + fan_out)) * jax.random.uniform(key, shape, minval=-1, maxval=1)
    if mode == "xavier_normal":
        return math.sqrt(2 / (fan_in + fan_out)) * jax.random.normal(key, shape)
    if mode == "kaiming_uniform":
        return math.sqrt(3 / fan_in) * jax.random.uniform(key, shape, minval=-1, maxval=1)
    if mode == "kaiming_normal":
        return math.sqrt(1 / fan_in) * jax.random.normal(key, shape)
    raise ValueError(f"unknown initialiser {mode!r}: choose one of {Mode.__args__}")


def _kernel_and_bias(
    rngs: nnx.Rngs, shape: tuple[int, ...], use_bias: bool, init: Init
) -> tuple[nnx.Param, nnx.Param | None]:
    """The parameters of a linear map with kernel [..., in, out], both drawn with the kernel's fans."""
    taps = math.prod(shape[:-2])
    fans = (shape[-2] * taps, shape[-1] * taps)
    kernel = init.weight * initialise(rngs.params(), shape, init.mode, *fans)
    bias = init.bias_weight * initialise(rngs.params(), shape[-1:], init.mode, *fans) if use_bias else None
    return nnx.Param(kernel), None if bias is None else nnx.Param(bias)


class Layer(nnx.Module):
    """What multiplies by weights or attends: `forward_mode` takes the operations that `jax.jvp` accepts (products.py).

    It is set on all layers of a network at once (`nnx.Module.set_attributes`); the values are the same.
    """

    forward_mode: bool = False


class Linear(Layer):
    """x [..., in] -> [..., out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rngs: nnx.Rngs,
        use_bias: bool = True,
        init: Init = DEFAULT_INIT,
    ):
        self.in_features = in_features
        self.kernel, self.bias = _kernel_and_bias(rngs, (in_features, out_features), use_bias, init)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.kernel[...], self.forward_mode)
        return y if self.bias is None else add_bias(y, self.bias[...], self.forward_mode)


class Conv(Layer):
    """A same-padded convolution [B, H, W, in] -> [B, H', W', out], with H' = H, 2H (`up`) or H/2 (`down`).

    The FIR filter (see `upsample`, `downsample`) resamples the image before the convolution. With
    `fused_downsample` it is the other way round: the kernel sees the full resolution, the filter halves its
    result, and the image is padded once for both. That is what the residual encoder of NCSN++ does.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        rngs: nnx.Rngs,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused_downsample: bool = False,
        init: Init = DEFAULT_INIT,
    ):
        if up and down:
            raise ValueError("a convolution resamples up or down, not both")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        self.up, self.down, self.fused_downsample = up, down or fused_downsample, fused_downsample
        self.resample_filter = checked_filter(resample_filter)
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel, self.bias = _kernel_and_bias(rngs, shape, True, init)

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        pointwise = kernel.shape[0] == 1
        if self.fused_downsample:
            y = _downsample_then_convolve(x, kernel, self.resample_filter, self.forward_mode)
        else:
            # A pointwise map commutes with resampling: do it where the image is small.
            if self.up and not pointwise:
                x = upsample(x, self.resample_filter)
            if self.down:
                x = downsample(x, self.resample_filter)
            y = convolve(x, kernel, forward_mode=self.forward_mode)
            if self.up and pointwise:
                y = upsample(y, self.resample_filter)
        return add_bias(y, self.bias[...], self.forward_mode)


def checked_filter(taps: Sequence[float]) -> tuple[float, ...]:
    """The taps scaled to sum 1; ValueError unless there is an even number of them (others move the image)."""
    if len(taps) % 2 or sum(taps) == 0:
        raise ValueError(f"a resampling filter needs an even number of taps with a sum other than 0, got {tuple(taps)}")
    return tuple(tap / sum(taps) for tap in taps)


def downsample(x: jax.Array, taps: Sequence[float]) -> jax.Array:
    """Halve [B, H, W, C] by the separable FIR filter `taps` (sum 1), the image continued by zeros."""
    for axis in (1, 2):
        x = _filter_axis(x, taps, axis, padding=(len(taps) - 1) // 2, stride=2)
    return x


def upsample(x: jax.Array, taps: Sequence[float]) -> jax.Array:
    """Double [B, H, W, C]: zeros between pixels, then the separable filter `taps` (sum 1) times 2 an axis."""
    for axis in (1, 2):
        x = _upsample_axis(x, taps, axis)
    return x


def _downsample_then_convolve(x: jax.Array, kernel: jax.Array, taps: Sequence[float], forward_mode: bool) -> jax.Array:
    """Convolution and FIR filter as one linear map of the once-padded image, at stride 2.

    Both are linear and translation-invariant: the cheap filter may go first, the kernel (at stride 2) last.
    """
    padding = kernel.shape[0] // 2 + (len(taps) - 1) // 2
    for axis in (1, 2):
        x = _filter_axis(x, taps, axis, padding, stride=1)
    return convolve(x, kernel, stride=2, padding=0, forward_mode=forward_mode)


def _filter_axis(x: jax.Array, taps: Sequence[float], axis: int, padding: int, stride: int) -> jax.Array:
    """y[i] = sum_k taps[k] x[stride * i + k - padding] along one axis."""
    length = (x.shape[axis] + 2 * padding - len(taps)) // stride + 1
    x = _pad_axis(x, axis, padding, padding)
    stop = stride * (length - 1) + 1
    return sum(tap * lax.slice_in_dim(x, k, k + stop, stride, axis) for k, tap in enumerate(taps))


def _upsample_axis(x: jax.Array, taps: Sequence[float], axis: int) -> jax.Array:
    """y[2i + k - padding] += 2 taps[k] x[i]: each of the two output phases sees every second tap."""
    padding, length, reach = (len(taps) - 1) // 2, x.shape[axis], len(taps) // 2
    padded = _pad_axis(x, axis, reach, reach)
    phases = []
    for phase in (0, 1):
        terms = []
        for k in range((phase + padding) % 2, len(taps), 2):
            start = reach + (phase + padding - k) // 2
            terms.append(2 * taps[k] * lax.slice_in_dim(padded, start, start + length, 1, axis))
        phases.append(sum(terms))
    shape = (*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])
    return jnp.stack(phases, axis + 1).reshape(shape)


def _pad_axis(x: jax.Array, axis: int, before: int, after: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (before, after)
    return jnp.pad(x, widths)


class GroupNorm(nnx.Module):
    """Normalise [B, H, W, C] in min(32, C // 4) groups of channels; statistics float32, result x's dtype."""

    def __init__(self, channels: int, *, eps: float = 1e-5):
        self.groups, self.eps = min(32, channels // 4), eps
        if self.groups == 0 or channels % self.groups:
            raise ValueError(f"{channels} channels do not make min(32, channels // 4) = {self.groups} groups")
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        # Over the pixels first, over a group's channels second: several times faster than one reduction of a
        # reshaped image on CPU. Two passes, as the square's mean minus the mean's square cancels.
        values = x.astype(jnp.float32)
        centred = values - self._mean_of_group(values)
        inverse = lax.rsqrt(self._mean_of_group(jnp.square(centred)) + self.eps)
        return (centred * (inverse * self.scale[...]) + self.bias[...]).astype(x.dtype)

    def _mean_of_group(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, 1, 1, C]: the mean over the pixels and the channels of each channel's group."""
        batch, _, _, channels = x.shape
        means = x.mean((1, 2)).reshape(batch, self.groups, channels // self.groups).mean(-1)
        return jnp.repeat(means, channels // self.groups, axis=-1)[:, None, None]


class SelfAttention(Layer):
    """The attention branch over the pixels of [B, H, W, C]: norm, q | k | v, attention, projection."""

    def __init__(
        self,
        channels: int,
        num_heads: int = 1,
        *,
        rngs: nnx.Rngs,
        eps: float = 1e-5,
        qkv_init: Init = DEFAULT_INIT,
        out_init: Init = DEFAULT_INIT,
    ):
        if channels % num_heads:
            raise ValueError(f"{channels} channels do not divide into {num_heads} heads")
        self.num_heads = num_heads
        self.norm = GroupNorm(channels, eps=eps)
        self.qkv = Linear(channels, 3 * channels, rngs=rngs, init=qkv_init)
        self.out = Linear(channels, channels, rngs=rngs, init=out_init)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        qkv = self.qkv(self.norm(x))
        qkv = qkv.reshape(batch, height * width, 3, self.num_heads, channels // self.num_heads)
        attended = attention(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], self.forward_mode)
        return self.out(attended.reshape(x.shape))


def attention(q: jax.Array, k: jax.Array, v: jax.Array, forward_mode: bool = False) -> jax.Array:
    """softmax(q k' / sqrt(d)) v for [B, tokens, heads, d]; logits and softmax float32, result v's dtype."""
    if not forward_mode and has_fused_attention(q.dtype, q.shape[-1]):
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    # Matrix products over [B, heads, ...] and a scaled k (not scaled logits) are what measured fastest on CPU.
    q, k, v = (a.swapaxes(1, 2) for a in (q, k, v))
    logits = jnp.matmul(q, k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]), preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return (weights @ v).swapaxes(1, 2)


def has_fused_attention(dtype: jnp.dtype, head_channels: int) -> bool:
    """Whether cuDNN's flash attention serves: half precision, heads it can hold, an NVIDIA GPU from Ampere on.

    It keeps logits and softmax in float32 too, never stores the matrix of weights, and has no forward-mode derivative.
    """
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16) or head_channels % 8 or head_channels > 128:
        return False
    chosen = jax.config.jax_default_device
    device = chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]
    return "NVIDIA" in device.device_kind and float(getattr(device, "compute_capability", 0)) >= 8


def positional_embedding(x: jax.Array, channels: int, *, endpoint: bool = False, max_positions: float = 1e4):
    """[B] -> [B, channels] float32: cosines, then sines, at frequencies from 1 down to 1 / max_positions.

    `endpoint` includes the last frequency (DDPM++); without it the grid stops one short (ADM).
    """
    half = channels // 2
    exponents = jnp.arange(half, dtype=jnp.float32) / (half - endpoint)
    return _cosines_and_sines(x, (1 / max_positions) ** exponents)


def guidance_embedding(weight: jax.Array) -> jax.Array:
    """[B] -> [B, GUIDANCE_FEATURES] float32: cosines, then sines, of periods 25 to 0.4, for weights from 0 to 10."""
    return _cosines_and_sines(weight, jnp.geomspace(0.25, 16.0, GUIDANCE_FEATURES // 2))


class FourierEmbedding(nnx.Module):
    """[B] -> [B, channels] float32: cosines, then sines, at fixed random frequencies N(0, scale^2) (NCSN++).

    The frequencies are kept with the parameters, so that a checkpoint holds them, and receive no gradient.
    """

    def __init__(self, channels: int, *, rngs: nnx.Rngs, scale: float = 16.0):
        self.frequencies = nnx.Param(scale * jax.random.normal(rngs.params(), (channels // 2,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        return _cosines_and_sines(x, 2 * math.pi * lax.stop_gradient(self.frequencies[...]))


def _cosines_and_sines(x: jax.Array, frequencies: jax.Array) -> jax.Array:
    angles = x.astype(jnp.float32)[:, None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """x with elements zeroed with probability `rate`, the rest over 1 - rate; x itself without a key."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
