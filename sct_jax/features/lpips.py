"""LPIPS (Zhang et al. 2018, 1801.03924), a distance between images that resembles what people see.

Both images go through a network of ImageNet. At some of its layers each place's channels are scaled to length 1, and
what the squares of their differences give with learned weights is averaged over the places and summed over the layers.
It is version 0.1 of the authors' code, with the images in [-1, 1].

As consistency models train with it (2303.01469) images of less than 256 pixels are resized to 224, bilinearly. Their
code for CIFAR-10 has VGG16 as it is, as here; that for ImageNet-64 puts means in the place of VGG's maxima.

The network is ``vgg`` (16 layers), ``alex`` or ``squeeze`` (1.1); the weights tell which. Its layers have torchvision's
numbers: parameters are ``{"0": {"kernel", "bias"}, ..., "head_0": {"weight": [C]}, ...}``, kernels HWIO; the parts of
SqueezeNet's modules are ``"3/squeeze"``, ``"3/expand1x1"``, ``"3/expand3x3"``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from sct_jax.features.resize import bilinear, resize

RESOLUTION, NATIVE = 224, 256  # images of fewer pixels than NATIVE are resized
# ImageNet's mean and deviation, of images in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
EPSILON = 1e-10  # added to lengths

Params = dict[str, dict[str, jax.Array]]
# layer(name, x, width, size, stride=1, pad=0) -> relu(convolution + bias)
Layer = Callable[..., jax.Array]


class Convolution(NamedTuple):
    """A convolution with a ReLU behind it; ``tap``: what comes out is looked at."""

    name: str
    width: int
    size: int = 3
    stride: int = 1
    pad: int = 1
    tap: bool = False


class Fire(NamedTuple):
    """SqueezeNet's module: few channels, then two sets of more beside each other."""

    name: str
    squeezed: int
    expanded: int
    tap: bool = False


class Pool(NamedTuple):
    """The maximum of ``size`` x ``size`` pixels, every second; ``whole``: where only a part of them is there too."""

    size: int
    whole: bool = False


NETWORKS: dict[str, tuple[Convolution | Fire | Pool, ...]] = {
    "vgg": (
        *(Convolution("0", 64), Convolution("2", 64, tap=True), Pool(2)),
        *(Convolution("5", 128), Convolution("7", 128, tap=True), Pool(2)),
        *(Convolution("10", 256), Convolution("12", 256), Convolution("14", 256, tap=True), Pool(2)),
        *(Convolution("17", 512), Convolution("19", 512), Convolution("21", 512, tap=True), Pool(2)),
        *(Convolution("24", 512), Convolution("26", 512), Convolution("28", 512, tap=True)),
    ),
    "alex": (
        *(Convolution("0", 64, 11, 4, 2, tap=True), Pool(3)),
        *(Convolution("3", 192, 5, 1, 2, tap=True), Pool(3)),
        *(Convolution("6", 384, tap=True), Convolution("8", 256, tap=True), Convolution("10", 256, tap=True)),
    ),
    "squeeze": (
        *(Convolution("0", 64, 3, 2, 0, tap=True), Pool(3, whole=True)),
        *(Fire("3", 16, 64), Fire("4", 16, 64, tap=True), Pool(3, whole=True)),
        *(Fire("6", 32, 128), Fire("7", 32, 128, tap=True), Pool(3, whole=True)),
        *(Fire("9", 48, 192, tap=True), Fire("10", 48, 192, tap=True)),
        *(Fire("11", 64, 256, tap=True), Fire("12", 64, 256, tap=True)),
    ),
}


def distance(params: Params, a: jax.Array, b: jax.Array) -> jax.Array:
    """LPIPS [B] of images [B, H, W, C] in [-1, 1]; C is 3, or 1, which is shown as grey. Symmetric, 0 for equal images.

    Products have the precision that the device's own has, as in the original. The gradient is 0 where all channels of a
    place are.
    """
    total = jnp.zeros(a.shape[0], jnp.float32)
    for index, (p, q) in enumerate(zip(activations(params, a), activations(params, b), strict=True)):
        squares = (_unit(p) - _unit(q)) ** 2
        total += (squares @ params[f"head_{index}"]["weight"]).mean((1, 2))
    return total


def activations(params: Params, images: jax.Array) -> list[jax.Array]:
    """What the network sees in images at each layer that is looked at."""

    def layer(name: str, x: jax.Array, width: int, size: int, stride: int = 1, pad: int = 0) -> jax.Array:
        return jax.nn.relu(_convolve(x, params[name]["kernel"], stride, pad) + params[name]["bias"])

    return _body(layer, NETWORKS[kind(params)], prepare(images))


def prepare(images: jax.Array) -> jax.Array:
    """Images in [-1, 1] as the network sees them: float32 [B, H, W, 3]."""
    x = jnp.broadcast_to(images.astype(jnp.float32), (*images.shape[:3], 3))
    if x.shape[1] < NATIVE:
        x = resize(x, RESOLUTION, bilinear)
    return (x - np.array(SHIFT, np.float32)) / np.array(SCALE, np.float32)


def kind(params: Params) -> str:
    """Which of NETWORKS parameters are of."""
    return next(name for name in NETWORKS if params.keys() == shapes(name).keys())


def shapes(name: str) -> dict[str, dict[str, tuple[int, ...]]]:
    """Shapes of the parameters of one of NETWORKS with its heads."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}

    def layer(name: str, x: jax.Array, width: int, size: int, stride: int = 1, pad: int = 0) -> jax.Array:
        kernel = (size, size, x.shape[-1], width)
        found[name] = {"kernel": kernel, "bias": (width,)}
        return _convolve(x, jnp.zeros(kernel), stride, pad)

    x = jax.ShapeDtypeStruct((1, RESOLUTION, RESOLUTION, 3), jnp.float32)
    taps = jax.eval_shape(lambda x: _body(layer, NETWORKS[name], x), x)
    return found | {f"head_{index}": {"weight": tap.shape[-1:]} for index, tap in enumerate(taps)}


def _body(layer: Layer, parts: tuple[Convolution | Fire | Pool, ...], x: jax.Array) -> list[jax.Array]:
    taps = []
    for part in parts:
        if isinstance(part, Pool):
            x = _maximum(x, part)
            continue
        if isinstance(part, Fire):
            x = layer(f"{part.name}/squeeze", x, part.squeezed, 1)
            ones = layer(f"{part.name}/expand1x1", x, part.expanded, 1)
            x = jnp.concatenate([ones, layer(f"{part.name}/expand3x3", x, part.expanded, 3, pad=1)], axis=-1)
        else:
            x = layer(part.name, x, part.width, part.size, part.stride, part.pad)
        if part.tap:
            taps.append(x)
    return taps


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, pad: int) -> jax.Array:
    pads = [(pad, pad)] * 2
    return lax.conv_general_dilated(x, kernel, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _maximum(x: jax.Array, pool: Pool) -> jax.Array:
    beyond = [-(side - pool.size) % 2 if pool.whole else 0 for side in x.shape[1:3]]
    pads = ((0, 0), (0, beyond[0]), (0, beyond[1]), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, pool.size, pool.size, 1), (1, 2, 2, 1), pads)


def _unit(x: jax.Array) -> jax.Array:
    """Each place's channels by their length."""
    squared = jnp.sum(x**2, axis=-1, keepdims=True)
    length = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))  # the root has no gradient at 0
    return jnp.where(squared > 0, x / (length + EPSILON), 0.0)
