"""EDM's augmentation: each transform against a warp done otherwise, its labels, and the distribution of what is drawn.

A general transform is compared on smooth images, where all good ways to interpolate agree: to 0.02, because the centre
of the wavelet's filter is 0.05 pixels off the middle. Parity with the original, to 1e-5, is in tests/parity.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from sct_jax.data import augment
from sct_jax.data.augment import Parameters
from sct_jax.schema import AUGMENT_LABELS
from sct_jax.training import mesh

SIZE = 32
APPLY = jax.jit(augment.apply)
AUGMENT = jax.jit(augment.augment)
DRAW = jax.jit(augment.draw, static_argnames="count")


def parameters(count, **fields) -> Parameters:
    """Nothing is done but what ``fields`` say."""
    off, zero = jnp.zeros(count, bool), jnp.zeros(count)
    nothing = Parameters(off, off, zero, zero, zero, zero, jnp.zeros((count, 2)))
    return nothing._replace(**{name: jnp.asarray(value) for name, value in fields.items()})


def noise_images(count, height=SIZE, width=SIZE) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (count, height, width, 3)).astype(np.float32)


def smooth_images(count) -> np.ndarray:
    """A few waves of at most one period across the image, which reflection at the border continues smoothly."""
    rng = np.random.default_rng(1)
    at = np.pi * np.arange(SIZE) / (SIZE - 1)
    waves = np.cos(np.arange(3)[:, None] * at)
    amplitudes = rng.normal(size=(count, 3, 3, 3))
    images = np.einsum("bklc,ky,lx->byxc", amplitudes, waves, waves)
    return (images / np.abs(images).max((1, 2, 3), keepdims=True)).astype(np.float32)


def reference_warp(image, forward, translation=(0.0, 0.0)) -> np.ndarray:
    """``image [S, S, C]`` under ``x → forward x + translation``, (x, y) from the centre, y down; quintic splines."""
    centre = (SIZE - 1) / 2
    y, x = np.mgrid[:SIZE, :SIZE] - centre
    moved = np.stack([x - translation[0], y - translation[1]])
    source_x, source_y = np.einsum("ij,jyx->iyx", np.linalg.inv(forward), moved) + centre
    sample = lambda channel: ndimage.map_coordinates(channel, [source_y, source_x], order=5, mode="mirror")  # noqa: E731
    return np.stack([sample(image[..., channel]) for channel in range(3)], axis=-1)


def counter_clockwise(angle) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])  # y points down


def assert_warps(given, forwards, translations=None, tolerance=0.02):
    images = smooth_images(len(forwards))
    translations = np.zeros((len(forwards), 2)) if translations is None else translations
    expected = [reference_warp(*arguments) for arguments in zip(images, forwards, translations, strict=True)]
    np.testing.assert_allclose(APPLY(images, given), expected, rtol=0, atol=tolerance)
    assert all(np.abs(images - expected).max((1, 2, 3)) > 5 * tolerance)  # the transform shows


def test_flips_are_exact():
    images = noise_images(4, 8, 16)
    flipped = APPLY(images, parameters(4, x_flip=[False, True, False, True], y_flip=[False, False, True, True]))
    expected = [images[0], np.flip(images[1], 1), np.flip(images[2], 0), np.flip(images[3], (0, 1))]
    np.testing.assert_array_equal(flipped, expected)


def test_quarter_turns_are_counter_clockwise():
    images = smooth_images(4)
    turned = APPLY(images, parameters(4, angle=np.pi / 2 * np.array([1.0, 2.0, -1.0, -2.0])))
    expected = [np.rot90(image, turns) for image, turns in zip(images, (1, 2, -1, -2), strict=True)]
    np.testing.assert_allclose(turned, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (8, 16)])
def test_whole_pixels_reflect_at_the_border(height, width):
    images = noise_images(4, height, width)
    pixels = np.array([[3, 0], [0, -1], [-5, 1], [9, -1]])
    given = parameters(4, translation=pixels / (0.125 * np.array([width, height])))
    padded = np.pad(images, ((0, 0), (height - 1,) * 2, (width - 1,) * 2, (0, 0)), mode="reflect")
    expected = [
        padded[i, height - 1 - y : 2 * height - 1 - y, width - 1 - x : 2 * width - 1 - x]
        for i, (x, y) in enumerate(pixels)
    ]
    np.testing.assert_allclose(APPLY(images, given), expected, rtol=0, atol=1e-4)


def test_scales_as_a_spline_does():
    n = np.array([1.5, -1.5, 1.0, -3.0])
    assert_warps(parameters(4, scale=n), [2 ** (0.2 * each) * np.eye(2) for each in n])


def test_rotates_as_a_spline_does():
    angles = np.array([0.3, -1.0, 2.5, np.pi / 4])
    assert_warps(parameters(4, angle=angles), [counter_clockwise(angle) for angle in angles])


def test_stretches_along_an_axis_and_shrinks_across_it():
    n, directions = np.array([2.0, -2.0, 1.5, 2.0]), np.array([0.0, 0.0, 0.7, -2.0])
    stretches = [np.diag([2 ** (0.2 * each), 2 ** (-0.2 * each)]) for each in n]
    forwards = [
        counter_clockwise(angle) @ stretch @ counter_clockwise(-angle)
        for angle, stretch in zip(directions, stretches, strict=True)
    ]
    assert_warps(parameters(4, stretch=n, direction=directions), forwards)
    np.testing.assert_allclose([np.linalg.det(forward) for forward in forwards], 1.0)


def test_moves_by_fractions_of_a_pixel():
    n = np.array([[0.6, 0.0], [0.0, -0.8], [-1.2, 0.55], [0.9, 0.9]])
    assert_warps(parameters(4, translation=n), [np.eye(2)] * 4, 0.125 * SIZE * n)


def test_all_at_once_scale_then_turn_then_stretch_then_move():
    n, same = np.tile([0.6, -0.4], (4, 1)), np.ones(4)
    given = parameters(4, scale=-same, angle=0.8 * same, stretch=same, translation=n)
    forward = np.diag([2**0.2, 2**-0.2]) @ counter_clockwise(0.8) * 2**-0.2
    assert_warps(given, [forward] * 4, 0.125 * SIZE * n)


def test_beyond_the_reflection_it_is_zero():
    # at a quarter of its size an image and its reflections, 3 S − 2 pixels, cover less than 3/4 of the result
    shrunk = APPLY(np.ones((4, SIZE, SIZE, 3), np.float32), parameters(4, scale=np.full(4, -10.0)))
    np.testing.assert_allclose(shrunk[:, 8:24, 8:24], 1.0, atol=0.1)
    np.testing.assert_allclose(shrunk[:, [0, -1]], 0.0, atol=1e-6)
    np.testing.assert_allclose(shrunk[:, :, [0, -1]], 0.0, atol=1e-6)


def test_the_filters_are_orthogonal_so_that_doing_nothing_does_nothing():
    filters = augment._low_pass(20)
    inner = slice(3, -3)  # columns whose filter lies inside
    np.testing.assert_allclose((filters.T @ filters)[inner, inner], np.eye(20)[inner, inner], atol=1e-10)
    images = noise_images(2, 8, 16)
    unmoved = jax.jit(augment.warp)(images, jnp.broadcast_to(jnp.eye(2), (2, 2, 2)), jnp.zeros((2, 2)))
    np.testing.assert_allclose(unmoved, images, rtol=0, atol=1e-5)


def test_labels_are_zero_where_nothing_was_done():
    given = DRAW(jax.random.key(0), 512, 0.12)
    labels = augment.labels(given)
    assert labels.shape == (512, AUGMENT_LABELS)
    parts = {"x_flip": [0], "y_flip": [1], "scale": [2], "angle": [3, 4], "stretch": [5, 6], "translation": [7, 8]}
    for name, columns in parts.items():
        value = getattr(given, name).astype(jnp.float32).reshape(512, -1)
        done = jnp.any(value != 0, axis=1)
        assert 0 < done.sum() < 512
        np.testing.assert_array_equal(jnp.any(labels[:, jnp.array(columns)] != 0, axis=1), done)


def test_an_image_with_labels_of_zero_keeps_every_bit():
    images = noise_images(16, 8, 8)
    augmented, labels = AUGMENT(images, jax.random.key(2), 0.12)
    untouched = np.all(labels == 0, axis=1)
    assert 0 < untouched.sum() < 16
    np.testing.assert_array_equal(augmented[untouched], images[untouched])
    changed = np.abs(augmented - images).max((1, 2, 3)) > 0
    np.testing.assert_array_equal(changed, ~untouched)


def test_probability_zero_leaves_only_the_flip():
    images = noise_images(16, 8, 8)
    augmented, labels = AUGMENT(images, jax.random.key(0), 0.0)
    flipped = np.asarray(labels[:, 0]) == 1
    np.testing.assert_array_equal(augmented, np.where(flipped[:, None, None, None], images[:, :, ::-1], images))
    assert not labels[:, 1:].any()
    assert 3 < flipped.sum() < 13


def test_the_distribution_of_what_is_drawn():
    count, p = 200_000, 0.12
    given = jax.tree.map(np.asarray, DRAW(jax.random.key(1), count, p))
    near = lambda value: pytest.approx(value, abs=4 * np.sqrt(0.25 / count))  # noqa: E731
    assert given.x_flip.mean() == near(0.5)
    assert given.y_flip.mean() == near(p / 2)
    for name in ("scale", "angle", "stretch"):
        assert (getattr(given, name) != 0).mean() == near(p)
    assert np.any(given.translation != 0, axis=1).mean() == near(p)
    assert (given.direction != 0).mean() == near(0.5)
    for values in (given.scale, given.stretch, *given.translation.T):
        drawn = values[values != 0]
        assert drawn.mean() == pytest.approx(0.0, abs=0.03)
        assert drawn.std() == pytest.approx(1.0, abs=0.03)
    for angles in (given.angle, given.direction):
        drawn = angles[angles != 0]
        assert np.abs(drawn).max() <= np.pi
        assert drawn.std() == pytest.approx(np.pi / np.sqrt(3), rel=0.02)
        assert drawn.mean() == pytest.approx(0.0, abs=0.05)
    every = (given.scale != 0) & (given.angle != 0) & (given.stretch != 0)
    assert every.mean() == pytest.approx(p**3, rel=0.2)  # independent of each other


def test_eight_devices_are_one_and_keys_are_all_that_is_random():
    images = noise_images(16, 8, 8)
    split = jax.device_put(images, mesh.split_batch(mesh.make_mesh(8)))
    one, labels = AUGMENT(images, jax.random.key(3), 0.5)
    eight, labels_eight = AUGMENT(split, jax.random.key(3), 0.5)
    np.testing.assert_allclose(one, eight, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(labels, labels_eight)
    other, _ = AUGMENT(images, jax.random.key(4), 0.5)
    assert not jnp.array_equal(one, other)
