"""A residual MLP with FiLM conditioning, for images so small (up to about 12 pixels) that a U-Net wastes a CPU.

Its matrix products run at full speed inside ``lax.scan`` on the CPU, where convolutions do not.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from sct_jax.models.layers import GUIDANCE_FEATURES, ZERO_INIT, Layer, Linear, guidance_embedding
from sct_jax.models.products import add_bias, matmul

Array = jax.Array


class FilmMLP(nnx.Module):
    """``F(x, c_noise, ...)`` for images ``[B, H, W, C]``; a block is ``h + W₂ silu(FiLM(W₁ norm(h)))``."""

    def __init__(
        self,
        image_size: int,
        channels: int,
        *,
        width: int = 384,
        num_blocks: int = 4,
        label_dim: int = 0,
        augment_dim: int = 0,
        dropout: float = 0.0,
        label_dropout: float = 0.0,
        target_time: bool = False,
        guidance_input: bool = False,
        compute_dtype: str = "float32",
        rngs: nnx.Rngs,
    ):
        size = image_size * image_size * channels
        self.dropout, self.label_dropout, self.width = dropout, label_dropout, width
        self.dtype = jnp.dtype(compute_dtype)
        self.embed_noise = Dense(NOISE_FEATURES, width, rngs)
        self.embed_label = Dense(label_dim, width, rngs) if label_dim else None
        self.embed_augment = Dense(augment_dim, width, rngs) if augment_dim else None
        self.embed = Dense(width, width, rngs)
        self.enter = Dense(size, width, rngs)
        self.blocks = nnx.List([FilmBlock(width, dropout, rngs) for _ in range(num_blocks)])
        self.leave = Dense(width, size, rngs, scale=1e-2)
        zero = dict(rngs=rngs, use_bias=False, init=ZERO_INIT)
        self.map_target = Linear(NOISE_FEATURES, width, **zero) if target_time else None
        self.map_guidance = Linear(GUIDANCE_FEATURES, width, **zero) if guidance_input else None

    def __call__(
        self,
        x: Array,
        c_noise: Array,
        label_vector: Array | None = None,
        augment_labels: Array | None = None,
        dropout_key: Array | None = None,
        c_target: Array | None = None,
        guidance: Array | None = None,
    ) -> Array:
        embedding = self.embed_noise(noise_features(c_noise))
        if self.map_target is not None:
            embedding += self.map_target(noise_features(c_target))
        if self.map_guidance is not None:
            embedding += self.map_guidance(guidance_embedding(guidance))
        if self.embed_label is not None and label_vector is not None:
            if dropout_key is not None and self.label_dropout:
                keep = jax.random.bernoulli(
                    jax.random.fold_in(dropout_key, len(self.blocks)), 1 - self.label_dropout, (x.shape[0], 1)
                )
                label_vector = label_vector * keep
            embedding += self.embed_label(label_vector * np.sqrt(label_vector.shape[-1]))
        if self.embed_augment is not None and augment_labels is not None:
            embedding += self.embed_augment(augment_labels)
        embedding = nnx.silu(self.embed(nnx.silu(embedding))).astype(self.dtype)
        h = self.enter(x.reshape(x.shape[0], -1).astype(self.dtype))
        for index, block in enumerate(self.blocks):
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            h = block(h, embedding, key)
        return self.leave(normalize(h)).astype(jnp.float32).reshape(x.shape)


class FilmBlock(nnx.Module):
    """A residual block of two dense layers; the embedding scales and shifts its hidden layer."""

    def __init__(self, width: int, dropout: float, rngs: nnx.Rngs):
        self.rate = dropout
        self.first = Dense(width, width, rngs)
        self.film = Dense(width, 2 * width, rngs, scale=1e-2)
        self.second = Dense(width, width, rngs, scale=1e-2)

    def __call__(self, h: Array, embedding: Array, dropout_key: Array | None) -> Array:
        scale, shift = jnp.split(self.film(embedding), 2, axis=-1)
        hidden = nnx.silu(self.first(normalize(h)) * (1 + scale) + shift)
        if dropout_key is not None and self.rate:
            keep = jax.random.bernoulli(dropout_key, 1 - self.rate, hidden.shape)
            hidden = jnp.where(keep, hidden / (1 - self.rate), 0)
        return h + self.second(hidden)


class Dense(Layer):
    """``x W + b`` with variance-preserving initial weights times ``scale``; computes in the dtype of ``x``."""

    def __init__(self, fan_in: int, fan_out: int, rngs: nnx.Rngs, scale: float = 1.0):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (fan_in, fan_out)) * (scale / np.sqrt(fan_in)))
        self.bias = nnx.Param(jnp.zeros(fan_out))

    def __call__(self, x: Array) -> Array:
        return add_bias(matmul(x, self.weight[...], self.forward_mode), self.bias[...], self.forward_mode)


NOISE_FEATURES = 64
# c_noise = ln(t)/4 runs over about [-1.6, 1.1]; these periods resolve it from all of the range to a hundredth of it.
_FREQUENCIES: Sequence[float] = tuple(np.geomspace(1.0, 64.0, NOISE_FEATURES // 2))


def noise_features(c_noise: Array) -> Array:
    """Sines and cosines of ``c_noise`` ``[B]`` at fixed frequencies, ``[B, NOISE_FEATURES]``, float32."""
    angle = c_noise.astype(jnp.float32)[:, None] * jnp.asarray(_FREQUENCIES, jnp.float32)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def normalize(h: Array) -> Array:
    """Layer normalisation without parameters; statistics in float32."""
    h32 = h.astype(jnp.float32)
    centred = h32 - h32.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + 1e-5)).astype(h.dtype)
