"""The measured variance of the target: limits, the closed form at size 1, the fall with reference size."""

import numpy as np
import pytest

from sct_jax.evaluation import target_covariance


@pytest.fixture(scope="module")
def pixels(digits):
    return digits[0] / 127.5 - 1, digits[1]


def total_variance(images):
    return images.reshape(len(images), -1).var(axis=0).sum()


def test_falls_with_the_reference_size_and_is_ct_at_one(pixels):
    images, labels = pixels
    t = [0.5, 1.0, 2.0, 8.0]
    result = target_covariance(images, t, (1, 16, 128, "all"), labels=labels, num_queries=48, num_draws=64)
    trace = np.array(result["trace"])
    assert trace.shape == (4, 4)
    assert (np.diff(trace, axis=1) < 0).all()
    assert (trace[:, 3] == 0).all()
    np.testing.assert_allclose(trace[:, 0], result["ct_trace"], rtol=0.06)
    assert (result["class_conditional"], result["queries"]) == (True, 48)


def test_ct_trace_is_the_posterior_variance_by_hand():
    """Two images a distance 2a apart: Tr Cov = 4 a² p (1 − p), averaged over the noise."""
    images = np.zeros((2, 1, 1, 1))
    images[0], images[1] = 0.5, -0.5
    (measured,) = target_covariance(images, [0.7], (1,), num_queries=4000, num_draws=2, seed=1)["ct_trace"]
    x0 = 0.5
    noise = np.linspace(-8, 8, 4001)
    density = np.exp(-(noise**2) / 2) / np.exp(-(noise**2) / 2).sum()
    x = x0 + 0.7 * noise
    own = 1 / (1 + np.exp((-((x + 0.5) ** 2) + (x - 0.5) ** 2) / (2 * 0.7**2)))
    assert measured == pytest.approx((own * (1 - own) * density).sum(), rel=0.03)


def test_no_variance_at_vanishing_noise(pixels):
    result = target_covariance(pixels[0], [0.002, 0.02], (1, 16), num_queries=16, num_draws=16)
    assert np.max(result["trace"]) < 1e-12
    assert np.max(result["ct_trace"]) < 1e-12


def test_at_infinite_noise_the_mean_of_n_rows(pixels):
    """Posterior and weights are flat: one row has the data's variance, the mean of n has it over n."""
    images = pixels[0]
    result = target_covariance(images, [1e6], (1, 16, 128), num_queries=32, num_draws=128)
    variance = total_variance(images)
    assert result["ct_trace"][0] == pytest.approx(variance, rel=1e-3)
    np.testing.assert_allclose(result["trace"][0], variance / np.array([1, 16, 128]), rtol=0.04)


def test_labels_confine_the_posterior_to_the_class(pixels):
    images, labels = pixels
    result = target_covariance(images, [1e6], (1,), labels=labels, num_queries=200, num_draws=2)
    within = np.average([total_variance(images[labels == k]) for k in range(10)], weights=np.bincount(labels))
    assert result["ct_trace"][0] == pytest.approx(within, rel=0.06)
    assert within < 0.7 * total_variance(images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"t": [0.0]}, "positive"), ({"t": []}, "non-empty"), ({"reference_sizes": (0,)}, '"all", got 0')],
)
def test_bad_arguments(pixels, arguments, message):
    with pytest.raises(ValueError, match=message):
        target_covariance(pixels[0][:10], **({"t": [1.0]} | arguments))
