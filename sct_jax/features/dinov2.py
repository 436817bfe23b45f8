"""DINOv2's vision transformers (Oquab et al. 2023), whose class token FD-DINOv2 compares (Stein et al. 2023).

Everything follows from the shapes of the weights: width, depth, patches, and whether the MLPs are gated (ViT-g). Heads
have 64 channels. Parameters are a nested dict; those of the blocks are stacked along a first axis, and matrices are
[in, out].

Images are prepared as EDM2 prepares them for FD-DINOv2 by default (``resize_mode="torch"``): antialiased bicubic to
224 x 224 in float32, neither rounded nor clipped, then ImageNet's mean and deviation. dgm-eval, where the metric comes
from, resizes with Pillow, which rounds to whole numbers: almost the same features. Position embeddings of another grid
are resized as ``torch.hub`` models do it, by a factor with an offset of 0.1; Hugging Face's code leaves the offset out,
so its features differ slightly from these and from EDM2's with the same weights.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sct_jax.features.resize import bicubic, bicubic_antialiased, resize

RESOLUTION = 224
HEAD_CHANNELS = 64
EPSILON = 1e-6  # of LayerNorm
OFFSET = 0.1  # of position embeddings
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZES = {384: "s", 768: "b", 1024: "l", 1536: "g"}


def version(params: Any) -> str:
    """``dinov2-vitl14`` and its like; the width in place of the letter for a size that was not published."""
    patch, width = params["patch"]["kernel"].shape[0], params["class_token"].shape[-1]
    return f"dinov2-vit{SIZES.get(width, f'-{width}-')}{patch}"


def extract(params: Any, images: jax.Array) -> dict[str, jax.Array]:
    """``{"features": [B, D]}``, the class token after the last norm, of uint8 images [B, H, W, 3] of any size."""
    return {"features": network(params, prepare(images))}


def prepare(images: jax.Array) -> jax.Array:
    """Images in 0…255 as the network sees them: float32 [B, 224, 224, 3]."""
    x = resize(images.astype(jnp.float32), RESOLUTION, bicubic_antialiased) / 255
    return (x - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)


@jax.default_matmul_precision("highest")
def network(params: Any, x: jax.Array) -> jax.Array:
    """The class token [B, D] of prepared images [B, H, W, 3], H and W multiples of the patch."""
    patches = _patches(params["patch"], x)
    patches += _positions(params["positions"], *patches.shape[1:3])
    first = params["class_token"] + params["class_position"]
    batch, width = x.shape[0], first.shape[-1]
    tokens = jnp.concatenate(
        [jnp.broadcast_to(first, (batch, 1, width)), patches.reshape(batch, -1, width)],
        axis=1,
    )
    tokens, _ = jax.lax.scan(lambda tokens, block: (_block(block, tokens), None), tokens, params["blocks"])
    return _norm(params["norm"], tokens[:, 0])


def _patches(params: Any, x: jax.Array) -> jax.Array:
    """[B, H / p, W / p, D]."""
    size, _, channels, width = params["kernel"].shape
    batch, height, breadth = x.shape[0], x.shape[1] // size, x.shape[2] // size
    x = x.reshape(batch, height, size, breadth, size, channels).swapaxes(2, 3)
    return x.reshape(batch, height, breadth, -1) @ params["kernel"].reshape(-1, width) + params["bias"]


def _positions(positions: jax.Array, height: int, width: int) -> jax.Array:
    """Embeddings [M, M, D] for a grid [height, width, D]."""
    side = positions.shape[0]
    if height == width == side:
        return positions
    rows, columns = (bicubic(side, count, (count + OFFSET) / side) for count in (height, width))
    return jnp.einsum("ih,jw,hwd->ijd", rows, columns, positions)


def _block(params: Any, x: jax.Array) -> jax.Array:
    x = x + params["scale1"] * _attention(params, _norm(params["norm1"], x))
    return x + params["scale2"] * _mlp(params["mlp"], _norm(params["norm2"], x))


def _attention(params: Any, x: jax.Array) -> jax.Array:
    batch, tokens, width = x.shape
    q, k, v = jnp.moveaxis(_linear(params["qkv"], x).reshape(batch, tokens, 3, -1, HEAD_CHANNELS), 2, 0)
    weights = jax.nn.softmax(jnp.einsum("bqhc,bkhc->bhqk", q * HEAD_CHANNELS**-0.5, k))
    return _linear(params["out"], jnp.einsum("bhqk,bkhc->bqhc", weights, v).reshape(batch, tokens, width))


def _mlp(params: Any, x: jax.Array) -> jax.Array:
    x = _linear(params["in"], x)
    if x.shape[-1] == 2 * params["out"]["kernel"].shape[0]:
        gate, x = jnp.split(x, 2, axis=-1)
        return _linear(params["out"], jax.nn.silu(gate) * x)
    return _linear(params["out"], jax.nn.gelu(x, approximate=False))


def _linear(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["kernel"] + params["bias"]


def _norm(params: Any, x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPSILON) * params["scale"] + params["bias"]
