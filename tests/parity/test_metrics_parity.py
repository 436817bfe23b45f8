"""The metrics on features against torch-fidelity, prdc and scipy, by make_golden_metrics.py."""

import json
from pathlib import Path

import numpy as np
import pytest
from drawn_features import CASES, SUBSETS, drawn_features, drawn_logits

from sct_jax.evaluation.frechet import frechet_distance, moments
from sct_jax.evaluation.inception_score import inception_score
from sct_jax.evaluation.kernel import kid, mmd2_unbiased
from sct_jax.evaluation.manifold import density_coverage, precision_recall

GOLDEN = json.loads((Path(__file__).parent / "golden" / "metrics.json").read_text(encoding="utf-8"))
ON_ALL_CASES = pytest.mark.parametrize("case", CASES)
SINGLE = 1e-7  # torch-fidelity rounds shares to float32


@ON_ALL_CASES
def test_kernel_distance_is_torch_fidelitys(case):
    real, fake = drawn_features(case)
    golden, few = GOLDEN[case]["kid"], min(len(real), len(fake))
    assert mmd2_unbiased(fake[:few], real[:few]) == pytest.approx(golden["all"], rel=1e-9)
    subsets, size = SUBSETS.values()
    mean, error = kid(fake, real, subsets=subsets, subset_size=size, seed=2020)
    assert mean == pytest.approx(golden["mean"], rel=1e-9)
    over_subsets = golden["std"] ** 2 * subsets / (subsets - 1)
    assert error**2 == pytest.approx(over_subsets * (1 / subsets + size / (few - size)), rel=1e-9)


@ON_ALL_CASES
def test_precision_and_recall_are_torch_fidelitys_and_prdcs(case):
    assert precision_recall(*drawn_features(case), k=3) == pytest.approx(GOLDEN[case]["torch_fidelity"], abs=SINGLE)
    prdc = {name: GOLDEN[case]["prdc"][name] for name in ("precision", "recall")}
    assert precision_recall(*drawn_features(case), k=5) == pytest.approx(prdc, abs=1e-12)


@ON_ALL_CASES
def test_density_and_coverage_are_prdcs(case):
    golden = {name: GOLDEN[case]["prdc"][name] for name in ("density", "coverage")}
    assert density_coverage(*drawn_features(case), k=5) == pytest.approx(golden, abs=1e-12)


@ON_ALL_CASES
def test_frechet_distance_is_scipys(case):
    real, fake = drawn_features(case)
    distance = frechet_distance(*moments(real), *moments(fake))
    assert distance == pytest.approx(GOLDEN[case]["frechet"]["scipy"], rel=1e-9)
    assert distance == pytest.approx(GOLDEN[case]["frechet"]["torch_fidelity"], rel=1e-9)


@pytest.mark.parametrize(("order", "arguments"), [("in_order", (10, None)), ("shuffled", (7, 2020))])
def test_inception_score_is_torch_fidelitys(order, arguments):
    logits = drawn_logits()
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    golden = pytest.approx(GOLDEN["inception_score"][order], rel=1e-11)
    assert inception_score(probabilities, *arguments) == golden
    golden = pytest.approx(GOLDEN["inception_score"][order], rel=1e-6)
    assert inception_score(probabilities.astype(np.float32), *arguments) == golden
