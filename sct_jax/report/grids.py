"""Many small images as one picture."""

import math
from pathlib import Path

import numpy as np
from PIL import Image

from sct_jax import files

GAP = 2  # pixels between images
SMALLEST_TILE = 32  # tiny images are enlarged to about this many pixels a side
BACKGROUND = 128


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
