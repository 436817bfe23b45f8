"""Precision and recall, density and coverage: sets of features as unions of balls around their points.

The ball around a point of a set reaches to its k-th nearest neighbour in that set. Precision is the share of samples
in a ball of a real image, recall the share of real images in a ball of a sample (Kynkäänniemi et al., 2019, "Improved
Precision and Recall Metric for Assessing Generative Models", equations 1 to 3). Density counts the real balls a sample
lies in, over k; coverage is the share of real balls with a sample inside (Naeem et al., 2020, "Reliable Fidelity and
Diversity Metrics for Generative Models", equations 3 and 4). A point at exactly the radius is inside for precision and
recall, as in the definition, and outside for density and coverage, as in their authors' code: a set then has
precision, recall, density and coverage 1 against itself.

All pairs of distances are taken on the device in float32, a block of rows at a time, as ``‖a‖² + ‖b‖² − 2 a·b`` of
centred features. What that may lose to rounding is known, and every comparison within reach of it is made again in
float64 from differences: the results are those of exact arithmetic.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sct_jax.errors import UserError
from sct_jax.evaluation.accumulate import check_finite

BLOCK_PAIRS = 1 << 26  # distances held at a time on the device
CHUNK = 2048  # rows held at a time as float64
SPARE = 8  # candidates for the k nearest beyond k
UNIT = 2.0**-24  # float32's rounding
DEVIATIONS = 8  # of a sum's rounding error that are reckoned with


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> dict[str, float]:
    """``precision`` and ``recall`` of the samples ``fake [M, F]`` against ``real [N, F]``.

    Raises:
      UserError: for ``k`` or fewer rows, and for features that are not finite.
    """
    real_points, fake_points = _on_device(real, fake, k)
    in_real, _ = Balls(real_points, k).count(fake_points, closed=True, whether=True)
    in_fake, _ = Balls(fake_points, k).count(real_points, closed=True, whether=True)
    return {"precision": float(np.mean(in_real > 0)), "recall": float(np.mean(in_fake > 0))}


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> dict[str, float]:
    """``density`` and ``coverage`` of the samples ``fake [M, F]`` against ``real [N, F]``; raises like the above."""
    real_points, fake_points = _on_device(real, fake, k)
    in_real, inside = Balls(real_points, k).count(fake_points, closed=False)
    return {"density": float(np.mean(in_real) / k), "coverage": float(np.mean(inside > 0))}


class Centred(NamedTuple):
    """Centred features ``[N, F]`` and their squared norms ``[N]``, both float32."""

    features: jax.Array
    norms: jax.Array


@partial(jax.jit, static_argnames="count")
def neighbourhood(
    rows: Centred, own: jax.Array, points: Centred, *, count: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The ``count`` points that may be nearest to each of ``B`` rows, itself (``points[own]``, own ``[B]``) left out.

    Returns lower and upper bounds of their squared distances, ``[B, count]`` by rising lower bound, and which of
    ``N`` points they are. The distance to any other point is at least the last lower bound.
    """
    squared, error = _squared_distances(rows, points)
    lower = jnp.where(jnp.arange(len(points.norms)) == own[:, None], jnp.inf, squared - error)
    negated, nearest = jax.lax.top_k(-lower, count)
    return -negated, -negated + 2 * jnp.take_along_axis(error, nearest, axis=1), nearest


