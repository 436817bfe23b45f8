"""Many small images as one picture, or many points of the plane as one scatter plot."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from sct_jax import files

GAP = 2  # pixels between images
SMALLEST_TILE = 32  # tiny images are enlarged to about this many pixels a side
BACKGROUND = 128
PLOT_SIZE = 384  # pixels a side of a scatter plot
PLOT_LIMIT = 1.25  # it shows the square of this half side; points outside lie on its border
INK = np.array([31, 84, 156])


def image_grid(images: np.ndarray, columns: int = 0, scale: int = 0) -> Image.Image:
    """Uint8 ``images [N, H, W, C]`` (C 1 or 3) row by row in a grid, each enlarged ``scale`` times without smoothing.

    ``columns=0`` makes the grid about square; ``scale=0`` brings tiny images to about 32 pixels and leaves others.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"a grid needs uint8 [N, H, W, 1 or 3] with N > 0, got {images.dtype} {images.shape}")
    num, height, _, channels = images.shape
    columns = min(columns or math.ceil(math.sqrt(num)), num)
    rows = math.ceil(num / columns)
    scale = scale or max(1, round(SMALLEST_TILE / height))
    tiles = images.repeat(scale, axis=1).repeat(scale, axis=2)
    tile_height, tile_width = tiles.shape[1:3]
    shape = (rows * (tile_height + GAP) - GAP, columns * (tile_width + GAP) - GAP, channels)
    canvas = np.full(shape, BACKGROUND, np.uint8)
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (tile_height + GAP), (index % columns) * (tile_width + GAP)
        canvas[top : top + tile_height, left : left + tile_width] = tile
    return Image.fromarray(canvas[..., 0] if channels == 1 else canvas)


def save_grid(images: np.ndarray, path: str | Path, columns: int = 0, scale: int = 0) -> Path:
    """Writes :func:`image_grid` to ``path``, aside and then renamed; the format is that of the ending.

    Raises:
      UserError: when ``path`` cannot be written.
    """
    grid = image_grid(images, columns, scale)
    return files.write(path, grid.save)


def scatter(points: np.ndarray) -> Image.Image:
    """Points ``[N, 2]`` as dots, darker where they lie close; x to the right and y upwards, thin lines through 0."""
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"a scatter plot needs finite points [N, 2], got {points.shape}")
    place = np.clip(points / PLOT_LIMIT, -1, 1) * (PLOT_SIZE / 2 - 2) + (PLOT_SIZE - 1) / 2
    column, row = np.rint(place[:, 0]).astype(int), np.rint(PLOT_SIZE - 1 - place[:, 1]).astype(int)
    dots = np.zeros((PLOT_SIZE, PLOT_SIZE))
    for down, right in ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)):
        np.add.at(dots, (row + down, column + right), 1.0)
    paper = np.full((PLOT_SIZE, PLOT_SIZE, 1), 255.0)
    paper[PLOT_SIZE // 2] = paper[:, PLOT_SIZE // 2] = 225.0
    covered = 1 - np.exp(-0.6 * dots)[..., None]
    return Image.fromarray(np.rint(paper * (1 - covered) + INK * covered).astype(np.uint8))


def save_samples(samples: np.ndarray, path: str | Path) -> Path:
    """Writes samples ``[N, H, W, C]``, uint8, or float with [-1, 1] for black to white, as a grid.

    Float samples of shape ``1x1x2`` are points of the plane and make a scatter plot.

    Raises:
      UserError: when ``path`` cannot be written.
    """
    if samples.dtype == np.uint8:
        return save_grid(samples, path)
    if samples.shape[1:] == (1, 1, 2):
        return files.write(path, scatter(samples.reshape(-1, 2)).save)
    from sct_jax.sampling.generate import to_uint8

    return save_grid(to_uint8(samples), path)
