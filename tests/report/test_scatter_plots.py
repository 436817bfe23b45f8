"""Scatter plots put each point where it belongs; samples choose their kind of picture."""

import numpy as np
import pytest
from PIL import Image

from sct_jax.report.grids import PLOT_LIMIT, PLOT_SIZE, image_grid, save_samples, scatter


def inked(image):
    """Centres of the dots ``[row, column]``: where blue stands out on paper and axes."""
    pixels = np.asarray(image).astype(int)
    return np.argwhere(pixels[..., 2] - pixels[..., 0] > 10)


@pytest.mark.parametrize("point", [(0.5, 0.0), (-0.3, 0.9), (0.0, -1.1)])
def test_x_goes_right_and_y_goes_up(point):
    row, column = inked(scatter(np.array([point]))).mean(axis=0)
    assert column == pytest.approx((point[0] / PLOT_LIMIT + 1) / 2 * PLOT_SIZE, abs=2.5)
    assert row == pytest.approx((1 - point[1] / PLOT_LIMIT) / 2 * PLOT_SIZE, abs=2.5)


def test_points_outside_lie_on_the_border_and_crowds_are_darker():
    image = scatter(np.array([[50.0, -50.0]]))
    assert inked(image).min() >= PLOT_SIZE - 4
    crowd = np.asarray(scatter(np.zeros((20, 2)) + 0.5)).min()
    assert crowd < np.asarray(scatter(np.zeros((1, 2)) + 0.5)).min() - 50
    for bad in (np.zeros((3, 3)), np.array([[np.nan, 0.0]])):
        with pytest.raises(ValueError, match="finite points"):
            scatter(bad)


def test_points_are_plotted_and_pictures_tiled(tmp_path):
    rng = np.random.default_rng(0)
    points = rng.standard_normal((50, 1, 1, 2)).astype(np.float32)
    plot = Image.open(save_samples(points, tmp_path / "points.png"))
    np.testing.assert_array_equal(np.asarray(plot), np.asarray(scatter(points.reshape(50, 2))))
    pixels = rng.integers(0, 256, (6, 8, 8, 1), np.uint8)
    expected = np.asarray(image_grid(pixels))
    np.testing.assert_array_equal(np.asarray(Image.open(save_samples(pixels, tmp_path / "a.png"))), expected)
    floats = pixels / 127.5 - 1.0
    np.testing.assert_array_equal(np.asarray(Image.open(save_samples(floats, tmp_path / "b.png"))), expected)
    floats[pixels == 255] = 3.0  # brighter than white
    np.testing.assert_array_equal(np.asarray(Image.open(save_samples(floats, tmp_path / "c.png"))), expected)
