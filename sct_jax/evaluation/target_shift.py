"""How far a reference set moves the target, and how noisy it leaves it: own weight, effective rows, shift, variance.

SCT's estimate ``x̂_0`` from ``n`` rows, the query's own among them, is ``E[x_0 | x_t, the set]``. With ``m`` the exact
posterior mean over all rows, the law of total variance splits CT's variance:

    E‖x_0 − m‖² = E‖x̂_0 − x_0‖² + E‖x̂_0 − m‖².

The first part is what the target moved by, the second the variance that is left. The share of the first tells how much
of SCT a reference set of that size is: 0 is CT, 1 the exact posterior mean.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sct_jax.data.spec import unit_range

CHANGED = 0.99  # a target counts as changed where its own sample weighs less


class Rows:
    """All rows that a query may see, with their mirror images where ``flip``: ``2 N`` rows of ``N`` images."""

    def __init__(self, images: np.ndarray, flip: bool):
        """``images`` are ``[N, H, W, C]``, uint8, or floats taken as they are."""
        self._shape, self.flip = images.shape[1:], flip
        self._flat = unit_range(images).astype(np.float32).reshape(len(images), -1)

    def __len__(self) -> int:
        return len(self._flat) * (2 if self.flip else 1)

    def gaps(self, own: int, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``‖row − x_0‖²`` and ``ε·(row − x_0)``, float64 ``[M]``, for the query ``x_0`` = row ``own``, ``ε`` ``[D]``.

        Each is summed from the differences, so nothing cancels. A query's posterior at every noise level and for every
        set of rows follows from these two: see :func:`log_weights`.
        """
        found = [self._gaps(self._flat[own], noise)]
        if self.flip:  # ‖mirror(row) − x_0‖ = ‖row − mirror(x_0)‖, and the same of the scalar product
            found.append(self._gaps(self._mirror(self._flat[own]), self._mirror(noise)))
        squared, along = (np.concatenate(parts) for parts in zip(*found, strict=True))
        return squared, along

    def mean(self, weights: np.ndarray) -> np.ndarray:
        """``Σ w row`` for weights ``[T, M]``, float32 ``[T, D]``."""
        weights, count = weights.astype(np.float32), len(self._flat)
        total = weights[:, :count] @ self._flat
        return total + self._mirror(weights[:, count:] @ self._flat) if self.flip else total

    def take(self, index: np.ndarray) -> np.ndarray:
        """The rows ``index``, ``[n, D]``."""
        count = len(self._flat)
        taken = self._flat[index % count]
        mirrored = index >= count
        taken[mirrored] = self._mirror(taken[mirrored])
        return taken

    def pooled(self, size: int) -> "Rows":
        """The same rows averaged over squares of ``size`` pixels."""
        height, width, channels = self._shape
        split = self._flat.reshape(-1, height // size, size, width // size, size, channels)
        return Rows(split.mean(axis=(2, 4)), self.flip)

    def _gaps(self, x_0: np.ndarray, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        squared, along = np.empty(len(self._flat)), np.empty(len(self._flat))
        for start in range(0, len(self._flat), 4096):
            difference = self._flat[start : start + 4096] - x_0
            squared[start : start + 4096] = np.einsum("nd,nd->n", difference, difference)
            along[start : start + 4096] = difference @ noise
        return squared, along

    def _mirror(self, flat: np.ndarray) -> np.ndarray:
        return flat.reshape(-1, *self._shape)[..., ::-1, :].reshape(flat.shape)


def log_weights(squared: np.ndarray, along: np.ndarray, t: np.ndarray) -> np.ndarray:
    """``log p(x_t | row)`` less that of the query's own row, ``[T, n]``, from :meth:`Rows.gaps`."""
    t = np.asarray(t, np.float64)[:, None]
    return -(squared - 2 * t * along) / (2 * t**2)


def softmax(values: np.ndarray) -> np.ndarray:
    """Over the last axis, in the type of ``values``."""
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def target_shift(
    images: np.ndarray,
    t: Sequence[float] | np.ndarray,
    sizes: Sequence[int],
    *,
    labels: np.ndarray | None = None,
    flip: bool = False,
    num_queries: int = 64,
    num_sets: int = 2,
    seed: int = 0,
) -> dict[str, Any]:
    """Means over queries, and over ``num_sets`` reference sets for each, at noise levels ``t [T]`` and sizes ``[S]``.

    A query is ``x_t = x_0 + t ε`` with ``x_0`` from the data; it keeps ``x_0``, ``ε`` and its sets over all ``t``. A
    set of size ``n`` is the own row and ``n − 1`` others, none twice. The last column is all rows.

    Args:
      images: ``[N, H, W, C]``, uint8, or floats taken as they are.
      labels: ``[N]``: a query sees rows of its class only, and so "all" are those of the class. None: all.
      flip: mirror images are rows too.

    Returns:
      Plain JSON types. ``[T][S + 1]``: ``own_weight``; ``changed``, the share of targets whose own weight is below
      0.99; ``effective_sample_size``; ``moved``, ``E‖x̂_0 − x_0‖²``; ``variance``, ``E‖x̂_0 − m‖²``. ``[T]``:
      ``ct_variance``, ``E‖x_0 − m‖²``.

    Raises:
      ValueError: for noise levels or sizes that are none.
    """
    t = np.asarray(t, np.float64)
    if t.ndim != 1 or not len(t) or not (t > 0).all() or min(sizes, default=1) < 1:
        raise ValueError(f"noise levels and sizes must be positive, got {t} and {list(sizes)}")
    rng = np.random.default_rng(seed)
    chosen = rng.integers(0, len(images), num_queries)
    classes = np.zeros(len(images)) if labels is None else np.asarray(labels)
    per_query = []
    for label in np.unique(classes[chosen]):
        seen = np.flatnonzero(classes == label)
        rows = Rows(images[seen], flip)
        for index in chosen[classes[chosen] == label]:
            per_query.append(_of_query(rows, int(np.searchsorted(seen, index)), t, sizes, num_sets, rng))
    result = {name: np.mean([each[name] for each in per_query], axis=0) for name in per_query[0]}
    return {name: value.tolist() for name, value in result.items()} | {
        "t": t.tolist(),
        "sizes": [*sizes, "all"],
        "queries": num_queries,
        "sets": num_sets,
        "flip": flip,
        "class_conditional": labels is not None,
        "seed": seed,
    }


def _of_query(
    rows: Rows, own: int, t: np.ndarray, sizes: Sequence[int], num_sets: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    noise = rng.standard_normal(rows.take(np.array([own])).shape[1]).astype(np.float32)
    squared, along = rows.gaps(own, noise)
    x_0 = rows.take(np.array([own]))[0].astype(np.float64)
    weights = softmax(log_weights(squared, along, t))
    exact = rows.mean(weights).astype(np.float64)
    columns = []
    for size in sizes:
        each = []
        for _ in range(num_sets):
            others = rng.choice(len(rows) - 1, min(size, len(rows)) - 1, replace=False)
            index = np.concatenate([[own], others + (others >= own)])
            part = softmax(log_weights(squared[index], along[index], t))
            each.append(_facts(part[:, 0], part, part.astype(np.float32) @ rows.take(index), x_0, exact))
        columns.append({name: np.mean([fact[name] for fact in each], axis=0) for name in each[0]})
    columns.append(_facts(weights[:, own], weights, exact, x_0, exact))
    stacked = {name: np.stack([column[name] for column in columns], axis=1) for name in columns[0]}
    return stacked | {"ct_variance": stacked["moved"][:, -1]}


def _facts(
    own_weight: np.ndarray, weights: np.ndarray, estimate: np.ndarray, x_0: np.ndarray, exact: np.ndarray
) -> dict[str, np.ndarray]:
    return {
        "own_weight": own_weight,
        "changed": (own_weight < CHANGED).astype(np.float64),
        "effective_sample_size": 1.0 / (weights**2).sum(axis=1),
        "moved": ((estimate - x_0) ** 2).sum(axis=1),
        "variance": ((estimate - exact) ** 2).sum(axis=1),
    }
