"""Real digits, and one evaluator of them shared by this room's tests (its classifier trains for seconds)."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sct_jax.evaluation import Evaluator


@pytest.fixture(scope="session")
def digits():
    """All 1,797 digits: uint8 [N, 8, 8, 1], int32 [N]."""
    data = load_digits()
    images = np.round(data.data * 255 / 16).astype(np.uint8).reshape(-1, 8, 8, 1)
    return images, data.target.astype(np.int32)


@pytest.fixture(scope="session")
def classifier_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("classifier")


@pytest.fixture(scope="session")
def evaluator(digits, classifier_cache):
    """Trained on the first 1,437 digits; the last 360, of other writers, are held out."""
    images, labels = digits
    train, held_out = (images[:1437], labels[:1437]), (images[1437:], labels[1437:])
    return Evaluator(train, held_out, num_classes=10, cache_dir=classifier_cache)