@jax.jit
def membership(
    rows: Centred, valid: jax.Array, centres: Centred, lower: jax.Array, upper: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Which of ``B`` rows lie in the balls around ``N`` centres whose squared radii are in ``[lower, upper] [N]``.

    Returns the number of balls that surely hold each row ``[B]``, of rows that each ball surely holds ``[N]``, and as
    bits the pairs that are unsure ``[B, ceil(N / 8)]``; rows that are not ``valid [B]`` count nowhere.
    """
    squared, error = _squared_distances(rows, centres)
    inside = (squared + error < lower) & valid[:, None]
    unsure = (squared - error <= upper) & ~inside & valid[:, None]
    return inside.sum(axis=1), inside.sum(axis=0), jnp.packbits(unsure, axis=1)


class Points:
    """A set of features: as given on the host, and centred, scaled, in float32 on the device."""

    def __init__(self, features: np.ndarray, centre: np.ndarray, scale: float):
        self.features, self.scale = features, scale
        centred = np.empty(features.shape, np.float32)
        norms = np.empty(len(features), np.float32)
        for rows in _parts(features):
            values = (features[rows] - centre) * scale
            centred[rows], norms[rows] = values, np.sum(np.square(values), axis=1)
        self.device = Centred(jnp.asarray(centred), jnp.asarray(norms))

    def __len__(self) -> int:
        return len(self.features)

    def on_device(self, rows: np.ndarray) -> Centred:
        """Some rows."""
        return Centred(*(x[rows] for x in self.device))

    def blocks(self, pairs_with: int) -> list[np.ndarray]:
        """Rows ``[B]``, equally many each time; the last block goes on with rows from the beginning."""
        size = min(len(self), max(1, BLOCK_PAIRS // pairs_with))
        return [np.arange(start, start + size) for start in range(0, len(self), size)]

    def squared_distances(self, rows: np.ndarray, others: "Points", other_rows: np.ndarray) -> np.ndarray:
        """From row to row in float64 ``[P]``, in units of the device's; the same pair gives the same bits."""
        result = np.empty(len(rows))
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            difference = self.features[rows[part]].astype(np.float64)
            difference -= others.features[other_rows[part]]
            difference *= self.scale
            result[part] = np.sum(np.square(difference, out=difference), axis=1)
        return result


class Balls:
    """Balls around the points of a set that reach to their k-th nearest neighbours in it."""

    def __init__(self, points: Points, k: int):
        self.points, self.k = points, k
        count = min(k + SPARE, len(points) - 1)
        self._lower, self._upper = np.empty((2, len(points), count), np.float32)
        self._nearest = np.empty((len(points), count), np.int64)
        for rows in points.blocks(len(points)):
            rows = rows % len(points)
            found = neighbourhood(points.on_device(rows), jnp.asarray(rows), points.device, count=count)
            self._lower[rows], self._upper[rows], self._nearest[rows] = map(np.asarray, found)
        self._upper.sort(axis=1)
        self._exact = np.full(len(points), np.nan)

    def count(self, queries: Points, *, closed: bool, whether: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """How many balls hold each of ``queries`` ``[M]``, and how many queries each ball holds ``[N]``.

        ``closed``: a point at exactly the radius is inside. ``whether``: only if there are any has to be right.
        """
        holding, held = np.zeros(len(queries), np.int64), np.zeros(len(self.points), np.int64)
        lower, upper = jnp.asarray(self._lower[:, self.k - 1]), jnp.asarray(self._upper[:, self.k - 1])
        for block in queries.blocks(len(self.points)):
            rows, valid = block % len(queries), block < len(queries)
            found = membership(queries.on_device(rows), jnp.asarray(valid), self.points.device, lower, upper)
            sure, sure_held, unsure = map(np.asarray, found)
            holding[rows[valid]] += sure[valid]
            held += sure_held
            position, centre = _set_bits(unsure)
            row = rows[position]
            if whether:
                open_ones = (holding[row] == 0) | (held[centre] == 0)
                row, centre = row[open_ones], centre[open_ones]
            squared, radius = queries.squared_distances(row, self.points, centre), self._squared_radii(centre)
            inside = squared <= radius if closed else squared < radius
            np.add.at(holding, row[inside], 1)
            np.add.at(held, centre[inside], 1)
        return holding, held

    def _squared_radii(self, centres: np.ndarray) -> np.ndarray:
        """In float64, of some balls ``[P]``; each is worked out once."""
        new = np.unique(centres[np.isnan(self._exact[centres])])
        candidates = self._nearest[new]
        squared = self.points.squared_distances(np.repeat(new, candidates.shape[1]), self.points, candidates.ravel())
        radii = np.sort(squared.reshape(candidates.shape), axis=1)[:, self.k - 1]
        if candidates.shape[1] < len(self.points) - 1:
            for at in np.flatnonzero((radii > self._lower[new, -1]) & (radii > 0)):
                others = np.delete(np.arange(len(self.points)), new[at])
                squared = self.points.squared_distances(np.full(len(others), new[at]), self.points, others)
                radii[at] = np.partition(squared, self.k - 1)[self.k - 1]
        self._exact[new] = radii
        return self._exact[centres]


def _squared_distances(rows: Centred, points: Centred) -> tuple[jax.Array, jax.Array]:
    """``[B, N]``, and by how much they may be wrong.

    Roundings of a sum of F products go both ways: its error is within ``λ √F u`` of the sum of their magnitudes, but
    for a probability of ``2 F exp(-λ²/2)`` (Higham and Mary, 2019, "A New Approach to Probabilistic Rounding Error
    Analysis", theorem 3.1). Rounding the features, the norms and the three terms adds less than 16 u.
    """
    norms = rows.norms[:, None] + points.norms
    product = jnp.matmul(rows.features, points.features.T, precision=jax.lax.Precision.HIGHEST)
    return norms - 2 * product, norms * ((DEVIATIONS * rows.features.shape[1] ** 0.5 + 16) * UNIT)


def _on_device(real: np.ndarray, fake: np.ndarray, k: int) -> tuple[Points, Points]:
    real, fake = np.asarray(real), np.asarray(fake)
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or k < 1:
        raise ValueError(f"need features [N, F] and [M, F] and k >= 1, got {real.shape}, {fake.shape} and k = {k}")
    for features, what in ((real, "real images"), (fake, "samples")):
        if len(features) <= k:
            raise UserError(f"balls to the neighbour {k} need at least {k + 1} {what}, got {len(features)}")
        check_finite(features, what)
    centre = (real.sum(axis=0, dtype=np.float64) + fake.sum(axis=0, dtype=np.float64)) / (len(real) + len(fake))
    spread = float(np.mean([max(np.abs(x[rows] - centre).max() for rows in _parts(x)) for x in (real, fake)]))
    return Points(real, centre, 1 / (spread or 1.0)), Points(fake, centre, 1 / (spread or 1.0))


def _parts(features: np.ndarray) -> Iterator[slice]:
    """All rows in order, at most CHUNK at a time."""
    return (slice(start, start + CHUNK) for start in range(0, len(features), CHUNK))


def _set_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the bits that are set in ``packed [B, N / 8]``."""
    row, byte = np.nonzero(packed)
    which, bit = np.nonzero(np.unpackbits(packed[row, byte][:, None], axis=1))
    return row[which], byte[which] * 8 + bit
