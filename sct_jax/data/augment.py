"""EDM's augmentation pipeline on the device (arXiv 2206.00364, app. F.2; after StyleGAN2-ADA, arXiv 2006.06676).

Each image is mirrored by a fair coin and, each with the configured probability, turned upside down, scaled, rotated,
stretched along an axis and moved. What was done is told to the network in nine labels, which are zero where nothing
was: asked for images with labels of zero, a trained network makes none that look augmented ("non-leaking").

The geometry is one affine map for each image, resampled at twice the resolution between the low-pass filters of an
orthogonal wavelet; outside, the image goes on by reflection for its own width less a pixel, then black is zero. The
original pads by what the batch at hand needs, which may be less: an image's warp then depends on its neighbours.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

SCALE_STD = 0.2  # of log2 of the isotropic scale
STRETCH_STD = 0.2  # of log2 of the anisotropic scale
TRANSLATION_STD = 0.125  # in image widths

# Low-pass coefficients of the wavelet sym6 (Daubechies' least asymmetric with six vanishing moments).
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
MARGIN = len(SYM6) // 4  # pixels around the image that the last filter sees


class Parameters(NamedTuple):
    """What is done to each of ``B`` images, in this order; zero: nothing.

    ``x_flip``, ``y_flip``: booleans ``[B]``. ``scale``: the size is multiplied by ``2^{0.2 n}``, n ``[B]``. ``angle``:
    of the rotation ``[B]``. ``stretch``: by ``2^{0.2 n}`` along an axis and by its inverse across it, n ``[B]``; the
    axis is at the angle ``direction`` ``[B]``. ``translation``: to the right and down, in eighths of the width and
    height, ``[B, 2]``. Angles are radians, counter-clockwise as seen.
    """

    x_flip: Array
    y_flip: Array
    scale: Array
    angle: Array
    stretch: Array
    direction: Array
    translation: Array


def augment(images: Array, key: Array, probability: float) -> tuple[Array, Array]:
    """Augments images ``[B, H, W, C]``; returns them with their labels ``[B, 9]``, both functions of ``key`` alone."""
    parameters = draw(key, len(images), probability)
    return apply(images, parameters), labels(parameters)


def draw(key: Array, count: int, probability: float) -> Parameters:
    """Random parameters for ``count`` images: x-flip half of the time, the others with ``probability`` (app. F.2)."""
    keys = jax.random.split(key, 3)
    scale, stretch, *translation = jax.random.normal(keys[0], (4, count))
    angle, direction = jax.random.uniform(keys[1], (2, count), minval=-jnp.pi, maxval=jnp.pi)
    chances = jax.random.uniform(keys[2], (7, count))
    limits = (0.5, 0.5 * probability, probability, probability, probability, 0.5, probability)
    done = [chance < limit for chance, limit in zip(chances, limits, strict=True)]
    return Parameters(
        x_flip=done[0],
        y_flip=done[1],
        scale=jnp.where(done[2], scale, 0.0),
        angle=jnp.where(done[3], angle, 0.0),
        stretch=jnp.where(done[4], stretch, 0.0),
        direction=jnp.where(done[5], direction, 0.0),
        translation=jnp.where(done[6][:, None], jnp.stack(translation, axis=1), 0.0),
    )


def labels(parameters: Parameters) -> Array:
    """The nine numbers ``[B, 9]`` that tell the network what was done, in the original's order; zero for nothing."""
    p = parameters
    columns = [p.x_flip, p.y_flip, p.scale, jnp.cos(p.angle) - 1.0, jnp.sin(p.angle)]
    columns += [p.stretch * jnp.cos(p.direction), p.stretch * jnp.sin(p.direction), *p.translation.T]
    return jnp.stack([column.astype(jnp.float32) for column in columns], axis=1)


def apply(images: Array, parameters: Parameters) -> Array:
    """Images ``[B, H, W, C]`` with ``parameters`` done to them; one that is not warped keeps every bit."""
    p = parameters
    each = lambda x: x[:, None, None, None]  # noqa: E731
    images = jnp.where(each(p.x_flip), images[:, :, ::-1], images)
    images = jnp.where(each(p.y_flip), images[:, ::-1], images)
    offset = jnp.asarray([images.shape[2], images.shape[1]]) * TRANSLATION_STD * p.translation
    warped = warp(images, inverse_matrix(p), offset)
    return jnp.where(each(is_warped(p)), warped, images)


def is_warped(parameters: Parameters) -> Array:
    """Booleans ``[B]``: whether more than flips is done."""
    p = parameters
    return (p.scale != 0) | (p.angle != 0) | (p.stretch != 0) | jnp.any(p.translation != 0, axis=1)


