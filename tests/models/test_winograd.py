"""Minimal filtering is a convolution: its identity in exact arithmetic, its error in float32, its gradients."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from sct_jax.models import products, winograd


def draw(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def taps(x, kernel):
    """The same-padded cross-correlation, tap by tap, in the dtype of its arguments."""
    height, width = x.shape[1:3]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3))


@pytest.mark.parametrize("points", [(0, 1, -1), (0, 1, -1, 2, -2), winograd.POINTS], ids=str)
def test_the_transforms_make_a_correlation(points):
    output, kernel, image = winograd.transforms([Fraction(point) for point in points])
    d, k = np.random.default_rng(0).standard_normal((2, len(points) + 1))
    found = output @ ((kernel @ k[:3]) * (image @ d))
    np.testing.assert_allclose(found, np.correlate(d, k[:3], "valid"), atol=1e-13)


def test_the_smallest_transforms_are_winograds():
    output, kernel, image = winograd.transforms([Fraction(0), Fraction(1), Fraction(-1)])
    np.testing.assert_array_equal(output, [[1, 1, 1, 0], [0, 1, -1, 1]])
    np.testing.assert_array_equal(np.abs(kernel), [[1, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0, 0, 1]])
    np.testing.assert_array_equal(np.abs(image), [[1, 0, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 1]])


@pytest.mark.parametrize("shape", [(2, 8, 8, 5), (1, 4, 4, 3), (3, 7, 10, 4), (1, 1, 2, 3), (2, 14, 5, 2)], ids=str)
def test_values_and_gradients_are_a_convolutions(shape):
    x, kernel = draw(0, *shape), draw(1, 3, 3, shape[-1], 6)
    plain = lambda x, kernel: lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=products.NHWC)  # noqa: E731
    result, pull = jax.vjp(plain, x, kernel)
    g = draw(2, *result.shape)
    of_x, of_kernel = pull(g)
    np.testing.assert_allclose(winograd.convolve(x, kernel), result, atol=2e-5)
    np.testing.assert_allclose(winograd.image_gradient(kernel, g), of_x, atol=2e-5)
    np.testing.assert_allclose(winograd.kernel_gradient(x, g), of_kernel, atol=1e-4)


def test_the_error_is_under_twice_that_of_summing_taps():
    x, kernel = draw(0, 1, 16, 16, 256), draw(1, 3, 3, 256, 64)
    exact = taps(x.astype(np.float64), kernel.astype(np.float64))
    rms = lambda found: np.sqrt(np.square(np.asarray(found, np.float64) - exact).mean())  # noqa: E731
    one_by_one = np.zeros_like(exact, np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    for channel in range(256):
        for i in range(3):
            for j in range(3):
                one_by_one += padded[:, i : i + 16, j : j + 16, channel, None] * kernel[i, j, channel]
    assert rms(winograd.convolve(x, kernel)) < 2 * rms(one_by_one)
    assert rms(winograd.convolve(x, kernel)) < 1e-5 * exact.std()


def lowered(platform, channels):
    x, kernel = jnp.zeros((4, 16, 16, channels)), jnp.zeros((3, 3, channels, channels))
    loss = lambda x, kernel: jnp.square(products.convolve(x, kernel)).sum()  # noqa: E731
    traced = jax.jit(jax.grad(loss, (0, 1))).trace(x, kernel)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_only_cpus_and_wide_layers_take_it():
    assert lowered("cpu", 64).count("stablehlo.convolution") == 0
    for platform in ("cuda", "tpu"):  # the whole program is what it was
        assert lowered(platform, 64).count("stablehlo.convolution") == 3
        assert "stablehlo.dot_general" not in lowered(platform, 64)
    assert lowered("cpu", 8).count("stablehlo.convolution") == 3


def test_the_layer_gives_a_convolutions_gradients():
    x, kernel = draw(0, 4, 16, 16, 64), draw(1, 3, 3, 64, 64)
    result, pull = jax.vjp(jax.jit(products.convolve), x, kernel)
    expected, expected_pull = jax.vjp(jax.jit(lambda x, k: products._plain_convolve(x, k, 1, 1)), x, kernel)
    g = draw(2, *result.shape)
    np.testing.assert_allclose(result, expected, atol=2e-4)
    for found, wanted in zip(pull(g), expected_pull(g), strict=True):
        np.testing.assert_allclose(found, wanted, atol=2e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("size", [8, 16])
def test_a_program_for_any_number_of_images_can_be_exported(size):
    images, kernel = jax.random.normal(jax.random.key(0), (3, size, size, 32)), jnp.ones((3, 3, 32, 32))
    any_number = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), *images.shape[1:]), jnp.float32)
    program = jax.export.export(jax.jit(products.convolve))(any_number, kernel)
    np.testing.assert_allclose(program.call(images, kernel), products.convolve(images, kernel), rtol=1e-4, atol=1e-4)
