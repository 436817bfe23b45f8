"""The Inception Score at its ends, and its splits."""

import numpy as np
import pytest

from sct_jax.errors import UserError
from sct_jax.evaluation.inception_score import inception_score


def drawn(num=40, classes=6):
    return np.random.default_rng(0).dirichlet(np.full(classes, 0.3), num)


def test_sure_and_even_is_the_number_of_classes():
    """One-hot rows: their zeros have no logarithm and count nothing."""
    assert inception_score(np.tile(np.eye(6), (10, 1)), splits=10) == pytest.approx((6, 0), abs=1e-12)


def test_the_same_guess_for_every_image_is_1():
    assert inception_score(np.tile(drawn(1), (20, 1)), splits=2) == pytest.approx((1, 0), abs=1e-12)


def test_one_class_a_split_is_1_unless_shuffled():
    sorted_by_class = np.repeat(np.eye(5), 20, axis=0)
    assert inception_score(sorted_by_class, splits=5)[0] == pytest.approx(1)
    assert inception_score(sorted_by_class, splits=5, seed=0)[0] > 4


def test_is_the_divergence_of_the_definition():
    p = drawn()
    divergence = (p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()
    mean, std = inception_score(p, splits=1)
    assert mean == pytest.approx(np.exp(divergence), rel=1e-12)
    assert std == 0
    assert inception_score(np.random.default_rng(1).permutation(p), splits=1)[0] == pytest.approx(mean, rel=1e-12)


def test_splits_share_all_rows():
    """41 rows in 3 splits: 13, 14 and 14, by mean and population standard deviation."""
    p = drawn(41)
    scores = [inception_score(part, splits=1)[0] for part in (p[:13], p[13:27], p[27:])]
    assert inception_score(p, splits=3) == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12)


def test_bad_input():
    with pytest.raises(UserError, match="10 splits needs at least 10 samples, got 9"):
        inception_score(drawn(9))
    bad = drawn()
    bad[7] = np.nan
    with pytest.raises(UserError, match=r"^1 of 40 samples"):
        inception_score(bad)
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(np.log(drawn()))
    with pytest.raises(ValueError, match="sum to 1"):
        inception_score(drawn() * 1.01)
