"""The Fréchet distance between two sets of features, each summarised as a Gaussian.

``d² = ‖μ₁ − μ₂‖² + Tr(C₁ + C₂ − 2 (C₁^½ C₂ C₁^½)^½)`` (Dowson and Landau, 1982; as a score of generators:
Heusel et al., 2017, "GANs Trained by a Two Time-Scale Update Rule", section 3). Everything is float64 on the
host.
"""

import numpy as np
from scipy.linalg import lapack

from sct_jax.errors import UserError
from sct_jax.evaluation.accumulate import Accumulator, check_finite

REGULAR = 1e-12  # reciprocal condition number from which a covariance counts as regular
CROSS_TOLERANCE = 1e-9  # of the trace of the root, relative to the traces of the covariances


def moments(features: np.ndarray | Accumulator, what: str = "samples") -> tuple[np.ndarray, np.ndarray]:
    """Mean ``[F]`` and unbiased covariance ``[F, F]`` of ``features [N, F]`` or of what was accumulated, both float64.

    Raises:
      UserError: for fewer rows than ``F + 1``, which cannot fill a covariance, so that their distance would
        measure the shortage and not the images; and for features that are not finite. ``what`` names the rows.
    """
    if not isinstance(features, Accumulator):
        features = np.asarray(features)
        if features.ndim != 2:
            raise ValueError(f"features must be [N, F], got shape {features.shape}")
        check_finite(features, what)
        features = Accumulator(features.shape[1]).add(features)
    num, dims = features.num, features.dims
    if num < dims + 1:
        raise UserError(f"a Fréchet distance on {dims} features needs at least {dims + 1} {what}, got {num}")
    return features.mean, features.cov


def frechet_distance(mu1: np.ndarray, cov1: np.ndarray, mu2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Fréchet distance between ``N(mu1 [F], cov1 [F, F])`` and ``N(mu2, cov2)``; at least 0.

    With any factors ``C₁ = A Aᵀ``, ``C₂ = B Bᵀ`` the trace of the root is the sum of the singular values of ``Aᵀ B``,
    which is precise for singular covariances too, where roots of eigenvalues of ``C₁ C₂`` are not.
    """
    difference = np.asarray(mu1, np.float64) - np.asarray(mu2, np.float64)
    cov1, cov2 = np.asarray(cov1, np.float64), np.asarray(cov2, np.float64)
    traces = float(np.trace(cov1) + np.trace(cov2))
    cross = _sum_of_singular_values(_factor(cov1).T @ _factor(cov2), CROSS_TOLERANCE * traces)
    return max(0.0, float(difference @ difference + traces - 2 * cross))


def _factor(cov: np.ndarray) -> np.ndarray:
    """``A [F, r]`` with ``A Aᵀ`` the positive semi-definite ``cov`` of rank ``r``: Cholesky's where it is regular.

    Else it is of the eigenvectors whose eigenvalues are not within rounding of 0: the roots of those would be 1e-8 of
    the largest, where the truth is 0.
    """
    cov = (cov + cov.T) / 2
    factor, failed = lapack.dpotrf(cov, lower=True, clean=True)
    if not failed and lapack.dpocon(factor, np.abs(cov).sum(axis=0).max(), uplo="L")[0] > REGULAR:
        return factor
    values, vectors = np.linalg.eigh(cov)
    kept = values > len(cov) * np.finfo(np.float64).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


def _sum_of_singular_values(matrix: np.ndarray, tolerance: float) -> float:
    """From the eigenvalues of its Gram matrix, in half the time, where their rounding costs less than ``tolerance``."""
    eps = np.finfo(np.float64).eps
    smaller = matrix if len(matrix) > matrix.shape[1] else matrix.T
    squares = np.linalg.eigvalsh(smaller.T @ smaller) if matrix.size else np.zeros(0)
    if len(squares) and squares[0] > 0 and 0.5 * eps * squares[-1] * np.sum(squares**-0.5) < tolerance:
        return float(np.sqrt(squares).sum())
    return float(np.linalg.svd(matrix, compute_uv=False).sum())