def inverse_matrix(parameters: Parameters) -> Array:
    """``[B, 2, 2]``: from a place in the result to where it was, both (x, y) from the centre, y down."""
    p = parameters
    size, stretch = jnp.exp2(SCALE_STD * p.scale), jnp.exp2(STRETCH_STD * p.stretch)
    along = jnp.stack([1.0 / stretch, stretch], axis=-1)[:, :, None]
    stretching = _product(_rotation(-p.direction), along * _rotation(p.direction))
    return _product(_rotation(p.angle), stretching) / size[:, None, None]


def warp(images: Array, inverse: Array, offset: Array) -> Array:
    """Images ``[B, H, W, C]`` that show at ``x`` what was at ``inverse [B, 2, 2] (x − offset [B, 2])``, in pixels."""
    height, width = images.shape[1:3]
    fine = jnp.einsum("ph,qw,bhwc->bpqc", _reader(height), _reader(width), images, precision="highest")
    y, x = (jnp.arange(n, dtype=jnp.float32) - (n - 1) / 2 for n in (_fine(height), _fine(width)))
    grid = jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]), axis=-1).reshape(-1, 2)
    # The filters put a pixel's centre half a fine pixel off the middle of its two.
    places = (grid + 0.5) / 2 - offset[:, None]
    places = 2 * jnp.sum(inverse[:, None] * places[:, :, None], axis=-1) - 0.5
    centre = (jnp.asarray([fine.shape[2], fine.shape[1]], jnp.float32) - 1) / 2
    taken = jax.vmap(_bilinear)(fine, places + centre)
    taken = taken.reshape(len(images), len(y), len(x), -1)
    return jnp.einsum("ph,qw,bpqc->bhwc", _writer(height), _writer(width), taken, precision="highest")


def _bilinear(image: Array, places: Array) -> Array:
    """Values ``[P, C]`` of an image ``[H, W, C]`` at places ``[P, 2]``, (x, y) from its first pixel; 0 outside."""
    size = jnp.asarray([image.shape[1], image.shape[0]])
    corner = jnp.floor(places)
    far = places - corner
    pixels = image.reshape(-1, image.shape[2])
    total = jnp.zeros((len(places), image.shape[2]), image.dtype)
    for step in ((0, 0), (1, 0), (0, 1), (1, 1)):
        at = corner.astype(jnp.int32) + jnp.asarray(step)
        weight = jnp.prod(jnp.where(jnp.asarray(step) == 1, far, 1.0 - far), axis=1)
        weight = jnp.where(jnp.all((at >= 0) & (at < size), axis=1), weight, 0.0)
        at = jnp.clip(at, 0, size - 1)
        total += weight[:, None] * pixels[at[:, 1] * image.shape[1] + at[:, 0]]
    return total


def _rotation(angle: Array) -> Array:
    """``[B, 2, 2]``: turns (x, y) by ``angle`` from x towards y."""
    cosine, sine = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([jnp.stack([cosine, -sine], -1), jnp.stack([sine, cosine], -1)], axis=-2)


def _product(a: Array, b: Array) -> Array:
    return jnp.einsum("bij,bjk->bik", a, b, precision="highest")


def _fine(length: int) -> int:
    """Fine pixels along an axis of the result before the last filter."""
    return 2 * (length + 2 * MARGIN)


def _reader(length: int) -> np.ndarray:
    """Along one axis: reflect on both sides by ``length − 1``, then double the resolution. ``[2 (3 L − 2), L]``."""
    reflected = np.pad(np.eye(length), ((length - 1, length - 1), (0, 0)), mode="reflect" if length > 1 else "edge")
    return (_low_pass(len(reflected)) @ reflected).astype(np.float32)


def _writer(length: int) -> np.ndarray:
    """Along one axis: halve the resolution, leave the margins out. ``[2 (L + 6), L]``."""
    return _low_pass(length + 2 * MARGIN)[:, MARGIN:-MARGIN].astype(np.float32)


def _low_pass(length: int) -> np.ndarray:
    """The wavelet's synthesis ``[2 L, L]``, column i from fine pixel ``2 i − 5`` on; its transpose undoes it."""
    fine, coarse = np.arange(2 * length)[:, None], np.arange(length)[None]
    tap = fine - 2 * coarse + len(SYM6) // 2 - 1
    inside = (tap >= 0) & (tap < len(SYM6))
    return np.where(inside, np.asarray(SYM6)[np.where(inside, tap, 0)], 0.0)
