"""The Inception Score: how sure a classifier is of each image, and how many classes it sees over all."""

import numpy as np

from sct_jax.errors import UserError
from sct_jax.evaluation.accumulate import check_finite

SUM_TOLERANCE = 1e-3  # by which the probabilities of an image may miss 1


def inception_score(probabilities: np.ndarray, splits: int = 10, seed: int | None = None) -> tuple[float, float]:
    """Mean and standard deviation over ``splits`` of ``exp(E KL(p(y|x) ‖ p(y)))`` for ``probabilities [N, classes]``.

    Salimans et al., 2016, "Improved Techniques for Training GANs", section 4. The splits are contiguous: for samples
    sorted by class give a ``seed`` to shuffle them by, as torch-fidelity does. Between 1 and the number of classes.

    Raises:
      UserError: for fewer samples than splits, and for probabilities that are not finite.
    """
    probabilities = np.asarray(probabilities)
    num = len(probabilities)
    if probabilities.ndim != 2 or splits < 1:
        raise ValueError(f"need probabilities [N, classes] and a split, got shape {probabilities.shape} and {splits}")
    if num < splits:
        raise UserError(f"an Inception Score over {splits} splits needs at least {splits} samples, got {num}")
    check_finite(probabilities)
    totals = probabilities.sum(axis=1, dtype=np.float64)
    if probabilities.min() < 0 or np.abs(totals - 1).max() > SUM_TOLERANCE:
        raise ValueError("probabilities must be at least 0 and sum to 1 in each row")
    if seed is not None:
        probabilities = probabilities[np.random.RandomState(seed).permutation(num)]
    scores = []
    for split in range(splits):
        part = probabilities[split * num // splits : (split + 1) * num // splits].astype(np.float64)
        scores.append(np.exp(_negative_entropy(part).mean() - _negative_entropy(part.mean(axis=0))))
    return float(np.mean(scores)), float(np.std(scores))


def _negative_entropy(p: np.ndarray) -> np.ndarray:
    """``Σ p log p`` over the last axis, where ``0 log 0 = 0``."""
    return (p * np.log(p, where=p > 0, out=np.zeros_like(p))).sum(axis=-1)
