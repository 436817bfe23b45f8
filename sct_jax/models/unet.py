"""What the U-Nets of the EDM family share: the residual block, in the styles of its architectures, and its places."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from sct_jax.models.layers import (
    Conv,
    GroupNorm,
    Init,
    Linear,
    SelfAttention,
    checked_filter,
    downsample,
    dropout,
    upsample,
)


class Style(NamedTuple):
    """What tells the blocks of the architectures apart.

    Attributes:
      init, init_zero, init_attention: of the layers, of a branch's last layer, of q, k and v.
      eps: of the norms.
      skip_scale: factor on the sum with the shortcut, after the residual and after attention.
      adaptive_scale: the embedding scales and shifts the second norm's result (FiLM), else it is added before it.
      head_channels: channels of an attention head; 0: one head.
      project_resampled: a shortcut that only resamples has a pointwise convolution too.
    """

    init: Init
    init_zero: Init
    init_attention: Init
    eps: float
    skip_scale: float
    adaptive_scale: bool
    head_channels: int
    project_resampled: bool


class Block(nnx.Module):
    """What a U-Net is made of: a subclass has `remat`, and `_apply(x, embedded, dropout_key)` for its inside.

    With `remat` the backward pass computes the inside once more instead of keeping it.
    """

    remat: bool

    def __call__(self, x: jax.Array, embedded: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        if not self.remat:
            return self._apply(x, embedded, dropout_key)
        graph, state = nnx.split(self)

        @jax.checkpoint
        def apply(state: Any, *inputs: Any) -> jax.Array:
            return nnx.merge(graph, state)._apply(*inputs)

        return apply(state, x, embedded, dropout_key)

    def _apply(self, x: jax.Array, embedded: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        raise NotImplementedError


class UNetBlock(Block):
    """The residual block [B, H, W, in] -> [B, H', W', out], conditioned on an embedding between its convolutions.

    `index` tells the blocks of a network apart, so that one dropout key gives each its own mask.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding_channels: int,
        rngs: nnx.Rngs,
        index: int,
        style: Style,
        dropout: float = 0.0,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        remat: bool = False,
    ):
        self.index, self.dropout, self.remat = index, dropout, remat
        self.up, self.down, self.resample_filter = up, down, checked_filter(resample_filter)
        self.skip_scale, self.adaptive_scale = style.skip_scale, style.adaptive_scale
        resample = dict(up=up, down=down, resample_filter=resample_filter)
        self.norm0 = GroupNorm(in_channels, eps=style.eps)
        self.conv0 = Conv(in_channels, out_channels, 3, rngs=rngs, init=style.init, **resample)
        features = out_channels * (2 if style.adaptive_scale else 1)
        self.affine = Linear(embedding_channels, features, rngs=rngs, init=style.init)
        self.norm1 = GroupNorm(out_channels, eps=style.eps)
        self.conv1 = Conv(out_channels, out_channels, 3, rngs=rngs, init=style.init_zero)
        projected = in_channels != out_channels or (style.project_resampled and (up or down))
        self.skip = Conv(in_channels, out_channels, 1, rngs=rngs, init=style.init, **resample) if projected else None
        heads = max(1, out_channels // style.head_channels) if style.head_channels else 1
        options = dict(eps=style.eps, qkv_init=style.init_attention, out_init=style.init_zero)
        self.attention = SelfAttention(out_channels, heads, rngs=rngs, **options) if attention else None

    def _apply(self, x: jax.Array, embedded: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        shortcut = self._shortcut(x)
        x = self.conv0(jax.nn.silu(self.norm0(x)))
        condition = self.affine(embedded)[:, None, None, :].astype(x.dtype)
        if self.adaptive_scale:
            scale, shift = jnp.split(condition, 2, axis=-1)
            x = self.norm1(x) * (scale + 1) + shift
        else:
            x = self.norm1(x + condition)
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, self.index)
        x = self.conv1(dropout(jax.nn.silu(x), self.dropout, key))
        x = (shortcut + x) * self.skip_scale
        return x if self.attention is None else (x + self.attention(x)) * self.skip_scale

    def _shortcut(self, x: jax.Array) -> jax.Array:
        if self.skip is not None:
            return self.skip(x)
        if self.up:
            return upsample(x, self.resample_filter)
        return downsample(x, self.resample_filter) if self.down else x


def encode(
    layers: Any, levels: int, num_blocks: int, x: jax.Array, embedded: jax.Array, dropout_key: jax.Array | None
) -> tuple[jax.Array, list[jax.Array]]:
    """Runs a plain encoder: the image to the deepest features, and every intermediate result, shallowest first."""
    skips = []
    for level in range(levels):
        if level == 0:
            x = layers["level0_conv"](x)
        else:
            x = layers[f"level{level}_down"](x, embedded, dropout_key)
        skips.append(x)
        for index in range(num_blocks):
            x = layers[f"level{level}_block{index}"](x, embedded, dropout_key)
            skips.append(x)
    return x, skips


def decode(
    layers: Any,
    levels: int,
    num_blocks: int,
    x: jax.Array,
    skips: list[jax.Array],
    embedded: jax.Array,
    dropout_key: jax.Array | None,
    join: Callable[[jax.Array, jax.Array], jax.Array],
) -> jax.Array:
    """Runs a plain decoder: deepest features to shallowest, each block after `join(x, skip)`; uses up `skips`."""
    for level in reversed(range(levels)):
        for name in entry_names(level, levels):
            x = layers[name](x, embedded, dropout_key)
        for index in range(num_blocks + 1):
            x = layers[f"level{level}_block{index}"](join(x, skips.pop()), embedded, dropout_key)
    return x


def entry_names(level: int, levels: int) -> tuple[str, ...]:
    """The blocks a decoder level starts with: the bottleneck's two at the deepest, else an upsampling one."""
    return (f"level{level}_in0", f"level{level}_in1") if level == levels - 1 else (f"level{level}_up",)


def check_sizes(image_size: int, levels: int, noise_channels: int) -> None:
    """ValueError when the image cannot be halved `levels - 1` times, or the noise features are not pairs."""
    divisor = 2 ** (levels - 1)
    if image_size % divisor or image_size < divisor:
        raise ValueError(
            f"image_size {image_size} is not divisible by {divisor}: a network of {levels} levels halves the "
            f"image {levels - 1} times; pad or resize the images, or use fewer levels"
        )
    if noise_channels % 2:
        raise ValueError(
            f"channels {noise_channels} is odd: the noise features are pairs of a sine and a cosine; make it even"
        )


def check_image(x: jax.Array, image_size: int, channels: int) -> None:
    """ValueError unless x is [B, image_size, image_size, channels]."""
    expected = (image_size, image_size, channels)
    if x.shape[1:] != expected:
        raise ValueError(f"the network was built for images {expected}, got {x.shape[1:]}")


def drop_labels(labels: jax.Array, rate: float, dropout_key: jax.Array | None) -> jax.Array:
    """Label vectors [B, classes], each zeroed as a whole with probability `rate`; as they are without a key."""
    if dropout_key is None or rate == 0:
        return labels
    key = jax.random.fold_in(dropout_key, 0)
    return labels * jax.random.bernoulli(key, 1 - rate, (labels.shape[0], 1))
