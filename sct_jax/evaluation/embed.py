"""One pass over images, drawn or real: to uint8 and through the feature networks in one program on all devices.

While the device works on a batch the host adds the one before to float64 moments, and keeps rows only where a metric
asks for them: 50,000 images need no more memory than a batch of them.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sct_jax.data import Source
from sct_jax.data.reading import ReadAhead, Watch
from sct_jax.errors import UserError
from sct_jax.evaluation.accumulate import Accumulator, check_finite
from sct_jax.features import FeatureSpace
from sct_jax.sampling.generate import Then, one_ahead, to_uint8
from sct_jax.training import mesh as mesh_lib

QUANTISATION = "uint8: clip(rint((x + 1) * 127.5), 0, 255)"
MOST_READERS = 8
CHOICE_SEED = 0  # of the images that are taken where not all are
Output = tuple[str, str]  # a feature space and one of its outputs, such as ("inception", "spatial")


@dataclass(frozen=True)
class Wanted:
    """What a pass keeps.

    Attributes:
      moments: outputs whose mean and covariance are taken.
      rows: outputs of which every row is kept.
      images: whether the uint8 images are kept.
    """

    moments: frozenset[Output] = frozenset()
    rows: frozenset[Output] = frozenset()
    images: bool = False


@dataclass
class Collected:
    """What a pass has kept of ``num`` images: moments, rows ``[num, F]``, images uint8 ``[num, H, W, C]``."""

    num: int = 0
    moments: dict[Output, Accumulator] = field(default_factory=dict)
    rows: dict[Output, np.ndarray] = field(default_factory=dict)
    images: np.ndarray | None = None


class Embedding:
    """Sees images with feature networks; keeps the compiled programs.

    Args:
      spaces: by name.
      wanted: what to keep of every pass.
      device_mesh: batches are split over its devices.
    """

    def __init__(self, spaces: Mapping[str, FeatureSpace], wanted: Wanted, device_mesh: jax.sharding.Mesh):
        self._spaces, self._wanted, self._mesh = dict(spaces), wanted, device_mesh
        whole = mesh_lib.replicated(device_mesh)
        self._params = mesh_lib.put({name: space.params for name, space in self._spaces.items()}, whole)
        self._then = Then(self._see_samples, self._params)
        self._compiled = jax.jit(self._see, out_shardings=whole)

    def samples(self, model: Any, num: int, steps: int | None = None, seed: int = 0, **options: Any) -> Collected:
        """Of images drawn from a :class:`sct_jax.model.Model`; for the options see its ``batches``.

        Raises:
          UserError: for samples or features that are not finite.
        """
        return self._collect(model.batches(num, steps, seed, then=self._then, **options))

    def images(self, source: Source, *, num: int | None = None, batch_size: int = 256) -> Collected:
        """Of ``num`` images of a data source, or all, which are read ahead.

        Fewer than all are drawn at random, always the same ones: the first of a data set are often of one class.

        Raises:
          UserError: for data that are no pictures, images that cannot be read, features that are not finite.
        """
        if source.spec.dtype != "uint8":
            raise UserError("features are of pictures: these data are points, not images of uint8")
        num = len(source) if num is None else num
        if not 1 <= num <= len(source):
            raise UserError(f"--num {num}: there are {len(source)} images here")
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size}: at least one image at a time is needed")
        rows = np.sort(np.random.RandomState(CHOICE_SEED).permutation(len(source))[:num])
        devices = self._mesh.size
        batch_size = -(-min(batch_size, num) // devices) * devices
        split = mesh_lib.split_batch(self._mesh)
        return self._collect(
            one_ahead(
                (self._compiled(self._params, mesh_lib.put(images, split)), valid)
                for images, valid in _read(source, rows, batch_size)
            )
        )

    def _see_samples(self, params: Any, images: jax.Array) -> dict[str, Any]:
        finite = jnp.isfinite(images).all(axis=tuple(range(1, images.ndim)))
        return self._see(params, to_uint8(images)) | {"finite": finite}

    def _see(self, params: Any, images: jax.Array) -> dict[str, Any]:
        seen: dict[str, Any] = {"images": images} if self._wanted.images else {}
        asked = self._wanted.moments | self._wanted.rows
        for name, space in self._spaces.items():
            outputs = space.extract(params[name], images)
            seen[name] = {output: outputs[output] for of, output in sorted(asked) if of == name}
        return seen

    def _collect(self, batches: Iterable[dict[str, Any]]) -> Collected:
        found, images = Collected(), []
        rows: dict[Output, list[np.ndarray]] = {output: [] for output in self._wanted.rows}
        for seen in batches:
            finite = seen.get("finite", np.ones(1, bool))
            if not finite.all():
                raise UserError(
                    f"{np.count_nonzero(~finite)} of {len(finite)} samples are not finite: the model has diverged, or "
                    "its guide is too strong; take an earlier checkpoint or a smaller --omega"
                )
            images += [seen["images"]] if self._wanted.images else []
            for output in self._wanted.moments:
                values = _of(seen, output)
                found.moments.setdefault(output, Accumulator(values.shape[1])).add(values)
            for output in self._wanted.rows:
                check_finite(_of(seen, output))
                rows[output].append(_of(seen, output))
            found.num += len(jax.tree.leaves(seen)[0])
        found.rows = {output: np.concatenate(parts) for output, parts in rows.items()}
        found.images = np.concatenate(images) if images else None
        return found


def _of(seen: dict[str, Any], output: Output) -> np.ndarray:
    return seen[output[0]][output[1]]


def _read(source: Source, rows: np.ndarray, batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Full batches of the images ``rows``, the last filled up with the first ones, and how many of each are wanted."""
    num = len(rows)

    def read(batch: int) -> dict[str, np.ndarray]:
        places = np.arange(batch * batch_size, (batch + 1) * batch_size) % num
        return {"images": np.stack([source[int(row)][0] for row in rows[places]])}

    ahead = ReadAhead(read, 0, 0, min(MOST_READERS, os.cpu_count() or 1, -(-num // batch_size)))
    try:
        for start in range(0, num, batch_size):
            yield ahead.take(Watch())["images"], min(batch_size, num - start)
    finally:
        ahead.close()
