"""EDM2's magnitude-preserving U-Net (Karras et al. 2024, arXiv 2312.02696, config G), over magnitude_preserving.py.

Sizes for ImageNet, by `channels`: XS 128, S 192, M 256, L 320, XL 384, all with the other defaults. Equal to float
precision to the PyTorch network of the authors: see tests/parity.

Weights are normalised in every forward pass. The overwriting that the original does besides, in each forward pass of
training, is `magnitude_preserving.project`, which the train step applies after each update. A forward pass here is
pure and overwrites nothing: the target pass of consistency tuning, for which ECT's ImageNet code turns the overwriting
off, needs no switch.
"""

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from sct_jax.models.layers import (
    GUIDANCE_FEATURES,
    checked_filter,
    downsample,
    dropout,
    guidance_embedding,
    upsample,
)
from sct_jax.models.magnitude_preserving import (
    MPAttention,
    MPConv,
    MPFourier,
    MPLinear,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
)
from sct_jax.models.unet import Block, check_image, check_sizes, decode, drop_labels, encode, entry_names

CLIP = 256.0


class EDM2(nnx.Module):
    """F(x, c_noise, label): the raw network inside a preconditioner, and u(c_noise), its loss's log variance.

    The defaults are EDM2-S without labels. `attention_resolutions` are in pixels, and so is `dropout_max_resolution`,
    above which there is no dropout (0: dropout everywhere; ECT and TCM on ImageNet-64: 16). The embedding has
    `channels * channel_mult_embedding` channels, the noise features `channels * channel_mult_noise`.
    `uncertainty_channels = 0` leaves the uncertainty head out. `remat` trades work for memory in the backward pass.
    `target_time` and `guidance_input` add `c_target` and `guidance` to the embedding, with gains that start at 0.
    `compute_dtype` is that of convolutions and attention; parameters, norms, the softmax and the embedding are float32
    always.

    ValueError when `image_size` cannot be halved `len(channel_mult) - 1` times, or heads do not fit the channels.
    """

    def __init__(
        self,
        *,
        image_size: int,
        in_channels: int,
        out_channels: int,
        rngs: nnx.Rngs,
        label_dim: int = 0,
        channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_embedding: int = 4,
        channel_mult_noise: int = 1,
        num_blocks: int = 3,
        attention_resolutions: Sequence[int] = (16, 8),
        attention_head_channels: int = 64,
        dropout: float = 0.0,
        dropout_max_resolution: int = 0,
        label_dropout: float = 0.0,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        residual_balance: float = 0.3,
        attention_balance: float = 0.3,
        resample_filter: Sequence[float] = (1, 1),
        uncertainty_channels: int = 128,
        remat: bool = False,
        target_time: bool = False,
        guidance_input: bool = False,
        compute_dtype: str | jnp.dtype = "float32",
    ):
        levels = len(channel_mult)
        check_sizes(image_size, levels, noise_channels=0)  # their number may be odd: there are no pairs
        self.image_size, self.in_channels, self.levels, self.num_blocks = image_size, in_channels, levels, num_blocks
        self.label_dim, self.label_dropout, self.label_balance = label_dim, label_dropout, label_balance
        self.concat_balance, self.compute_dtype = concat_balance, jnp.dtype(compute_dtype)

        noise_channels, embedding_channels = channels * channel_mult_noise, channels * channel_mult_embedding
        self.fourier = MPFourier(noise_channels, rngs=rngs)
        self.map_noise = MPLinear(noise_channels, embedding_channels, rngs=rngs)
        if label_dim:
            self.map_label = MPLinear(label_dim, embedding_channels, rngs=rngs)
        build = _Builder(
            rngs,
            resolutions=[image_size >> level for level in range(levels)],
            widths=[channels * mult for mult in channel_mult],
            num_blocks=num_blocks,
            attention_resolutions=attention_resolutions,
            dropout=dropout,
            dropout_max_resolution=dropout_max_resolution or image_size,
            embedding_channels=embedding_channels,
            head_channels=attention_head_channels,
            residual_balance=residual_balance,
            attention_balance=attention_balance,
            resample_filter=checked_filter(resample_filter),
            remat=remat,
        )
        encoder_layers, skips = build.encoder(in_channels + 1)
        self.encoder = nnx.Dict(encoder_layers)
        self.decoder = nnx.Dict(build.decoder(skips))
        self.out_conv = MPConv(channels * channel_mult[0], out_channels, 3, rngs=rngs)
        self.out_gain = nnx.Param(jnp.zeros(()))
        self.uncertainty = Uncertainty(uncertainty_channels, rngs=rngs) if uncertainty_channels else None
        self.map_target = Added(noise_channels, embedding_channels, rngs=rngs) if target_time else None
        self.map_guidance = Added(GUIDANCE_FEATURES, embedding_channels, rngs=rngs) if guidance_input else None

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

        c_noise: a quarter of the noise level's logarithm.
        label_vector: [B, label_dim] one-hot, rows of zeros for "no label"; None is all zeros.
        augment_labels: must be None, as the network has no place for them.
        dropout_key: turns dropout and label dropout on; the same key gives the same masks.
        c_target: [B], `precondition.c_target` of the time to jump to; needed with `target_time`.
        guidance: [B], the weight of guidance; needed with `guidance_input`.
        """
        check_image(x, self.image_size, self.in_channels)
        if augment_labels is not None:
            raise ValueError("EDM2 takes no augmentation labels")
        embedded = self.embed(c_noise, label_vector, dropout_key, c_target, guidance)
        x = x.astype(self.compute_dtype)
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)  # in place of biases
        sizes = self.levels, self.num_blocks
        x, skips = encode(self.encoder, *sizes, x, embedded, dropout_key)
        join = partial(mp_cat, balance=self.concat_balance)
        x = decode(self.decoder, *sizes, x, skips, embedded, dropout_key, join)
        return self.out_conv(x, self.out_gain[...]).astype(jnp.float32)

    def embed(
        self,
        c_noise: jax.Array,
        label_vector: jax.Array | None = None,
        dropout_key: jax.Array | None = None,
        c_target: jax.Array | None = None,
        guidance: jax.Array | None = None,
    ) -> jax.Array:
        """[B, channels * channel_mult_embedding] float32: what every block is conditioned on."""
        embedded = self.map_noise(self.fourier(c_noise))
        if self.map_target is not None:
            embedded = self.map_target(embedded, self.fourier(c_target))
        if self.map_guidance is not None:
            embedded = self.map_guidance(embedded, math.sqrt(2) * guidance_embedding(guidance))
        if self.label_dim:
            labels = jnp.zeros((c_noise.shape[0], self.label_dim)) if label_vector is None else label_vector
            labels = drop_labels(labels.astype(jnp.float32), self.label_dropout, dropout_key)
            embedded = mp_sum(embedded, self.map_label(labels * self.label_dim**0.5), self.label_balance)
        return mp_silu(embedded)


class Added(nnx.Module):
    """Adds features [B, in] of unit magnitude to an embedding [B, out], which keeps its own; by a gain, 0 at first."""

    def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.linear = MPLinear(in_features, out_features, rngs=rngs)
        self.gain = nnx.Param(jnp.zeros(()))

    def __call__(self, embedded: jax.Array, features: jax.Array) -> jax.Array:
        gain = self.gain[...]
        return (embedded + self.linear(features, gain)) / jnp.sqrt(1.0 + jnp.square(gain))


class Uncertainty(nnx.Module):
    """c_noise [B] -> u [B] float32: the logarithm of the loss expected at a noise level (eq. 21)."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        self.fourier = MPFourier(channels, rngs=rngs)
        self.linear = MPLinear(channels, 1, rngs=rngs)

    def __call__(self, c_noise: jax.Array) -> jax.Array:
        return self.linear(self.fourier(c_noise))[:, 0]


