"""Dense float64 posterior means, and data with near duplicates, for the tests of the score functions."""

import numpy as np

from sct_jax.diffusion.process import to_unit_range

TIMES = np.float32([0.002, 0.005, 0.01, 0.03, 0.1, 0.5, 2.0, 10.0, 80.0])


def dense(x_0, noise, t, rows, visible=None):
    """The definition in float64: softmax(−‖x_t − row‖²/2t²) over rows ``[n, ...]`` or ``[B, n, ...]``.

    Returns the estimate ``[B, ...]``, the effective sample size, the entropy and the distance from the own sample.
    """
    x_0, noise, t, rows = (np.asarray(a, np.float64) for a in (x_0, noise, t, rows))
    flat, batch = x_0.reshape(len(x_0), -1), len(x_0)
    x_t = flat + t[:, None] * noise.reshape(batch, -1)
    rows = rows.reshape(*rows.shape[: rows.ndim - x_0.ndim + 1], -1)
    rows = np.broadcast_to(rows, (batch, *rows.shape[-2:]))
    log_w = -np.stack([((x - r) ** 2).sum(-1) for x, r in zip(x_t, rows, strict=True)]) / (2 * t[:, None] ** 2)
    if visible is not None:
        log_w = np.where(visible, log_w, -np.inf)
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    w /= w.sum(1, keepdims=True)
    estimate = np.einsum("bn,bnd->bd", w, rows)
    entropy = -(w * np.log(np.where(w > 0, w, 1.0))).sum(1)
    return estimate.reshape(x_0.shape), 1 / (w**2).sum(1), entropy, ((estimate - flat) ** 2).mean(1)


def unit(images):
    """uint8 to [-1, 1] in float64."""
    return np.asarray(images, np.float64) / 127.5 - 1.0


def random_images(count, size=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels)).astype(np.uint8)


def digits(count):
    from sct_jax.data import open_source

    return open_source("digits", split="all").read_all()[0][:count]


def with_near_duplicates(images, per_image=3, seed=1):
    """The images and copies of them with one to three pixels changed by one level: ``‖d‖`` is 0.008 to 0.014."""
    rng = np.random.default_rng(seed)
    flat = np.repeat(images.reshape(len(images), -1), per_image, axis=0)
    for row in flat:
        where = rng.choice(row.size, rng.integers(1, 4), replace=False)
        row[where] = np.where(row[where] == 255, 254, row[where] + 1)
    return np.concatenate([images, flat.reshape(-1, *images.shape[1:])])


def queries(images, times=TIMES, each=4, seed=2):
    """``each`` of the images (the first ones) at every time: x_0 float32, noise, t."""
    x_0 = np.tile(to_unit_range(images[:each]), (len(times), 1, 1, 1))
    noise = np.random.default_rng(seed).normal(size=x_0.shape).astype(np.float32)
    return x_0, noise, np.repeat(np.float32(times), each)


def relative(got, expected):
    """The largest difference, relative to the largest value."""
    return np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()
