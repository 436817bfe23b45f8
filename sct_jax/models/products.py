"""Products with weights, whose gradients leave in the weights' own dtype.

Activations may be bfloat16 where weights are float32. Then the weights are rounded for the product, and so would be
their gradients: before they are summed over devices, and in fewer bits than the accelerator made them with. Here the
gradient of a float32 weight is accumulated in float32 and summed so; that of a bfloat16 weight is bfloat16, at half the
bytes (``model.gradient_dtype``). Where both are of one dtype these are the plain operations; so are convolutions on
GPUs, for cuDNN makes no float32 gradient of a kernel from bfloat16 images. On CPUs wide 3×3 convolutions in float32
take the fewer multiplications of `winograd.py`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from sct_jax.models import winograd

NHWC = ("NHWC", "HWIO", "NHWC")

# Below these XLA's own convolutions are as quick on a CPU (docs/results/performance.md).
LEAST_CHANNELS, LEAST_TILES = 32, 16


def matmul(x: jax.Array, kernel: jax.Array, forward_mode: bool = False) -> jax.Array:
    """x [..., in] times kernel [in, out], computed and given in the dtype of x."""
    if x.dtype != kernel.dtype:
        return x @ kernel.astype(x.dtype) if forward_mode else _matmul(x, kernel)
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def add_bias(x: jax.Array, bias: jax.Array, forward_mode: bool = False) -> jax.Array:
    """x [..., C] plus bias [C], in the dtype of x."""
    if x.dtype == bias.dtype:
        return x + bias
    return x + bias.astype(x.dtype) if forward_mode else _add_bias(x, bias)


def convolve(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int | None = None, forward_mode: bool = False
) -> jax.Array:
    """Cross-correlation of x [B, H, W, I] with an odd kernel [k, k, I, O]; `padding` None keeps the size."""
    size = kernel.shape[0]
    if size == 1 and stride == 1 and not padding:
        return matmul(x, kernel[0, 0], forward_mode)
    padding = size // 2 if padding is None else padding
    if (size, stride, padding) == (3, 1, 1) and _gains(x, kernel):
        return (_fewer_multiplications if forward_mode else _convolve_3x3)(x, kernel)
    plain = forward_mode or x.dtype == kernel.dtype or jax.default_backend() == "gpu"
    return (_plain_convolve if plain else _convolve)(x, kernel, stride, padding)


@jax.custom_vjp
def _matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel.astype(x.dtype)


def _matmul_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    every = tuple(range(x.ndim - 1))
    gradient = lax.dot_general(x, g, ((every, every), ((), ())), preferred_element_type=kernel.dtype)
    return g @ kernel.astype(g.dtype).T, gradient


_matmul.defvjp(lambda x, kernel: (_matmul(x, kernel), (x, kernel)), _matmul_backward)


@jax.custom_vjp
def _add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    return x + bias.astype(x.dtype)


_add_bias.defvjp(
    lambda x, bias: (_add_bias(x, bias), bias[:0]),
    lambda empty, g: (g, jnp.sum(g, axis=tuple(range(g.ndim - 1)), dtype=empty.dtype)),
)


def _plain_convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    kernel = kernel.astype(x.dtype)
    return lax.conv_general_dilated(x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=NHWC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return _plain_convolve(x, kernel, stride, padding)


def _convolve_backward(
    stride: int, padding: int, saved: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    _, of_image = jax.vjp(lambda x: _plain_convolve(x, kernel, stride, padding), x)
    # The image correlated with the gradient, which `stride` spreads: batch and channels of the image change places.
    size = kernel.shape[0]
    margins = [
        (padding, size - length - padding + (steps - 1) * stride)
        for length, steps in zip(x.shape[1:3], g.shape[1:3], strict=True)
    ]
    gradient = lax.conv_general_dilated(
        x,
        g,
        (1, 1),
        margins,
        rhs_dilation=(stride, stride),
        dimension_numbers=("CHWN", "IHWO", "HWNC"),
        preferred_element_type=kernel.dtype,
    )
    return of_image(g)[0], gradient


_convolve.defvjp(lambda x, kernel, *how: (_convolve(x, kernel, *how), (x, kernel)), _convolve_backward)


def _fewer_multiplications(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=winograd.convolve, default=_same_3x3)


_convolve_3x3 = jax.custom_vjp(_fewer_multiplications)


def _convolve_3x3_backward(saved: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    def fast(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        return winograd.image_gradient(kernel, g), winograd.kernel_gradient(x, g)

    def plain(x: jax.Array, kernel: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(_same_3x3, x, kernel)[1](g)

    return lax.platform_dependent(*saved, g, cpu=fast, default=plain)


_convolve_3x3.defvjp(lambda x, kernel: (_convolve_3x3(x, kernel), (x, kernel)), _convolve_3x3_backward)


def _same_3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _plain_convolve(x, kernel, 1, 1)


def _gains(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether a CPU gains: float32, and so many channels and tiles that the transforms cost less than they save."""
    if not x.dtype == kernel.dtype == jnp.float32:
        return False
    batch = x.shape[0] if isinstance(x.shape[0], int) else 1  # an exported program has any number of images
    tiles = batch * math.prod(-(-size // winograd.TILE) for size in x.shape[1:3])
    return min(kernel.shape[2:]) >= LEAST_CHANNELS and tiles >= LEAST_TILES
