"""ADM: the U-Net of Dhariwal and Nichol 2021 (arXiv 2105.05233), as EDM and OpenAI's consistency models use it.

One class holds both: EDM's is the defaults, OpenAI's is `time_scale=1000`, with `adaptive_scale=False` for LSUN.
Equal to float precision to both PyTorch networks: see tests/parity.
"""

import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from sct_jax.models.layers import (
    GUIDANCE_FEATURES,
    ZERO_INIT,
    Conv,
    GroupNorm,
    Init,
    Linear,
    guidance_embedding,
    positional_embedding,
)
from sct_jax.models.unet import Style, UNetBlock, check_image, check_sizes, decode, drop_labels, encode, entry_names

INIT = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias_weight=math.sqrt(1 / 3))
INIT_ZERO = Init("kaiming_uniform", weight=0.0)
STYLE = Style(
    init=INIT,
    init_zero=INIT_ZERO,
    init_attention=INIT,
    eps=1e-5,
    skip_scale=1.0,
    adaptive_scale=True,
    head_channels=64,
    project_resampled=False,
)


class ADM(nnx.Module):
    """F(x, c_noise, label, augmentation): the raw network inside a preconditioner.

    The defaults are EDM's ImageNet-64 network, without dropout. `attention_resolutions` are in pixels; attention has
    `channels // attention_head_channels` heads, at least one. `time_scale` multiplies c_noise before its embedding;
    with `adaptive_scale` the embedding scales and shifts the features (FiLM), else it is added. `compute_dtype`,
    `remat`, `target_time` and `guidance_input` are as in DDPMpp.

    ValueError when `image_size` cannot be halved `len(channel_mult) - 1` times.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        out_channels: int,
        rngs: nnx.Rngs,
        label_dim: int = 0,
        augment_dim: int = 0,
        channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_embedding: int = 4,
        num_blocks: int = 3,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        attention_head_channels: int = 64,
        dropout: float = 0.0,
        label_dropout: float = 0.0,
        time_scale: float = 1.0,
        adaptive_scale: bool = True,
        remat: bool = False,
        target_time: bool = False,
        guidance_input: bool = False,
        compute_dtype: str | jnp.dtype = "float32",
    ):
        check_sizes(image_size, len(channel_mult), channels)
        self.image_size, self.in_channels, self.channels = image_size, in_channels, channels
        self.levels, self.num_blocks = len(channel_mult), num_blocks
        self.label_dim, self.augment_dim, self.label_dropout = label_dim, augment_dim, label_dropout
        self.time_scale, self.compute_dtype = time_scale, jnp.dtype(compute_dtype)

        width = channels * channel_mult_embedding
        if augment_dim:
            self.map_augment = Linear(augment_dim, channels, rngs=rngs, use_bias=False, init=INIT_ZERO)
        self.map_layer0 = Linear(channels, width, rngs=rngs, init=INIT)
        self.map_layer1 = Linear(width, width, rngs=rngs, init=INIT)
        if label_dim:
            init = Init("kaiming_normal", weight=math.sqrt(label_dim))
            self.map_label = Linear(label_dim, width, rngs=rngs, use_bias=False, init=init)

        style = STYLE._replace(adaptive_scale=adaptive_scale, head_channels=attention_head_channels)
        numbers = itertools.count(1)

        def block(*sizes: int, **options: bool) -> UNetBlock:
            common = dict(embedding_channels=width, dropout=dropout, style=style, remat=remat, rngs=rngs)
            return UNetBlock(*sizes, index=next(numbers), **common, **options)

        widths = [channels * mult for mult in channel_mult]
        attend = [image_size >> level in attention_resolutions for level in range(self.levels)]
        first = Conv(in_channels, widths[0], 3, rngs=rngs, init=INIT)
        encoder, skips = _encoder(block, first, widths, attend, num_blocks)
        self.encoder = nnx.Dict(encoder)
        self.decoder = nnx.Dict(_decoder(block, widths, attend, num_blocks, skips))
        self.out_norm = GroupNorm(widths[0], eps=STYLE.eps)
        self.out_conv = Conv(widths[0], out_channels, 3, rngs=rngs, init=INIT_ZERO)
        zero = dict(rngs=rngs, use_bias=False, init=ZERO_INIT)
        self.map_target = Linear(channels, channels, **zero) if target_time else None
        self.map_guidance = Linear(GUIDANCE_FEATURES, channels, **zero) if guidance_input else None

    def __call__(
        self,
        x: jax.Array,
        c_noise: jax.Array,
        label_vector: jax.Array | None = None,
        augment_labels: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        c_target: jax.Array | None = None,
        guidance: jax.Array | None = None,
    ) -> jax.Array:
        """x [B, H, W, in] and c_noise [B] -> [B, H, W, out] float32.

        c_noise: the preconditioner's function of the noise level (EDM: a quarter of its logarithm).
        label_vector: [B, label_dim] one-hot, rows of zeros for "no label"; None is all zeros.
        augment_labels: [B, augment_dim] or None, which is zeros.
        dropout_key: turns dropout and label dropout on; the same key gives the same masks.
        c_target: [B], `precondition.c_target` of the time to jump to; needed with `target_time`.
        guidance: [B], the weight of guidance; needed with `guidance_input`.
        """
        check_image(x, self.image_size, self.in_channels)
        embedded = self.embed(c_noise, label_vector, augment_labels, dropout_key, c_target, guidance)
        sizes = self.levels, self.num_blocks
        x, skips = encode(self.encoder, *sizes, x.astype(self.compute_dtype), embedded, dropout_key)
        join = lambda x, skip: jnp.concatenate([x, skip], axis=-1)  # noqa: E731
        x = decode(self.decoder, *sizes, x, skips, embedded, dropout_key, join)
        return self.out_conv(jax.nn.silu(self.out_norm(x))).astype(jnp.float32)

    def embed(
        self,
        c_noise: jax.Array,
        label_vector: jax.Array | None = None,
        augment_labels: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        c_target: jax.Array | None = None,
        guidance: jax.Array | None = None,
    ) -> jax.Array:
        """[B, channels * channel_mult_embedding] float32: what every block is conditioned on."""
        embedded = positional_embedding(c_noise * self.time_scale, self.channels)
        if self.augment_dim and augment_labels is not None:
            embedded = embedded + self.map_augment(augment_labels.astype(jnp.float32))
        if self.map_target is not None:
            embedded = embedded + self.map_target(positional_embedding(c_target * self.time_scale, self.channels))
        if self.map_guidance is not None:
            embedded = embedded + self.map_guidance(guidance_embedding(guidance))
        embedded = self.map_layer1(jax.nn.silu(self.map_layer0(embedded)))
        if self.label_dim and label_vector is not None:
            labels = drop_labels(label_vector.astype(jnp.float32), self.label_dropout, dropout_key)
            embedded = embedded + self.map_label(labels)
        return jax.nn.silu(embedded)


def _encoder(block, first, widths, attend, num_blocks) -> tuple[dict, list[int]]:
    """The layers by name in the order in which they run, and the channels of every result, shallowest first."""
    layers, skips, width = {"level0_conv": first}, [], widths[0]
    for level, level_width in enumerate(widths):
        if level:
            layers[f"level{level}_down"] = block(width, width, down=True)
        skips.append(width)
        for index in range(num_blocks):
            layers[f"level{level}_block{index}"] = block(width, level_width, attention=attend[level])
            width = level_width
            skips.append(width)
    return layers, skips


def _decoder(block, widths, attend, num_blocks, skips) -> dict:
    """The layers by name in the order in which they run; `skips` is what `_encoder` returned."""
    layers, skips, width = {}, list(skips), widths[-1]
    for level, level_width in reversed(list(enumerate(widths))):
        for name in entry_names(level, len(widths)):
            layers[name] = block(width, width, up=name.endswith("up"), attention=name.endswith("in0"))
        for index in range(num_blocks + 1):
            layers[f"level{level}_block{index}"] = block(width + skips.pop(), level_width, attention=attend[level])
            width = level_width
    return layers
