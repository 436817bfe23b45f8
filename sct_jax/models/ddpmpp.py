"""DDPM++ and NCSN++: the U-Nets of Song et al. 2021 (score-based generative modelling) as EDM trains them.

One class holds both: DDPM++ is the defaults, NCSN++ is `embedding="fourier"`, `channel_mult_noise=2`,
`encoder="residual"`, `resample_filter=(1, 3, 3, 1)`. Equal to float precision to the PyTorch network of
Karras et al. 2022 (EDM): see tests/parity.
"""

import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from sct_jax.models.layers import (
    GUIDANCE_FEATURES,
    ZERO_INIT,
    Conv,
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    checked_filter,
    downsample,
    guidance_embedding,
    positional_embedding,
    upsample,
)
from sct_jax.models.unet import Style, UNetBlock, check_image, check_sizes, drop_labels, entry_names

INIT = Init("xavier_uniform")
INIT_ZERO = Init("xavier_uniform", weight=1e-5)
EPS = 1e-6
STYLE = Style(
    init=INIT,
    init_zero=INIT_ZERO,
    init_attention=Init("xavier_uniform", weight=math.sqrt(0.2)),
    eps=EPS,
    skip_scale=math.sqrt(0.5),
    adaptive_scale=False,
    head_channels=0,
    project_resampled=True,
)


