"""Moments in batches: numpy's, whatever the batches, the order, the processes and the distance from 0."""

import ml_dtypes
import numpy as np
import pytest

from sct_jax.errors import UserError
from sct_jax.evaluation import accumulate
from sct_jax.evaluation.accumulate import Accumulator
from sct_jax.evaluation.frechet import moments

DIMS = 7


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(accumulate, "BLOCK", 16)


def rows(num=103, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((num, DIMS)) @ rng.standard_normal((DIMS, DIMS)) + offset


def in_batches(features, sizes):
    accumulator = Accumulator(DIMS)
    start = 0
    for size in sizes:
        accumulator.add(features[start : start + size])
        start += size
    assert start >= len(features)
    return accumulator


def assert_agree(accumulator, features, tolerance):
    """Within ``tolerance``, relative to the spread of the two features."""
    expected = np.cov(features.T)
    spread = np.sqrt(np.diag(expected))
    assert accumulator.num == len(features)
    assert accumulator.mean.dtype == accumulator.cov.dtype == np.float64
    np.testing.assert_allclose(accumulator.mean, features.mean(axis=0), rtol=tolerance, atol=tolerance * spread.max())
    assert np.abs((accumulator.cov - expected) / np.outer(spread, spread)).max() < tolerance


@pytest.mark.parametrize("num", [2, 15, 16, 17, 103])
def test_moments_are_numpys(num):
    assert_agree(in_batches(rows(num), [num]), rows(num), 1e-13)


@pytest.mark.parametrize("sizes", [[1] * 103, [0, 103], [16] * 7, [50, 3, 50], [102, 1]])
def test_batch_size_changes_no_bit(sizes):
    whole, parts = in_batches(rows(), [103]), in_batches(rows(), sizes)
    np.testing.assert_array_equal(whole.mean, parts.mean)
    np.testing.assert_array_equal(whole.cov, parts.cov)


def test_looking_changes_no_bit():
    watched = Accumulator(DIMS)
    for row in rows():
        watched.add(row[None])
        assert watched.mean.shape == (DIMS,)
        if watched.num > 1:
            assert np.all(np.diag(watched.cov) > 0)
    np.testing.assert_array_equal(watched.cov, in_batches(rows(), [103]).cov)


def test_order_changes_rounding_only():
    assert_agree(in_batches(np.random.default_rng(1).permutation(rows()), [103]), rows(), 1e-13)


def test_a_mean_far_from_zero_costs_no_digits():
    """Sums of squares would keep four digits here."""
    near = rows()
    far = near + 2.0**20
    accumulator = in_batches(far, [103])
    np.testing.assert_allclose(accumulator.cov, np.cov((far - 2.0**20).T), rtol=1e-8)


@pytest.mark.parametrize("split", [0, 1, 16, 40, 103])
def test_merge_is_adding_the_rows(split):
    one, other = in_batches(rows()[:split], [split]), in_batches(rows()[split:], [103])
    before = other.num, other._all()[1].copy(), other._all()[2].copy()
    assert one.merge(other) is one
    assert_agree(one, rows(), 1e-13)
    one.add(rows(30, seed=1))
    assert_agree(one, np.concatenate([rows(), rows(30, seed=1)]), 1e-13)
    assert other.num == before[0]
    np.testing.assert_array_equal(other._all()[1], before[1])
    np.testing.assert_array_equal(other._all()[2], before[2])


def test_from_moments_goes_on_where_another_stopped():
    done = in_batches(rows()[:60], [60])
    resumed = Accumulator.from_moments(done.num, done.mean, done.cov).add(rows()[60:])
    assert_agree(resumed, rows(), 1e-13)
    assert_agree(Accumulator.from_moments(0, np.zeros(DIMS), np.zeros((DIMS, DIMS))).add(rows()), rows(), 1e-13)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_low_precision_rows_are_summed_in_float64(dtype):
    features = (rows() + 3).astype(dtype)
    assert_agree(in_batches(features, [103]), features.astype(np.float64), 1e-13)


def test_frechet_moments_take_an_accumulator():
    mean, cov = moments(in_batches(rows(), [103]))
    np.testing.assert_array_equal(cov, moments(rows())[1])
    np.testing.assert_array_equal(mean, moments(rows())[0])
    with pytest.raises(UserError, match="at least 8 held-out images, got 7"):
        moments(in_batches(rows(7), [7]), "held-out images")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_rows_are_counted_and_not_added(bad):
    features = rows()
    features[[3, 99], 1] = bad
    features[3, 2] = -bad
    accumulator = in_batches(rows(20), [20])
    with pytest.raises(UserError, match=r"^2 of 103 samples have non-finite features"):
        accumulator.add(features)
    assert_agree(accumulator, rows(20), 1e-13)


def test_too_few_rows_say_how_many():
    with pytest.raises(UserError, match="at least 1 sample, got 0"):
        _ = Accumulator(DIMS).mean
    with pytest.raises(UserError, match="at least 2 samples, got 1"):
        _ = in_batches(rows(1), [1]).cov


def test_other_features_are_refused():
    with pytest.raises(ValueError, match=r"\[N, 7\]"):
        Accumulator(DIMS).add(np.zeros((3, 8)))
    with pytest.raises(ValueError, match="8 features"):
        Accumulator(DIMS).merge(Accumulator(8))
