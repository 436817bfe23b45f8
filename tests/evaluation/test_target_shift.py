"""What a reference set does to the target, against brute force and the law of total variance."""

import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax.data.spec import unit_range
from sct_jax.diffusion import score
from sct_jax.evaluation import target_shift

SHAPE = (4, 4, 2)
IMAGES = np.random.default_rng(3).integers(0, 256, (60, *SHAPE), dtype=np.uint8)
LABELS = np.random.default_rng(4).integers(0, 3, 60)
TIMES = (0.3, 1.0, 3.0, 40.0)


def test_gaps_and_means_are_those_of_the_rows_and_their_mirror_images():
    rows, noise = target_shift.Rows(IMAGES, flip=True), np.random.default_rng(0).normal(size=32)
    whole = unit_range(np.concatenate([IMAGES, IMAGES[:, :, ::-1]])).reshape(120, -1)
    squared, along = rows.gaps(7, noise)
    np.testing.assert_allclose(squared, ((whole - whole[7]) ** 2).sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(along, (whole - whole[7]) @ noise, rtol=1e-4, atol=1e-5)
    weights = target_shift.softmax(target_shift.log_weights(squared, along, np.array(TIMES)))
    np.testing.assert_allclose(rows.mean(weights), weights @ whole, atol=1e-6)
    np.testing.assert_array_equal(rows.take(np.array([5, 65])), whole[[5, 65]].astype(np.float32))
    x_t = whole[7] + 3.0 * noise
    expected = target_shift.softmax(-((x_t - whole) ** 2).sum(axis=1) / (2 * 3.0**2))
    np.testing.assert_allclose(weights[2], expected, rtol=1e-5)


def test_all_rows_are_the_posterior_mean_that_training_takes():
    rows, noise = target_shift.Rows(IMAGES, flip=True), np.random.default_rng(1).normal(size=32).astype(np.float32)
    weights = target_shift.softmax(target_shift.log_weights(*rows.gaps(9, noise), np.array(TIMES)))
    x_0 = unit_range(IMAGES[9:10]).astype(np.float32)
    for t, estimate, weight in zip(TIMES, rows.mean(weights), weights, strict=True):
        found = score.dataset_posterior_mean(
            jnp.asarray(x_0), jnp.asarray(noise.reshape(x_0.shape)), jnp.array([t]), jnp.asarray(IMAGES), flip=True
        )
        np.testing.assert_allclose(estimate, np.ravel(found.estimate), atol=2e-5)
        assert 1 / (weight**2).sum() == pytest.approx(float(found.effective_sample_size[0]), rel=1e-4)


def test_pooling_gives_the_means_of_squares():
    pooled = target_shift.Rows(IMAGES, flip=True).pooled(2).take(np.array([3, 63]))
    expected = unit_range(IMAGES[3]).reshape(2, 2, 2, 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(pooled[0], expected.ravel(), atol=1e-6)
    np.testing.assert_allclose(pooled[1], expected[:, ::-1].ravel(), atol=1e-6)


@pytest.mark.parametrize("labels", [None, LABELS])
def test_one_row_is_cts_target_and_what_moved_and_what_is_left_share_cts_variance(labels):
    result = target_shift.target_shift(
        IMAGES, TIMES, (1, 8, 32), labels=labels, flip=True, num_queries=400, num_sets=4, seed=0
    )
    names = ("own_weight", "moved", "variance", "ct_variance")
    own_weight, moved, variance, ct = (np.asarray(result[name]) for name in names)
    np.testing.assert_array_equal(own_weight[:, 0], 1)
    np.testing.assert_array_equal(moved[:, 0], 0)
    np.testing.assert_allclose(variance[:, 0], ct, rtol=1e-4)
    np.testing.assert_array_equal(variance[:, -1], 0)
    np.testing.assert_allclose(moved[:, -1], ct)
    # the law of total variance, up to the noise of 400 queries
    np.testing.assert_allclose((moved + variance)[1:] / ct[1:, None], 1, atol=0.06)
    assert (np.diff(own_weight[1:], axis=1) < 0).all()  # more rows, less of the own sample
    assert (np.diff(own_weight, axis=0) < 0)[:, 1:].all()  # and with more noise
    assert (np.diff(moved[1:], axis=1) > 0).all()
    rows = 120 if labels is None else 2 * np.bincount(labels).max()
    assert result["effective_sample_size"][-1][-1] == pytest.approx(rows, rel=0.2)


def test_sizes_and_noise_levels_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        target_shift.target_shift(IMAGES, (0.0,), (1,))
    with pytest.raises(ValueError, match="positive"):
        target_shift.target_shift(IMAGES, (1.0,), (0,))