class EDM2Block(Block):
    """The residual block [B, H, W, in] -> [B, H', W', out] (fig. 21); the embedding scales between its convolutions.

    An encoder block (`encode`) changes the width first and normalises each pixel; a decoder block does neither, and
    its convolution sees all inputs. `index` tells the blocks of a network apart, so that one dropout key gives each
    its own mask.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        encode: bool,
        index: int,
        embedding_channels: int,
        rngs: nnx.Rngs,
        dropout: float = 0.0,
        up: bool = False,
        down: bool = False,
        attention: bool = False,
        head_channels: int = 64,
        residual_balance: float = 0.3,
        attention_balance: float = 0.3,
        resample_filter: Sequence[float] = (0.5, 0.5),
        remat: bool = False,
    ):
        self.encode, self.index, self.dropout, self.up, self.down = encode, index, dropout, up, down
        self.remat = remat
        self.residual_balance, self.attention_balance = residual_balance, attention_balance
        self.resample_filter = tuple(resample_filter)
        self.skip = None if in_channels == out_channels else MPConv(in_channels, out_channels, 1, rngs=rngs)
        self.conv0 = MPConv(out_channels if encode else in_channels, out_channels, 3, rngs=rngs)
        self.embedding = MPLinear(embedding_channels, out_channels, rngs=rngs)
        self.embedding_gain = nnx.Param(jnp.zeros(()))
        self.conv1 = MPConv(out_channels, out_channels, 3, rngs=rngs)
        self.attention = MPAttention(out_channels, head_channels, rngs=rngs) if attention else None

    def _apply(self, x: jax.Array, embedded: jax.Array, dropout_key: jax.Array | None) -> jax.Array:
        if self.up:
            x = upsample(x, self.resample_filter)
        if self.down:
            x = downsample(x, self.resample_filter)
        if self.encode:
            x = normalize(x if self.skip is None else self.skip(x))
        scale = self.embedding(embedded, self.embedding_gain[...]) + 1
        y = self.conv0(mp_silu(x))
        y = mp_silu(y * scale[:, None, None, :].astype(y.dtype))
        key = None if dropout_key is None else jax.random.fold_in(dropout_key, self.index)
        y = self.conv1(dropout(y, self.dropout, key))
        if not self.encode and self.skip is not None:
            x = self.skip(x)
        x = mp_sum(x, y, self.residual_balance)
        if self.attention is not None:
            x = mp_sum(x, self.attention(x), self.attention_balance)
        return jnp.clip(x, -CLIP, CLIP)


class _Builder:
    """Makes the layers of a network in the order in which they run, numbering the blocks from 1."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        *,
        resolutions: Sequence[int],
        widths: Sequence[int],
        num_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float,
        dropout_max_resolution: int,
        **options,
    ):
        self.rngs, self.widths, self.num_blocks, self.options, self.blocks = rngs, widths, num_blocks, options, 0
        self.attend = [resolution in attention_resolutions for resolution in resolutions]
        self.rates = [dropout if resolution <= dropout_max_resolution else 0.0 for resolution in resolutions]

    def block(self, level: int, in_channels: int, out_channels: int, **options) -> EDM2Block:
        self.blocks += 1
        options |= self.options | dict(index=self.blocks, dropout=self.rates[level], rngs=self.rngs)
        return EDM2Block(in_channels, out_channels, **options)

    def encoder(self, in_channels: int) -> tuple[dict, list[int]]:
        """The layers by name, and the channels of every result a decoder block will see, shallowest first."""
        layers, skips, width = {}, [], self.widths[0]
        for level, level_width in enumerate(self.widths):
            if level == 0:
                layers["level0_conv"] = MPConv(in_channels, width, 3, rngs=self.rngs)
            else:
                layers[f"level{level}_down"] = self.block(level, width, width, encode=True, down=True)
            skips.append(width)
            for index in range(self.num_blocks):
                options = dict(encode=True, attention=self.attend[level])
                layers[f"level{level}_block{index}"] = self.block(level, width, level_width, **options)
                width = level_width
                skips.append(width)
        return layers, skips

    def decoder(self, skips: Sequence[int]) -> dict:
        """The layers by name; `skips` is what `encoder` returned."""
        layers, skips, width = {}, list(skips), self.widths[-1]
        for level, level_width in reversed(list(enumerate(self.widths))):
            for name in entry_names(level, len(self.widths)):
                options = dict(encode=False, up=name.endswith("up"), attention=name.endswith("in0"))
                layers[name] = self.block(level, width, width, **options)
            for index in range(self.num_blocks + 1):
                options = dict(encode=False, attention=self.attend[level])
                layers[f"level{level}_block{index}"] = self.block(level, width + skips.pop(), level_width, **options)
                width = level_width
        return layers
