"""KID: unbiased, invariant, and as uncertain as it says."""

import itertools
import math

import numpy as np
import pytest

from sct_jax.errors import UserError
from sct_jax.evaluation.kernel import kid, mmd2_unbiased


def rows(num, dims=3, shift=0.0, seed=0):
    return np.random.default_rng(seed).standard_normal((num, dims)) + shift


def test_is_the_sum_over_pairs():
    x, y = rows(5), rows(4, shift=1, seed=1)

    def kernel(a, b):
        return (a @ b / 3 + 1) ** 3

    within = [np.mean([kernel(a, b) for a, b in itertools.permutations(part, 2)]) for part in (x, y)]
    between = np.mean([kernel(a, b) for a, b in itertools.product(x, y)])
    assert mmd2_unbiased(x, y) == pytest.approx(sum(within) - 2 * between, rel=1e-12)


def test_linear_kernel_is_the_squared_distance_of_means_without_bias():
    """Degree 1, no constant: ``‖x̄ − ȳ‖²`` less what the scatter of each mean adds to it."""
    x, y = rows(6, 2), rows(9, 2, shift=2, seed=1)
    bias = np.trace(np.cov(x.T)) / 6 + np.trace(np.cov(y.T)) / 9
    expected = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() - bias
    assert mmd2_unbiased(x, y, degree=1, gamma=1.0, coef0=0.0) == pytest.approx(expected, rel=1e-10)


def test_zero_on_average_for_one_distribution():
    """Over 600 pairs of small sets; the biased estimate would be positive in every one."""
    values = [mmd2_unbiased(rows(8, seed=(0, i)), rows(8, seed=(1, i))) for i in range(600)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 600**0.5
    assert min(values) < 0 < max(values)


def test_order_and_roles_change_rounding_only():
    x, y = rows(30), rows(20, shift=0.5, seed=1)
    shuffle = np.random.default_rng(2).permutation
    assert mmd2_unbiased(shuffle(x), shuffle(y)) == pytest.approx(mmd2_unbiased(x, y), rel=1e-10)
    assert mmd2_unbiased(y, x) == pytest.approx(mmd2_unbiased(x, y), rel=1e-12)
    assert mmd2_unbiased(x.astype(np.float32), y.astype(np.float32)) == pytest.approx(mmd2_unbiased(x, y), rel=1e-5)


@pytest.mark.parametrize(("subsets", "size"), [(100, 20), (10, 20), (50, 60)])
def test_the_standard_error_is_that_of_the_mean_over_data_sets(subsets, size):
    """Also where 100 subsets of 20 share 200 rows: s / √100 would be a third of the truth there."""
    estimates = [
        kid(rows(200, seed=(0, i)), rows(200, shift=0.4, seed=(1, i)), subsets=subsets, subset_size=size, seed=i)
        for i in range(80)
    ]
    means, errors = np.transpose(estimates)
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(means.std(ddof=1), rel=0.3)


def test_subsets_of_everything_are_the_whole_and_have_no_error():
    x, y = rows(30), rows(30, shift=1, seed=1)
    mean, error = kid(x, y, subsets=4, subset_size=30)
    assert mean == pytest.approx(mmd2_unbiased(x, y), rel=1e-12)
    assert math.isnan(error)
    assert math.isnan(kid(x, y, subsets=1, subset_size=10)[1])


def test_seeds():
    x, y = rows(50), rows(50, shift=1, seed=1)
    options = {"subsets": 3, "subset_size": 10}
    assert kid(x, y, seed=1, **options) == kid(x, y, seed=1, **options) != kid(x, y, seed=2, **options)


def test_too_few_samples_say_how_many():
    with pytest.raises(UserError, match=r"at least 1000 .* got 999 and 2000$"):
        kid(rows(999), rows(2000))
    with pytest.raises(UserError, match="at least 2 real images and 2 samples, got 2 and 1"):
        mmd2_unbiased(rows(2), rows(1))


def test_bad_features_are_refused():
    bad = rows(20)
    bad[4:6, 1] = np.inf
    with pytest.raises(UserError, match=r"^2 of 20 samples"):
        kid(rows(20), bad, subset_size=10)
    with pytest.raises(UserError, match=r"^2 of 20 real images"):
        kid(bad, rows(20), subset_size=10)
    with pytest.raises(ValueError, match="shapes"):
        mmd2_unbiased(rows(4, 3), rows(4, 2))
