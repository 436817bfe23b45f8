"""Resampling of images as the originals do it: along each axis, a matrix of weights [size_out, size_in].

Metrics depend on these details (Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation").
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Weights = Callable[[int, int], np.ndarray]


def resize(images: jax.Array, size: int, weights: Weights) -> jax.Array:
    """Float images [B, H, W, C] to [B, size, size, C]; ``weights(size_in, size_out)`` is one of the functions below."""
    height, width = images.shape[1:3]
    rows = jnp.einsum("ih,bhwc->biwc", weights(height, size), images, precision="highest")
    return jnp.einsum("jw,biwc->bijc", weights(width, size), rows, precision="highest")


def bilinear_tf1(size_in: int, size_out: int) -> np.ndarray:
    """``tf.image.resize_bilinear`` of TensorFlow 1: two taps, pixel i at i · in / out, without half-pixel centres."""
    return _bilinear(np.arange(size_out, dtype=np.float32) * np.float32(size_in / size_out), size_in)


def bilinear(size_in: int, size_out: int) -> np.ndarray:
    """PyTorch's ``interpolate(mode="bilinear", align_corners=False)``: two taps, half-pixel centres, no antialias."""
    return _bilinear(np.maximum(_centres(size_out, size_in / size_out), 0), size_in)


def bicubic(size_in: int, size_out: int, scale: float = 0.0) -> np.ndarray:
    """PyTorch's ``interpolate(mode="bicubic")``: four taps (a = -3/4), edges repeated, no antialias.

    ``scale`` is its ``scale_factor``, where that is not out / in.
    """
    at = _centres(size_out, 1 / scale if scale else size_in / size_out)
    taps = np.floor(at).astype(int)[:, None] + np.arange(-1, 3)
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.arange(size_out)[:, None], taps.clip(0, size_in - 1)), _cubic(taps - at[:, None], -0.75))
    return matrix.astype(np.float32)


def bicubic_antialiased(size_in: int, size_out: int) -> np.ndarray:
    """PyTorch's ``interpolate(mode="bicubic", antialias=True)``, as Pillow's: a = -1/2, wider when it shrinks."""
    step = size_in / size_out
    away = np.arange(size_in) - _centres(size_out, step)[:, None]
    matrix = _cubic(away / max(step, 1), -0.5)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)


def _centres(size_out: int, step: float) -> np.ndarray:
    """Where the centres of the new pixels lie, in units of the old ones."""
    return (np.arange(size_out) + 0.5) * step - 0.5


def _bilinear(at: np.ndarray, size_in: int) -> np.ndarray:
    low = np.floor(at).astype(int)
    fraction, rows = at - low, np.arange(len(at))
    matrix = np.zeros((len(at), size_in), np.float32)
    matrix[rows, low] = 1 - fraction
    matrix[rows, np.minimum(low + 1, size_in - 1)] += fraction
    return matrix


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    """The piecewise cubic kernel of Keys (1981)."""
    x = np.abs(x)
    near, far = ((a + 2) * x - (a + 3)) * x**2 + 1, ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))
