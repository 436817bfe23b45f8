"""The Fréchet distance between two sets of features, each summarised as a Gaussian.

``d² = ‖μ₁ − μ₂‖² + Tr(C₁ + C₂ − 2 (C₁^½ C₂ C₁^½)^½)`` (Dowson and Landau, 1982; as a score of generators:
Heusel et al., 2017, "GANs Trained by a Two Time-Scale Update Rule", section 3). Everything is float64 on the
host.
"""

import numpy as np

from sct_jax.errors import UserError
from sct_jax.evaluation.accumulate import Accumulator, check_finite


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

    ``Tr (C₁^½ C₂ C₁^½)^½`` is the nuclear norm of ``C₁^½ C₂^½``. Taking singular values of that product,
    instead of roots of the eigenvalues of ``C₁^½ C₂ C₁^½``, keeps full precision when a covariance is
    singular.
    """
    difference = np.asarray(mu1, np.float64) - np.asarray(mu2, np.float64)
    cov1, cov2 = np.asarray(cov1, np.float64), np.asarray(cov2, np.float64)
    cross = np.linalg.svd(_square_root(cov1) @ _square_root(cov2), compute_uv=False).sum()
    return max(0.0, float(difference @ difference + np.trace(cov1) + np.trace(cov2) - 2 * cross))


def _square_root(cov: np.ndarray) -> np.ndarray:
    """Symmetric square root of a positive semi-definite matrix.

    Eigenvalues within rounding of 0 count as 0: their roots would be 1e-8 of the largest, where the truth is
    0.
    """
    values, vectors = np.linalg.eigh((cov + cov.T) / 2)
    values[values < len(cov) * np.finfo(np.float64).eps * values[-1]] = 0
    return (vectors * np.sqrt(values)) @ vectors.T
