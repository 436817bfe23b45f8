"""Many images from a denoiser: in batches, over a mesh, image *i* of a seed the same whatever their size."""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sct_jax.diffusion.process import karras_grid
from sct_jax.errors import UserError
from sct_jax.sampling import samplers

Array = jax.Array


class Generator:
    """Generates images with one network; keeps the compiled samplers, so that it can be called while training.

    Args:
      denoise: the pure denoiser ``denoise(params, x, t, labels)``.
      image_shape: ``(H, W, C)``.
      sampling: ``config.sampling``.
      kind: ``"consistency"`` or ``"diffusion"`` (Heun).
      device_mesh: the batch is split over its axis ``data`` when given.
    """

    def __init__(self, denoise: Any, image_shape: tuple[int, ...], sampling: Any, kind: str, device_mesh: Any = None):
        self._denoise, self._shape, self._sampling, self._kind = denoise, image_shape, sampling, kind
        self._sharding = self._whole = None
        if device_mesh is not None:
            self._sharding = jax.sharding.NamedSharding(device_mesh, jax.sharding.PartitionSpec("data"))
            self._whole = jax.sharding.NamedSharding(device_mesh, jax.sharding.PartitionSpec())
        self._compiled = jax.jit(self._sample, static_argnames=("times",))

    def times(self, steps: int) -> tuple[float, ...]:
        """The descending noise levels that ``steps`` stand for."""
        config = self._sampling
        if steps < 1:
            raise UserError(f"--steps {steps}: at least one step is needed")
        if self._kind == "consistency":
            return samplers.consistency_times(steps, config.mid_times, config.t_max)
        if steps == 1:  # a diffusion model used in one step: its mean, a blur; measured for comparison
            return (config.t_max,)
        return tuple(float(t) for t in karras_grid(steps, config.t_min, config.t_max, config.rho)[::-1])

    def __call__(
        self,
        params: Any,
        num: int,
        *,
        steps: int = 1,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        batch_size: int = 256,
        times: Sequence[float] | None = None,
    ) -> np.ndarray:
        """Images ``[num, H, W, C]`` float32 in [-1, 1]; ``labels`` are used in turn until ``num`` is reached.

        ``times`` overrides the noise levels that ``steps`` stand for.
        """
        if num < 1:
            raise UserError(f"--num {num}: at least one image is needed")
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size}: at least one image at a time is needed")
        if not 0 <= seed < 2**31:
            raise UserError(f"--seed {seed}: must be from 0 to {2**31 - 1}")
        levels = self.times(steps) if times is None else _checked_times(times)
        if self._whole is not None:
            params = jax.device_put(params, self._whole)
        parts = [
            np.asarray(self._compiled(params, index, label, seed, times=levels))[:valid]
            for index, label, valid in self._batches(num, labels, min(batch_size, num))
        ]
        return np.clip(np.concatenate(parts), -1.0, 1.0)

    def _batches(
        self, num: int, labels: Sequence[int] | None, batch_size: int
    ) -> Iterator[tuple[Array, Array | None, int]]:
        """Full batches of indices and labels (the last padded), and how many of each are wanted."""
        if self._sharding is not None:
            devices = self._sharding.mesh.size
            batch_size = -(-batch_size // devices) * devices
        for start in range(0, num, batch_size):
            index = np.arange(start, start + batch_size, dtype=np.int32)
            label = None if labels is None else np.asarray(labels, np.int32)[index % len(labels)]
            if self._sharding is not None:
                index = jax.device_put(index, self._sharding)
                label = None if label is None else jax.device_put(label, self._sharding)
            yield index, label, min(batch_size, num - start)

    def _sample(
        self, params: Any, index: Array, labels: Array | None, seed: Array, *, times: tuple[float, ...]
    ) -> Array:
        sampler = samplers.consistency if self._kind == "consistency" else samplers.heun
        keys = samplers.image_keys(seed, index)
        x = times[0] * samplers.image_noise(keys, 0, self._shape)
        return sampler(lambda x, t: self._denoise(params, x, t, labels), x, times, keys)


def sampler_kind(config: Any) -> str:
    """``"diffusion"`` for a pre-trained denoiser, ``"consistency"`` for a tuned one: which sampler suits its model."""
    return "diffusion" if config.objective.method == "edm" else "consistency"


def _checked_times(times: Sequence[float]) -> tuple[float, ...]:
    levels = tuple(float(t) for t in times)
    falling = all(later < earlier for earlier, later in itertools.pairwise(levels))
    if not levels or not falling or not all(0 < t < math.inf for t in levels):
        raise UserError(f"--times {','.join(map(str, times))}: needs descending positive noise levels, such as 80,0.8")
    return levels


def to_uint8(images: np.ndarray) -> np.ndarray:
    """Float images in [-1, 1] to uint8, rounded to nearest."""
    return np.clip(np.rint((np.asarray(images) + 1.0) * 127.5), 0, 255).astype(np.uint8)


def default_labels(num_classes: int, conditional: bool) -> tuple[int, ...] | None:
    """Every class in turn for a conditional model, else None."""
    return tuple(range(num_classes)) if conditional else None
