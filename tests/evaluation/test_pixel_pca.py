"""Principal components of pixels, and the orientation number the library's thresholds are stated in."""

import numpy as np
import pytest

from sct_jax.evaluation import PixelPCA, frechet_distance, moments
from sct_jax.evaluation import features as features_module


def test_features_are_the_leading_components(digits):
    images, _ = digits
    features = PixelPCA.fit(images, dims=32)(images)
    eigenvalues = np.linalg.eigvalsh(np.cov((images.reshape(len(images), -1) / 127.5 - 1).T))[::-1]
    np.testing.assert_allclose(np.cov(features.T), np.diag(eigenvalues[:32]), atol=1e-9)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-9)


def test_blocks_do_not_change_the_result(digits, monkeypatch):
    images = digits[0][:200]
    whole = PixelPCA.fit(images)(images)
    monkeypatch.setattr(features_module, "BLOCK", 64)
    in_blocks = PixelPCA.fit(images)(images)
    np.testing.assert_allclose(np.abs(whole), np.abs(in_blocks), atol=1e-8)


def test_fewer_components_than_asked_where_the_data_has_fewer(digits):
    assert PixelPCA.fit(digits[0][:5])(digits[0]).shape == (1797, 4)


def test_bootstrap_floor_of_the_digits(digits):
    """1,797 real digits drawn with replacement against the 1,797 themselves: about 0.06."""
    images, _ = digits
    features = PixelPCA.fit(images)(images)
    reference = moments(features)
    draws = [np.random.default_rng(seed).integers(0, 1797, 1797) for seed in range(5)]
    assert np.mean([frechet_distance(*moments(features[d]), *reference) for d in draws]) == pytest.approx(
        0.06, abs=0.01
    )
