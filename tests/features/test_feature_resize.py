"""Resampling matrices: limits, symmetries, and an implementation of its own beside each."""

import jax
import numpy as np
import pytest

from sct_jax.features.resize import bicubic, bicubic_antialiased, bilinear, bilinear_tf1, resize

KERNELS = [bilinear_tf1, bilinear, bicubic, bicubic_antialiased]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_same_size_changes_nothing_and_constants_stay(kernel):
    np.testing.assert_allclose(kernel(7, 7), np.eye(7), atol=1e-7)
    for size_in, size_out in ((5, 13), (32, 299), (640, 224), (1, 9)):
        np.testing.assert_allclose(kernel(size_in, size_out).sum(1), 1, atol=1e-5)


def test_the_graph_of_2015_takes_pixels_from_their_upper_left_corner():
    ramp = np.arange(4.0)
    np.testing.assert_allclose(bilinear_tf1(4, 8) @ ramp, [0, 0.5, 1, 1.5, 2, 2.5, 3, 3])
    np.testing.assert_allclose(bilinear_tf1(8, 4) @ np.arange(8.0), [0, 2, 4, 6])


def test_half_pixel_centres_are_symmetric_and_the_graph_of_2015_is_not():
    for kernel in (bilinear, bicubic, bicubic_antialiased):
        np.testing.assert_allclose(kernel(9, 31)[::-1, ::-1], kernel(9, 31), atol=1e-6)
    assert np.abs(bilinear_tf1(9, 31)[::-1, ::-1] - bilinear_tf1(9, 31)).max() > 0.1


@pytest.mark.parametrize(("size_in", "size_out"), [(32, 224), (64, 224), (500, 224), (224, 37)])
def test_the_antialiased_cubic_is_jaxs(size_in, size_out):
    rows = np.random.RandomState(0).standard_normal((size_in, 3)).astype("f4")
    theirs = jax.image.resize(rows, (size_out, 3), "cubic", antialias=True, precision="highest")
    np.testing.assert_allclose(bicubic_antialiased(size_in, size_out) @ rows, theirs, atol=1e-4)


def test_half_pixel_bilinear_enlarges_as_jax_does():
    rows = np.random.RandomState(0).standard_normal((32, 3)).astype("f4")
    theirs = jax.image.resize(rows, (299, 3), "linear", antialias=False, precision="highest")
    np.testing.assert_allclose(bilinear(32, 299) @ rows, theirs, atol=1e-5)


def test_the_cubic_without_antialias_has_pytorchs_four_taps_and_repeats_edges():
    half = [-0.09375, 0.59375, 0.59375, -0.09375]  # a = -3/4, between two pixels
    rows = bicubic(8, 4)
    np.testing.assert_allclose(rows[1], [0, *half, 0, 0, 0], atol=1e-7)
    np.testing.assert_allclose(rows[0], [half[0] + half[1], half[2], half[3], 0, 0, 0, 0, 0], atol=1e-7)
    assert 1e-3 < np.abs(bicubic(37, 16, 16.1 / 37) - bicubic(37, 16)).max() < 0.5


def test_rows_and_columns_are_not_confused():
    image = np.zeros((1, 4, 6, 1), np.float32)
    image[0, 1, 4] = 1
    out = np.asarray(resize(image, 12, bilinear_tf1))[0, :, :, 0]
    assert np.unravel_index(out.argmax(), out.shape) == (3, 8)
    assert out.max() == 1
