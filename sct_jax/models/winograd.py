"""3×3 convolutions by minimal filtering, F(4×4, 3×3), for CPUs, where a convolution's time is its multiplications.

A tile of 4×4 outputs is ``Aᵀ [(G k Gᵀ) ⊙ (Bᵀ d B)] A`` of the kernel ``k`` and the 6×6 image pixels ``d`` below it
(Winograd 1980; Lavin and Gray, arXiv 1509.09308, eq. 8): 36 multiplications for each pair of channels where the sum
over taps has 144. Over all tiles each of the 36 is a matrix product over channels. The gradients have the same form:
that of the image is a convolution with the turned kernel, that of the kernel the transpose of the formula.

The transforms interpolate at the points 0, ±3/4, ±3/2, ∞; these keep the error in float32 under twice that of summing
the taps one by one, where the common 0, ±1, ±2, ∞ have three times it (`tests/models/test_winograd.py`).
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TILE = 4
POINTS = (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))

Array = jax.Array


def transforms(points: Sequence[Fraction], taps: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The matrices ``Aᵀ [m, n]``, ``G [n, taps]``, ``Bᵀ [n, n]`` of F(m, taps), float64; ``n = len(points) + 1``.

    Toom and Cook's: a product of polynomials from its values at ``points`` and ∞, transposed. Exact up to the last
    rounding, so that what is zero is left out.
    """
    n = len(points) + 1
    powers = [[point**power for power in range(n)] for point in points]
    others = [[other for other in points if other != point] for point in points]
    spread = [math.prod(point - other for other in rest) for point, rest in zip(points, others, strict=True)]
    infinity = [0] * (n - 1) + [1]
    output = [*(row[: n - taps + 1] for row in powers), infinity[taps - 1 :]]
    kernel = [[power / scale for power in row[:taps]] for row, scale in zip(powers, spread, strict=True)]
    image = [*([*_polynomial(rest), 0] for rest in others), _polynomial(points)]
    matrices = (output, [*kernel, infinity[-taps:]], image)
    output, kernel, image = (np.array(matrix, np.float64) for matrix in matrices)
    return output.T, kernel, image


def _polynomial(roots: Sequence[Fraction]) -> list[Fraction]:
    """Coefficients of ``Π (x − root)``, the constant one first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *coefficients], [*(root * c for c in coefficients), Fraction(0)]
        coefficients = [a - b for a, b in zip(shifted, scaled, strict=True)]
    return coefficients


OUTPUT, KERNEL, IMAGE = transforms(POINTS)


def convolve(x: Array, kernel: Array) -> Array:
    """Cross-correlation of ``x [B, H, W, I]``, continued by zeros, with ``kernel [3, 3, I, O]``: ``[B, H, W, O]``."""
    return _from_tiles(_einsum("tni,tio->tno", _image_tiles(x), _kernel_tiles(kernel)), x.shape)


def image_gradient(kernel: Array, g: Array) -> Array:
    """The gradient ``[B, H, W, I]`` with respect to the image, from that of the result, ``g [B, H, W, O]``."""
    return _from_tiles(_einsum("tno,tio->tni", _image_tiles(g), _kernel_tiles(kernel, turned=True)), g.shape)


def kernel_gradient(x: Array, g: Array) -> Array:
    """The gradient ``[3, 3, I, O]`` with respect to the kernel, from ``x [B, H, W, I]`` and ``g [B, H, W, O]``."""
    tiles = _einsum("tni,tno->tio", _image_tiles(x), _tiles(_whole_tiles(g, 0), OUTPUT.T))
    gradient = _einsum("pt,tn->pn", np.kron(KERNEL, KERNEL).T, tiles.reshape(len(tiles), -1))
    return gradient.reshape(3, 3, x.shape[-1], g.shape[-1])


def _image_tiles(x: Array) -> Array:
    """``Bᵀ d B`` of every tile of ``x [B, H, W, C]``: ``[36, tiles, C]``."""
    return _tiles(_whole_tiles(x, 1), IMAGE)


def _kernel_tiles(kernel: Array, turned: bool = False) -> Array:
    """``G k Gᵀ``, of the kernel or of it turned by 180°: ``[36, I, O]``."""
    matrix = KERNEL[:, ::-1] if turned else KERNEL
    tiles = _einsum("tp,pn->tn", np.kron(matrix, matrix), kernel.reshape(9, -1))
    return tiles.reshape(-1, *kernel.shape[2:])


def _from_tiles(tiles: Array, shape: Sequence[int]) -> Array:
    """``Aᵀ m A`` of every tile ``[36, tiles, C]``, put together: ``[B, H, W, C]`` with the first sizes of ``shape``."""
    batch, height, width, _ = shape
    down, across = -(-height // TILE), -(-width // TILE)
    pixels = _einsum("pt,tn->pn", np.kron(OUTPUT, OUTPUT), tiles.reshape(len(tiles), -1))
    pixels = pixels.reshape(TILE, TILE, batch, down, across, -1).transpose(2, 3, 0, 4, 1, 5)
    return pixels.reshape(batch, down * TILE, across * TILE, -1)[:, :height, :width]


def _whole_tiles(x: Array, margin: int) -> Array:
    """``x [B, H, W, C]`` with zeros: ``margin`` around, and on to whole tiles."""
    edges = ((margin, margin + -size % TILE) for size in x.shape[1:3])
    return jnp.pad(x, [(0, 0), *edges, (0, 0)])


def _tiles(x: Array, matrix: np.ndarray) -> Array:
    """``matrix d matrixᵀ`` of every tile ``d``, a pixel for each column of it: ``[rows², tiles, C]``, rows those of it.

    One axis after the other, each in one loop of XLA's: both at once would take it five times as long to compile.
    """
    for axis in (-2, -3):
        pixels = matrix.shape[1]
        last = x.shape[axis] - pixels + 1
        parts = [lax.slice_in_dim(x, at, at + last, TILE, axis) for at in range(pixels)]
        x = jnp.stack(_combine(matrix, parts))
    return x.reshape(len(matrix) ** 2, -1, x.shape[-1])


def _combine(matrix: np.ndarray, parts: Sequence[Array]) -> list[Array]:
    """``matrix [rows, parts]`` times a vector of arrays, leaving zeros out."""
    terms = [[x * np.float32(factor) for factor, x in zip(row, parts, strict=True) if factor] for row in matrix]
    return [functools.reduce(jnp.add, row) for row in terms]


def _einsum(spec: str, left: Array | np.ndarray, right: Array) -> Array:
    return jnp.einsum(spec, jnp.asarray(left, jnp.float32), right, precision=lax.Precision.HIGHEST)
