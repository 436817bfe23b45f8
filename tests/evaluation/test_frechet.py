"""The Fréchet distance against closed forms and against scipy's matrix square root."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from sct_jax.errors import UserError
from sct_jax.evaluation.frechet import frechet_distance, moments


def random_covariance(rng, dims, rank=None):
    factor = rng.standard_normal((dims, rank or dims))
    return factor @ factor.T


def test_commuting_covariances_closed_form():
    """Diagonal covariances: |mu|^2 + sum (s1 - s2)^2."""
    s1, s2, mu = np.array([1.0, 2.0, 0.0]), np.array([3.0, 0.5, 1.0]), np.array([1.0, -2.0, 0.5])
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))
    cov1, cov2 = (rotation @ np.diag(s**2) @ rotation.T for s in (s1, s2))
    expected = mu @ mu + ((s1 - s2) ** 2).sum()
    assert frechet_distance(mu, cov1, np.zeros(3), cov2) == pytest.approx(expected, rel=1e-12)


def test_non_commuting_covariances_match_scipy():
    rng = np.random.default_rng(1)
    cov1, cov2 = random_covariance(rng, 8), random_covariance(rng, 8)
    mu1, mu2 = rng.standard_normal((2, 8))
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * sqrtm(cov1 @ cov2).real)
    assert np.abs(cov1 @ cov2 - cov2 @ cov1).max() > 1
    assert frechet_distance(mu1, cov1, mu2, cov2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank", [3, 12])
def test_zero_for_equal_symmetric_otherwise(rank):
    """Also for singular covariances, where square roots of rounded eigenvalues would leave 1e-7."""
    rng = np.random.default_rng(2)
    cov1, cov2 = random_covariance(rng, 12, rank), random_covariance(rng, 12, rank)
    mu1, mu2 = rng.standard_normal((2, 12))
    assert frechet_distance(mu1, cov1, mu1, cov1) < 1e-11
    forward, backward = frechet_distance(mu1, cov1, mu2, cov2), frechet_distance(mu2, cov2, mu1, cov1)
    assert forward > 1
    assert forward == pytest.approx(backward, rel=1e-10)


def test_singular_in_orthogonal_subspaces():
    """Covariances without overlap: the cross term vanishes, so the distance is the sum of the traces."""
    assert frechet_distance(np.zeros(2), np.diag([4.0, 0]), np.zeros(2), np.diag([0, 9.0])) == pytest.approx(13)


def test_moments_are_numpys_and_ignore_order():
    rng = np.random.default_rng(3)
    features = rng.standard_normal((50, 4)).astype(np.float32) + 100
    mu, cov = moments(features)
    assert mu.dtype == cov.dtype == np.float64
    np.testing.assert_allclose(cov, np.cov(features.astype(np.float64).T), rtol=1e-12)
    mu_shuffled, cov_shuffled = moments(rng.permutation(features))
    np.testing.assert_allclose(mu, mu_shuffled, rtol=1e-14)
    np.testing.assert_allclose(cov, cov_shuffled, rtol=1e-10)


def test_too_few_samples_says_how_many():
    moments(np.random.default_rng(0).standard_normal((33, 32)))
    with pytest.raises(UserError, match="at least 33 samples, got 32"):
        moments(np.random.default_rng(0).standard_normal((32, 32)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_features_are_refused(bad):
    features = np.random.default_rng(0).standard_normal((10, 2))
    features[3, 1] = bad
    with pytest.raises(UserError, match="1 of 10 samples"):
        moments(features)
