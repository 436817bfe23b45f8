"""Mean and covariance of features that come in batches, in float64 and without keeping them."""

from typing import Any

import numpy as np

from sct_jax.errors import UserError

BLOCK = 1024  # rows whose scatter is taken at a time, whatever the size of the batches they come in


class Accumulator:
    """The moments of rows added in batches of any size, from any number of processes.

    Rows are gathered in blocks; a block is centred by its own mean before it is squared and joined to those
    before it by the pairwise update of Chan, Golub and LeVeque (1979, "Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances"), so that a mean far from 0 costs no digits. The size of the
    batches changes nothing at all, the order of the rows changes rounding only.
    """

    def __init__(self, dims: int):
        self.dims = dims
        self._num = 0
        self._mean = np.zeros(dims)
        self._scatter = np.zeros((dims, dims))  # sum of (row - mean)(row - mean)^T
        self._pending = np.empty((BLOCK, dims))
        self._waiting = 0  # rows of ``_pending`` that are in use

    @classmethod
    def from_moments(cls, num: int, mean: np.ndarray, cov: np.ndarray) -> "Accumulator":
        """One that has seen ``num`` rows of these moments, as another process or a file knows them."""
        made = cls(len(mean))
        made._num = int(num)
        made._mean += mean
        made._scatter += np.asarray(cov, np.float64) * max(num - 1, 0)
        return made

    def add(self, features: Any) -> "Accumulator":
        """Adds the rows of ``features [N, dims]``, of any floating type.

        Raises:
          UserError: for rows that are not finite, saying how many; none of the batch is then added.
        """
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != self.dims:
            raise ValueError(f"features must be [N, {self.dims}], got shape {features.shape}")
        check_finite(features)
        start = 0
        while start < len(features):
            part = features[start : start + BLOCK - self._waiting]
            self._pending[self._waiting : self._waiting + len(part)] = part
            self._waiting += len(part)
            start += len(part)
            if self._waiting == BLOCK:
                self._num, self._mean, self._scatter = self._all()
                self._waiting = 0
        return self

    def merge(self, other: "Accumulator") -> "Accumulator":
        """Adds the rows that ``other`` has seen; it stays as it is."""
        if other.dims != self.dims:
            raise ValueError(f"cannot merge moments of {other.dims} features into those of {self.dims}")
        self._num, self._mean, self._scatter = _joined(self._all(), other._all())
        self._waiting = 0
        return self

    @property
    def num(self) -> int:
        """Rows seen."""
        return self._num + self._waiting

    @property
    def mean(self) -> np.ndarray:
        """Float64 ``[dims]``."""
        self._check(1)
        return self._all()[1].copy()

    @property
    def cov(self) -> np.ndarray:
        """The unbiased covariance, float64 ``[dims, dims]``."""
        self._check(2)
        num, _, scatter = self._all()
        return scatter / (num - 1)

    def _check(self, fewest: int) -> None:
        if self.num < fewest:
            raise UserError(f"needs at least {fewest} sample{'s' * (fewest > 1)}, got {self.num}")

    def _all(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Number, mean and scatter with the rows that wait."""
        rows = self._pending[: self._waiting]
        if len(rows) == 0:
            return self._num, self._mean, self._scatter
        mean = rows.mean(axis=0)
        centred = rows - mean
        return _joined((self._num, self._mean, self._scatter), (len(rows), mean, centred.T @ centred))


def check_finite(features: np.ndarray, what: str = "samples") -> None:
    """Raises a UserError when rows of ``features [N, F]`` are not finite; ``what`` names the rows."""
    with np.errstate(invalid="ignore", over="ignore"):
        if np.isfinite(features.sum(dtype=np.float64)):
            return
    bad = int((~np.isfinite(features)).any(axis=1).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(features)} {what} have non-finite features: the model or its images are not finite"
        )


def _joined(
    one: tuple[int, np.ndarray, np.ndarray], other: tuple[int, np.ndarray, np.ndarray]
) -> tuple[int, np.ndarray, np.ndarray]:
    (num1, mean1, scatter1), (num2, mean2, scatter2) = one, other
    num = num1 + num2
    if num1 == 0 or num2 == 0:
        return other if num1 == 0 else one
    offset = mean2 - mean1
    scatter = scatter1 + scatter2
    scatter += np.outer(offset * (num1 * num2 / num), offset)
    return num, mean1 + offset * (num2 / num), scatter
