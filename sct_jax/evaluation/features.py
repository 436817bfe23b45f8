"""Feature spaces that need no network: the principal components of the real images' pixels."""

from dataclasses import dataclass

import numpy as np

from sct_jax.data.spec import unit_range

BLOCK = 4096  # images held as float64 at a time


@dataclass(frozen=True)
class PixelPCA:
    """Projection of pixels in [-1, 1] onto the leading principal components of a set of real images.

    The components are orthonormal and not whitened: a Fréchet distance of these features is in squared pixel
    units (pixels in [-1, 1], summed over the image). ``mean [D]`` and ``components [D, dims]`` are float64,
    ``D = H·W·C``.
    """

    mean: np.ndarray
    components: np.ndarray

    @classmethod
    def fit(cls, images: np.ndarray, dims: int = 32) -> "PixelPCA":
        """Components of ``images`` (uint8 ``[N, H, W, C]``); at most N - 1 and D of them."""
        if len(images) < 2:
            raise ValueError(f"principal components need at least 2 images, got {len(images)}")
        pixels = images[0].size
        mean = images.reshape(len(images), pixels).mean(axis=0, dtype=np.float64) / 127.5 - 1
        scatter = np.zeros((pixels, pixels))
        for start in range(0, len(images), BLOCK):
            centred = _pixels(images[start : start + BLOCK]) - mean
            scatter += centred.T @ centred
        _, vectors = np.linalg.eigh(scatter)
        dims = min(dims, pixels, len(images) - 1)
        return cls(mean=mean, components=np.ascontiguousarray(vectors[:, ::-1][:, :dims]))

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Features float64 ``[N, dims]`` of uint8 images ``[N, H, W, C]``."""
        blocks = [
            (_pixels(images[start : start + BLOCK]) - self.mean) @ self.components
            for start in range(0, len(images), BLOCK)
        ]
        return np.concatenate(blocks) if blocks else np.zeros((0, self.components.shape[1]))


def _pixels(images: np.ndarray) -> np.ndarray:
    """uint8 ``[N, H, W, C]`` to float64 ``[N, D]`` in [-1, 1]."""
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {images.dtype}")
    return unit_range(images.reshape(len(images), -1))
