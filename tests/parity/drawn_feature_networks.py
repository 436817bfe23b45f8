"""Weights of feature networks and images for them, drawn alike where golden files are made and where they are read."""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from drawn_weights import draw

IMAGE_SIZES = {"small": (32, 32), "wide": (40, 72)}


def draw_network(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Arrays by PyTorch's names, under which no layer dies out: variances near 1, kernels for what is behind them."""
    arrays = draw(dict(sorted(shapes.items())), seed=0)
    for name, value in arrays.items():
        if name.endswith((".var", "running_var")):
            arrays[name] = 1 + np.abs(value)
        elif value.ndim == 4 and "_project_conv" not in name:  # a ReLU is behind it
            arrays[name] = value * np.float32(1.6)
    return arrays


def draw_images(size: tuple[int, int], num: int = 2, seed: int = 1) -> np.ndarray:
    """Uint8 [num, H, W, 3]: a smooth wave with noise, the full range of values."""
    generator = np.random.RandomState(seed)
    rows, columns = np.mgrid[: size[0], : size[1]] / 8
    wave = np.sin(rows[..., None] * [1.0, 0.5, 0.2] + columns[..., None] * [0.3, 0.9, 0.4])
    noise = generator.standard_normal((num, *size, 3))
    strength = np.linspace(0.2, 1, num)[:, None, None, None]
    return np.clip(127.5 + 110 * wave + 90 * strength * noise, 0, 255).astype(np.uint8)


def draw_sets() -> tuple[np.ndarray, np.ndarray]:
    """Two sets of 24 images, the second mirrored and with other noise."""
    return draw_images((32, 32), 24, seed=2), draw_images((32, 32), 24, seed=3)[:, :, ::-1].copy()


def number_of(name: str) -> np.float32:
    """A number in [0.5, 1.5) that belongs to a name."""
    return np.float32(0.5 + zlib.crc32(name.encode()) / 2**32)
