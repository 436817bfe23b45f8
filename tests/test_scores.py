"""Every score that is measured has a name for readers and the direction that its computation has."""

from typing import NamedTuple

import numpy as np
import pytest

from sct_jax.evaluation import metrics, mixtures
from sct_jax.evaluation.network_metrics import FAMILIES, METRICS
from sct_jax.scores import SCORES, more_is_better


class Moments(NamedTuple):
    mean: np.ndarray
    cov: np.ndarray


def gaussian(seed, shift=0.0):
    return np.random.default_rng(seed).normal(shift, 1, (1200, 4)).astype(np.float32)


def probabilities(certainty):
    """Of 1,200 images, each of one of four classes in turn, which the network names as surely as that."""
    logits = certainty * np.eye(4)[np.arange(1200) % 4]
    return (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)


def test_what_is_measured_has_a_name():
    errors = {f"{target}_error" for targets in mixtures.TARGETS.values() for target in targets}
    errors |= {f"{name}_at_t_max" for name in errors}
    assert {*METRICS, *metrics.OFFLINE, mixtures.WASSERSTEIN, *errors} <= set(SCORES)
    assert len({score.label for score in SCORES.values()}) == len(SCORES)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.names[0])
def test_the_direction_is_that_of_samples_that_are_better(family):
    if family.real:
        sets = [gaussian(0), gaussian(1), gaussian(2, shift=4.0)]
        kept = sets if family.rows else [Moments(rows.mean(0), np.cov(rows.T)) for rows in sets]
        good, bad = (family.compute(fake, kept[0]) for fake in kept[1:])
    else:
        good, bad = (family.compute(probabilities(certainty), None) for certainty in (8.0, 1.0))
    of_family = {name: metric.base for name, metric in METRICS.items() if metric.family is family}
    assert set(family.names) <= set(of_family)
    for name, base in of_family.items():  # in each feature space
        assert (good[base] > bad[base]) == more_is_better(name), name


def test_agreement_is_to_be_high_and_distances_low():
    assert more_is_better(metrics.CLASS_AGREEMENT)
    assert not any(map(more_is_better, ("fd_pca", "fd_classifier", "fd_of_a_users_own_features")))
