"""The kernel distance of two sets of features, KID on Inception's: unbiased, so that small sets can be compared.

Bińkowski et al., 2018, "Demystifying MMD GANs", section 4: the squared maximum mean discrepancy under the kernel
``k(a, b) = (gamma a·b + coef0)^degree``, degree 3, gamma 1/F, coef0 1. Everything is float64 on the host.
"""

import math

import numpy as np

from sct_jax.errors import UserError
from sct_jax.evaluation.accumulate import check_finite


def kid(
    x: np.ndarray, y: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """The mean of :func:`mmd2_unbiased` over random subsets of ``x [N, F]`` and ``y [M, F]``, and its standard error.

    The errors call ``x`` the real images and ``y`` the samples; but for the draws, roles do not matter.
    Subsets are drawn without replacement, and as torch-fidelity draws them for the same seed. They share rows, so
    that more of them cannot make the mean more certain than all rows are: with ``s²`` the variance over subsets of
    ``m`` of ``n`` rows, the squared standard error is ``s² (1 / subsets + m / (n - m))``. It is nan for a single
    subset, and where ``m = n``, since all subsets are then the same.

    Raises:
      UserError: for fewer rows than ``subset_size``, and for features that are not finite.
    """
    x, y = np.asarray(x), np.asarray(y)
    check_finite(x, "real images")
    check_finite(y)
    fewest = min(len(x), len(y))
    if fewest < subset_size:
        raise UserError(
            f"a kernel distance on subsets of {subset_size} needs at least {subset_size} real images and samples, "
            f"got {len(x)} and {len(y)}"
        )
    draw = np.random.RandomState(seed)  # a stream that numpy keeps as it is
    values = []
    for _ in range(subsets):
        part_x = x[draw.choice(len(x), subset_size, replace=False)]
        part_y = y[draw.choice(len(y), subset_size, replace=False)]
        values.append(mmd2_unbiased(part_x, part_y))
    if subsets == 1 or fewest == subset_size:
        return float(np.mean(values)), math.nan
    shared = subset_size / (fewest - subset_size)
    return float(np.mean(values)), float(np.std(values, ddof=1) * math.sqrt(1 / subsets + shared))


def mmd2_unbiased(
    x: np.ndarray, y: np.ndarray, degree: int = 3, gamma: float | None = None, coef0: float = 1.0
) -> float:
    """The unbiased estimate of the squared discrepancy of ``x [N, F]`` and ``y [M, F]``; it may be below 0.

    ``gamma=None`` is 1/F. Needs two rows of each (``UserError``).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"features must be [N, F] and [M, F], got shapes {x.shape} and {y.shape}")
    if min(len(x), len(y)) < 2:
        raise UserError(f"a kernel distance needs at least 2 real images and 2 samples, got {len(x)} and {len(y)}")
    gamma = 1 / x.shape[1] if gamma is None else gamma

    def kernel_sum(a: np.ndarray, b: np.ndarray) -> float:
        base = a @ b.T
        base *= gamma
        base += coef0
        total = np.power(base, degree).sum() if degree != 3 else np.einsum("ij,ij,ij->", base, base, base)
        return float(total)

    def between(a: np.ndarray) -> float:
        """The mean over pairs of different rows."""
        own = (gamma * np.einsum("nf,nf->n", a, a) + coef0) ** degree
        return (kernel_sum(a, a) - float(own.sum())) / (len(a) * (len(a) - 1))

    return between(x) + between(y) - 2 * kernel_sum(x, y) / (len(x) * len(y))
