"""How noisy the target is: the trace of Cov(x̂_0 | x_t), for the sample itself (CT) and SCT's posterior means.

Given ``x_t``, the row that produced it is random with the posterior ``p(i | x_t) ∝ exp(−‖x_t − x_i‖² / 2t²)``
over the data. CT's target is that row. SCT's is the self-normalised mean over that row and ``n − 1`` rows
drawn from the data (SCT, arXiv 2410.18958; Stable Target Field, arXiv 2302.00670), whose variance
falls with ``n``. All arithmetic is float64 on the host.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np


def target_covariance(
    images: np.ndarray,
    t: np.ndarray,
    reference_sizes: Sequence[int | str] = (1, 16, 128, "all"),
    *,
    labels: np.ndarray | None = None,
    num_queries: int = 64,
    num_draws: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """Mean over queries of ``Tr Cov(x̂_0 | x_t)`` at noise levels ``t [T]``, for each reference size.

    ``images`` are float ``[N, H, W, C]`` in [-1, 1]; with ``labels [N]`` a query sees the rows of its own
    class only. A query is ``x_t = x_0 + t ε`` with ``x_0`` from the data; it keeps its ``x_0`` and ``ε`` over
    all ``t``. ``"all"`` is the whole data set (or class), whose posterior mean has no variance. Returns plain
    JSON types: ``t [T]``, ``reference_sizes [S]``, ``trace [T][S]`` and its standard error over queries,
    ``ct_trace [T]`` (the closed form of size 1), and what was asked for.
    """
    t = np.asarray(t, np.float64)
    if t.ndim != 1 or len(t) == 0 or not (t > 0).all():
        raise ValueError(f"noise levels must be a non-empty list of positive numbers, got {t}")
    if num_queries < 1 or num_draws < 2:
        raise ValueError(f"need at least 1 query and 2 draws, got {num_queries} and {num_draws}")
    for size in reference_sizes:
        if size != "all" and (not isinstance(size, int) or size < 1):
            raise ValueError(f'a reference size is a positive whole number or "all", got {size!r}')

    rng = np.random.default_rng(seed)
    rows = np.asarray(images, np.float64).reshape(len(images), -1)
    own = rng.integers(0, len(rows), num_queries)
    noise = rng.standard_normal((num_queries, rows.shape[1]))
    trace = np.zeros((num_queries, len(t), len(reference_sizes)))
    ct_trace = np.zeros((num_queries, len(t)))

    for query, index in enumerate(own):
        same_class = rows if labels is None else rows[np.asarray(labels) == labels[index]]
        offsets = same_class - rows[index]  # the posterior and every variance are invariant to moving the origin to x_0
        squared, along_noise = np.einsum("nd,nd->n", offsets, offsets), offsets @ noise[query]
        for level, noise_level in enumerate(t):
            log_likelihood = _row_log_likelihood(squared, along_noise, noise_level)
            posterior = np.exp(log_likelihood - log_likelihood.max())
            posterior /= posterior.sum()
            ct_trace[query, level] = _categorical_trace(posterior, offsets, squared)
            for column, size in enumerate(reference_sizes):
                if size != "all":
                    trace[query, level, column] = _estimate_trace(
                        offsets, log_likelihood, posterior, size, num_draws, rng
                    )

    return {
        "t": t.tolist(),
        "reference_sizes": list(reference_sizes),
        "trace": trace.mean(axis=0).tolist(),
        "standard_error": (trace.std(axis=0) / np.sqrt(num_queries)).tolist(),
        "ct_trace": ct_trace.mean(axis=0).tolist(),
        "queries": num_queries,
        "draws": num_draws,
        "seed": seed,
        "class_conditional": labels is not None,
    }


def _row_log_likelihood(squared: np.ndarray, along_noise: np.ndarray, t: float) -> np.ndarray:
    """``log p(x_t | x_i)`` up to a constant, ``[N]``, 0 for the query's own row.

    ``‖x_t − x_i‖² − ‖x_t − x_0‖² = ‖x_i − x_0‖² − 2t ε·(x_i − x_0)``: subtracting the own row's distance
    first leaves nothing to cancel at small ``t``.
    """
    return -(squared - 2 * t * along_noise) / (2 * t**2)


def _categorical_trace(posterior: np.ndarray, offsets: np.ndarray, squared: np.ndarray) -> float:
    """Trace of the covariance of one row drawn from the posterior: ``E‖x‖² − ‖E x‖²``."""
    mean = posterior @ offsets
    return max(0.0, float(posterior @ squared - mean @ mean))


def _estimate_trace(
    offsets: np.ndarray,
    log_likelihood: np.ndarray,
    posterior: np.ndarray,
    size: int,
    num_draws: int,
    rng: np.random.Generator,
) -> float:
    """Unbiased estimate of ``Tr Cov(x̂_0 | x_t)`` for one query, from ``num_draws`` sets of ``size`` rows."""
    num_rows = len(offsets)
    reference = rng.integers(0, num_rows, (num_draws, size))
    reference[:, 0] = rng.choice(num_rows, num_draws, p=posterior)  # the own sample, as x_t knows it
    weights = log_likelihood[reference]
    weights = np.exp(weights - weights.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)

    used, position = np.unique(reference, return_inverse=True)
    flat = np.arange(num_draws)[:, None] * len(used) + position.reshape(reference.shape)
    mixing = np.bincount(flat.ravel(), weights.ravel(), num_draws * len(used)).reshape(num_draws, len(used))
    return float((mixing @ offsets[used]).var(axis=0, ddof=1).sum())
