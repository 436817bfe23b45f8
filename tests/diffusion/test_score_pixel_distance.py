"""Distances by products of integers: the digits, exactness near duplicates, and log-weights against float64."""

import jax
import numpy as np
import pytest
import score_oracle as oracle

from sct_jax.diffusion import pixel_distance
from sct_jax.diffusion.process import to_unit_range

split = jax.jit(pixel_distance.split)
gap = jax.jit(pixel_distance.squared_distance_gap)


def case(images, each=4):
    """Queries with flat images, and the rows as the distance takes them."""
    x_0, noise, t = oracle.queries(images, each=each)
    rows = images.reshape(len(images), -1)
    return x_0.reshape(len(t), -1), noise.reshape(len(t), -1), t, rows


@pytest.mark.parametrize("between_levels", [False, True])
def test_the_digits_are_small_integers_that_give_back_the_noisy_image(between_levels):
    x_0, noise, t, _ = case(oracle.random_images(4))
    if between_levels:
        x_0 = x_0 + np.float32(0.0031)  # brings some above 1, too
    factors, scale = (np.asarray(x, np.float64) for x in split(x_0, noise, t))
    np.testing.assert_array_equal(factors, np.round(factors))
    assert np.abs(factors).max() <= 128
    pixels = factors[0] + scale[:, None] * sum(digit / 256.0**place for place, digit in enumerate(factors[1:]))
    x_t = (x_0.astype(np.float64) + t[:, None].astype(np.float64) * noise) * 127.5 - 0.5
    largest = np.abs(x_t - factors[0]).max(1, keepdims=True)
    assert (np.abs(pixels - x_t) / largest).max() < 2**-22


def test_log_weights_are_those_of_float64_where_float32_products_lose_them():
    """3,072 pixels and near duplicates: ``‖a‖² + ‖b‖² − 2ab`` in float32 is off by hundreds at t = 0.002."""
    images = oracle.with_near_duplicates(oracle.random_images(4, size=32), per_image=4)
    x_0, noise, t, rows = case(images)
    found = -np.asarray(gap(split(x_0, noise, t), pixel_distance.centred(rows)), np.float64) / (2 * t[:, None] ** 2.0)
    exact = x_0.astype(np.float64)[:, None] - oracle.unit(rows)[None]
    tilt = 2 * t.astype(np.float64)[:, None] * noise
    expected = -(exact * (exact + tilt[:, None])).sum(-1) / (2 * t.astype(np.float64)[:, None] ** 2)
    floats = np.asarray(to_unit_range(rows))
    x_t = x_0 + t[:, None] * noise
    naive = -((x_t**2).sum(1)[:, None] + (floats**2).sum(1) - 2 * x_t @ floats.T) / (2 * t[:, None] ** 2)
    best = expected.argmax(1)[:, None]
    matters = expected - np.take_along_axis(expected, best, 1) > -30

    def worst(log_weights):
        """The largest error among the rows that weigh, relative to the heaviest."""
        ratio = log_weights - np.take_along_axis(log_weights, best, 1)
        return np.abs(ratio - (expected - np.take_along_axis(expected, best, 1)))[matters].max()

    assert matters[t < 0.006].sum() > 24  # several rows a query, not only its own
    assert worst(found) < 2e-5
    assert worst(naive) > 10


def test_the_gap_of_near_duplicates_is_exact_without_noise():
    """The cross terms vanish and what is left is a whole number of squared levels, for any brightness."""
    rows = np.concatenate([np.full((3, 3072), level, np.uint8) for level in (0, 128, 254)])
    rows[1::3, :7] += 1
    rows[2::3, ::3] += 1
    x_0 = np.asarray(to_unit_range(rows[::3]))
    found = gap(split(x_0, np.zeros_like(x_0), np.full(3, 0.002, np.float32)), pixel_distance.centred(rows))
    levels = ((rows[::3, None].astype(int) - rows[None]) ** 2).sum(-1)
    near = levels <= 1024
    assert near.sum() == 9
    np.testing.assert_allclose(np.asarray(found)[near] * 127.5**2, levels[near], rtol=2e-5, atol=1e-3)


def test_centring_is_undone():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_allclose(
        pixel_distance.to_unit_range(pixel_distance.centred(pixels)), oracle.unit(pixels), atol=2e-7
    )