class DDPMpp(nnx.Module):
    """F(x, c_noise, label, augmentation): the raw network inside a preconditioner.

    The defaults are EDM's DDPM++ for CIFAR-10, without dropout. `attention_resolutions` are in pixels.
    `compute_dtype` is that of convolutions and attention; parameters, norm statistics, the softmax and the
    time embedding are float32 always. With `remat` the backward pass computes each block once more instead of keeping
    what is inside it: less memory, a third more work. `target_time` and `guidance_input` add what `c_target` and
    `guidance` tell to the embedding of the noise level, through linear maps that start at zero.

    ValueError when `image_size` cannot be halved `len(channel_mult) - 1` times, or an option is unknown.
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
        channels: int = 128,
        channel_mult: Sequence[int] = (2, 2, 2),
        channel_mult_embedding: int = 4,
        channel_mult_noise: int = 1,
        num_blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.0,
        label_dropout: float = 0.0,
        embedding: Literal["positional", "fourier"] = "positional",
        encoder: Literal["standard", "skip", "residual"] = "standard",
        decoder: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[float] = (1, 1),
        remat: bool = False,
        target_time: bool = False,
        guidance_input: bool = False,
        compute_dtype: str | jnp.dtype = "float32",
    ):
        check_sizes(image_size, len(channel_mult), channels * channel_mult_noise)
        _check_options(embedding, encoder, decoder)
        self.image_size, self.in_channels, self.out_channels = image_size, in_channels, out_channels
        self.levels, self.num_blocks = len(channel_mult), num_blocks
        self.embedding, self.encoder_type, self.decoder_type = embedding, encoder, decoder
        self.label_dim, self.augment_dim, self.label_dropout = label_dim, augment_dim, label_dropout
        self.resample_filter = checked_filter(resample_filter)
        self.compute_dtype = jnp.dtype(compute_dtype)

        noise_channels, embedding_channels = channels * channel_mult_noise, channels * channel_mult_embedding
        self.noise_channels = noise_channels
        if embedding == "fourier":
            self.map_noise = FourierEmbedding(noise_channels, rngs=rngs)
        if label_dim:
            self.map_label = Linear(label_dim, noise_channels, rngs=rngs, init=INIT)
        if augment_dim:
            self.map_augment = Linear(augment_dim, noise_channels, rngs=rngs, use_bias=False, init=INIT)
        self.map_layer0 = Linear(noise_channels, embedding_channels, rngs=rngs, init=INIT)
        self.map_layer1 = Linear(embedding_channels, embedding_channels, rngs=rngs, init=INIT)

        build = _Builder(rngs, embedding_channels, dropout, self.resample_filter, remat)
        widths = [channels * mult for mult in channel_mult]
        attend = [image_size >> level in attention_resolutions for level in range(self.levels)]
        encoder_layers, skips = build.encoder(in_channels, channels, widths, attend, num_blocks, encoder)
        self.encoder = nnx.Dict(encoder_layers)
        self.decoder = nnx.Dict(build.decoder(out_channels, widths, attend, num_blocks, decoder, skips))
        zero = dict(rngs=rngs, use_bias=False, init=ZERO_INIT)
        self.map_target = Linear(noise_channels, noise_channels, **zero) if target_time else None
        self.map_guidance = Linear(GUIDANCE_FEATURES, noise_channels, **zero) if guidance_input else None

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
        x, skips = self._encode(x.astype(self.compute_dtype), embedded, dropout_key)
        return self._decode(x, skips, embedded, dropout_key).astype(jnp.float32)

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
        embedded = self._noise_features(c_noise)
        if self.label_dim:
            batch = c_noise.shape[0]
            labels = jnp.zeros((batch, self.label_dim)) if label_vector is None else label_vector
            labels = drop_labels(labels.astype(jnp.float32), self.label_dropout, dropout_key)
            embedded = embedded + self.map_label(labels * math.sqrt(self.label_dim))
        if self.augment_dim and augment_labels is not None:
            embedded = embedded + self.map_augment(augment_labels.astype(jnp.float32))
        if self.map_target is not None:
            embedded = embedded + self.map_target(self._noise_features(c_target))
        if self.map_guidance is not None:
            embedded = embedded + self.map_guidance(guidance_embedding(guidance))
        embedded = jax.nn.silu(self.map_layer0(embedded))
        return jax.nn.silu(self.map_layer1(embedded))

    def _noise_features(self, c_noise: jax.Array) -> jax.Array:
        if self.embedding == "fourier":
            features = self.map_noise(c_noise)
        else:
            features = positional_embedding(c_noise, self.noise_channels, endpoint=True)
        return jnp.roll(features, self.noise_channels // 2, axis=-1)  # sines first

    def _encode(self, x, embedded, dropout_key) -> tuple[jax.Array, list[jax.Array]]:
        """The image to the deepest features, and every intermediate result, shallowest first."""
        auxiliary, skips = x, []
        for level in range(self.levels):
            if level == 0:
                x = self.encoder["level0_conv"](x)
            else:
                x = self.encoder[f"level{level}_down"](x, embedded, dropout_key)
                if self.encoder_type == "skip":
                    auxiliary = downsample(auxiliary, self.resample_filter)
                    x = x + self.encoder[f"level{level}_skip"](auxiliary)
                if self.encoder_type == "residual":
                    x = auxiliary = (x + self.encoder[f"level{level}_residual"](auxiliary)) * math.sqrt(0.5)
            skips.append(x)
            for index in range(self.num_blocks):
                x = self.encoder[f"level{level}_block{index}"](x, embedded, dropout_key)
                skips.append(x)
        return x, skips

    def _decode(self, x, skips, embedded, dropout_key) -> jax.Array:
        """Deepest features to output, using up `skips`; the skip decoder sums an output of every level."""
        output = None
        for level in reversed(range(self.levels)):
            for name in entry_names(level, self.levels):
                x = self.decoder[name](x, embedded, dropout_key)
            for index in range(self.num_blocks + 1):
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = self.decoder[f"level{level}_block{index}"](x, embedded, dropout_key)
            if output is not None:
                output = upsample(output, self.resample_filter)
            if self.decoder_type == "skip" or level == 0:
                y = jax.nn.silu(self.decoder[f"level{level}_out_norm"](x))
                y = self.decoder[f"level{level}_out_conv"](y)
                output = y if output is None else output + y
        return output


class _Builder:
    """Makes the layers of a network in the order in which they run, numbering the blocks from 1."""

    def __init__(
        self, rngs: nnx.Rngs, embedding_channels: int, rate: float, resample_filter: Sequence[float], remat: bool
    ):
        self.resample_filter, self.rngs, self.blocks = resample_filter, rngs, 0
        self.options = dict(
            embedding_channels=embedding_channels,
            dropout=rate,
            resample_filter=resample_filter,
            remat=remat,
            style=STYLE,
            rngs=rngs,
        )

    def block(self, in_channels: int, out_channels: int, **options) -> UNetBlock:
        self.blocks += 1
        return UNetBlock(in_channels, out_channels, index=self.blocks, **self.options, **options)

    def encoder(self, in_channels, channels, widths, attend, num_blocks, kind) -> tuple[dict, list[int]]:
        """The layers by name, and the channels of every result a decoder block will see, shallowest first."""
        layers, skips, auxiliary, width = {}, [], in_channels, channels
        for level, level_width in enumerate(widths):
            if level == 0:
                layers["level0_conv"] = Conv(in_channels, width, 3, rngs=self.rngs, init=INIT)
            else:
                layers[f"level{level}_down"] = self.block(width, width, down=True)
                if kind == "skip":
                    layers[f"level{level}_skip"] = Conv(auxiliary, width, 1, rngs=self.rngs, init=INIT)
                if kind == "residual":
                    options = dict(fused_downsample=True, resample_filter=self.resample_filter, init=INIT)
                    layers[f"level{level}_residual"] = Conv(auxiliary, width, 3, rngs=self.rngs, **options)
                    auxiliary = width
            skips.append(width)
            for index in range(num_blocks):
                layers[f"level{level}_block{index}"] = self.block(width, level_width, attention=attend[level])
                width = level_width
                skips.append(width)
        return layers, skips

    def decoder(self, out_channels, widths, attend, num_blocks, kind, skips) -> dict:
        """The layers by name; `skips` is what `encoder` returned."""
        layers, skips, width = {}, list(skips), widths[-1]
        for level, level_width in reversed(list(enumerate(widths))):
            for name in entry_names(level, len(widths)):
                up, attention = name.endswith("up"), name.endswith("in0")
                layers[name] = self.block(width, width, up=up, attention=attention)
            for index in range(num_blocks + 1):
                attention, name = attend[level] and index == num_blocks, f"level{level}_block{index}"
                layers[name] = self.block(width + skips.pop(), level_width, attention=attention)
                width = level_width
            if kind == "skip" or level == 0:
                layers[f"level{level}_out_norm"] = GroupNorm(width, eps=EPS)
                conv = Conv(width, out_channels, 3, rngs=self.rngs, init=INIT_ZERO)
                layers[f"level{level}_out_conv"] = conv
        return layers


def _check_options(embedding: str, encoder: str, decoder: str) -> None:
    for name, value, allowed in (
        ("embedding", embedding, ("positional", "fourier")),
        ("encoder", encoder, ("standard", "skip", "residual")),
        ("decoder", decoder, ("standard", "skip")),
    ):
        if value not in allowed:
            raise ValueError(f"{name} {value!r} is unknown: choose one of {allowed}")
