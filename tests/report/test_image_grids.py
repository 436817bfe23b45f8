"""Grids place every pixel where it belongs and are written whole or not at all."""

import numpy as np
import pytest
from PIL import Image

from sct_jax.errors import UserError
from sct_jax.report.grids import BACKGROUND, GAP, image_grid, save_grid


def test_tiles_are_enlarged_without_smoothing_in_row_order():
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    grid = np.asarray(image_grid(images, columns=3, scale=2))
    assert grid.shape == (2 * 16 + GAP, 3 * 16 + 2 * GAP, 3)
    for index, image in enumerate(images):
        top, left = (index // 3) * (16 + GAP), (index % 3) * (16 + GAP)
        tile = grid[top : top + 16, left : left + 16]
        for row in (0, 1):
            np.testing.assert_array_equal(tile[row::2, 1::2], image)
    assert (grid[:, 16 : 16 + GAP] == BACKGROUND).all()
    assert (grid[16 + GAP :, 2 * (16 + GAP) :] == BACKGROUND).all()


@pytest.mark.parametrize(("size", "num", "expected"), [(8, 64, 8 * 32 + 7 * GAP), (64, 9, 3 * 64 + 2 * GAP)])
def test_square_by_default_and_large_enough_to_see(size, num, expected):
    grid = image_grid(np.zeros((num, size, size, 1), np.uint8))
    assert grid.size == (expected, expected)
    assert grid.mode == "L"


def test_saved_file_is_the_grid(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 1), dtype=np.uint8)
    path = save_grid(images, tmp_path / "samples" / "grid.png")
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(image_grid(images)))
    assert [file.name for file in path.parent.iterdir()] == ["grid.png"]


def test_unwritable_path_is_named(tmp_path):
    (tmp_path / "gone").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"cannot write .*grid\.png"):
        save_grid(np.zeros((1, 8, 8, 1), np.uint8), tmp_path / "gone" / "grid.png")


@pytest.mark.parametrize(
    "images", [np.zeros((1, 8, 8, 1)), np.zeros((0, 8, 8, 1), np.uint8), np.zeros((8, 8), np.uint8)]
)
def test_anything_but_images_is_refused(images):
    with pytest.raises(ValueError, match="uint8"):
        image_grid(images)
