"""The Fréchet distance against closed forms and against scipy's matrix square root."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from sct_jax.errors import UserError
from sct_jax.evaluation import frechet
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


def six_decades(rng, dims):
    """A covariance whose eigenvalues fall from 10 to 1e-5, as those of a network's features do."""
    rotation, _ = np.linalg.qr(rng.standard_normal((dims, dims)))
    return (rotation * np.logspace(1, -5, dims)) @ rotation.T


@pytest.mark.parametrize("dims", [96, pytest.param(2048, marks=pytest.mark.slow)])
def test_badly_conditioned_covariances_match_scipy(dims):
    rng = np.random.default_rng(4)
    (mu1, mu2), cov1, cov2 = 0.1 * rng.standard_normal((2, dims)), six_decades(rng, dims), six_decades(rng, dims)
    expected = ((mu1 - mu2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * sqrtm(cov1 @ cov2).real)
    assert frechet_distance(mu1, cov1, mu2, cov2) == pytest.approx(expected, rel=1e-7)


def test_features_that_never_vary_only_move():
    """A feature that is always the same adds what its means differ by, to the last digits."""
    rng = np.random.default_rng(5)
    cov1, cov2, mu = six_decades(rng, 40), six_decades(rng, 40), rng.standard_normal(40)
    alive = np.arange(40) % 4 > 0
    dead1, dead2 = (cov * np.outer(alive, alive) for cov in (cov1, cov2))
    one, other = cov1[np.ix_(alive, alive)], cov2[np.ix_(alive, alive)]
    expected = frechet_distance(mu[alive], one, np.zeros(30), other) + (mu[~alive] ** 2).sum()
    assert frechet_distance(mu, dead1, np.zeros(40), dead2) == pytest.approx(expected, rel=1e-10)
    none = np.zeros((40, 40))
    assert frechet_distance(mu, none, np.zeros(40), cov2) == pytest.approx(mu @ mu + np.trace(cov2), rel=1e-12)
    assert frechet_distance(mu, none, np.zeros(40), none) == pytest.approx(mu @ mu, rel=1e-12)


def test_both_ways_to_the_root_agree(monkeypatch):
    rng = np.random.default_rng(6)
    cov1, cov2, zeros = random_covariance(rng, 30, 60), random_covariance(rng, 30, 60), np.zeros(30)
    quick = frechet_distance(zeros, cov1, zeros, cov2)
    monkeypatch.setattr(frechet, "CROSS_TOLERANCE", 0.0)
    assert frechet_distance(zeros, cov1, zeros, cov2) == pytest.approx(quick, rel=1e-12)
    monkeypatch.setattr(frechet, "REGULAR", np.inf)
    assert frechet_distance(zeros, cov1, zeros, cov2) == pytest.approx(quick, rel=1e-12)


def test_samples_of_known_gaussians_approach_the_closed_form():
    """The error of ``n`` samples of each falls as ``n^-1/2``."""
    rng = np.random.default_rng(7)
    rotation, _ = np.linalg.qr(rng.standard_normal((4, 4)))
    s1, s2, mu = np.array([1.0, 2.0, 0.5, 1.5]), np.array([1.5, 1.0, 0.5, 3.0]), np.array([1.0, -1.0, 0.5, 0.0])
    expected = mu @ mu + ((s1 - s2) ** 2).sum()
    for num in (100, 2_500, 62_500):
        one, other = ((rng.standard_normal((num, 4)) * s) @ rotation.T for s in (s1, s2))
        distance = frechet_distance(*moments(one + mu), *moments(other))
        assert abs(distance - expected) < 5 * expected / num**0.5
        assert abs(distance - expected) > 1e-9
