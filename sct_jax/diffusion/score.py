"""The score identity: the posterior mean of the clean image, estimated from a reference set.

``E[x_0 | x_t] = Σ_i w_i x^(i)`` with ``w = softmax(−‖x_t − x^(i)‖²/2t²)`` over samples ``x^(i)`` of the data
(self-normalised importance sampling; Stable Target Field, arXiv 2302.00670, eq. 6; SCT, arXiv 2410.18958, eq. 12).
When the reference set holds the query's own sample the estimate is unbiased, and its variance given ``x_t`` is never
larger than that of the sample itself: this is the variance reduction of SCT.
"""

from typing import NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from sct_jax.diffusion.process import per_image

Array = jax.Array


class PosteriorMean(NamedTuple):
    """``estimate`` is ``[B, ...]`` as the queries; the diagnostics are ``[B]``, float32."""

    estimate: Array
    effective_sample_size: Array  # 1 / Σ w²: 1 where one reference holds all the weight, n where all are alike
    entropy: Array  # of the weights, in nats
    own_distance: Array  # ‖x̂_0 − x_0‖² / D: how far the estimate moved from the sample


def posterior_mean(x_0: Array, noise: Array, t: Array, references: Array, mask: Array | None = None) -> PosteriorMean:
    """Estimates ``E[x_0 | x_t]`` at ``x_t = x_0 + t·noise`` from ``references``.

    The references are used exactly as given: the caller includes each query's own sample (with the batch as the
    reference set this is so by construction). Correct in float32 for ``t`` from 0.002 to 80: log-weights are taken
    relative to the query's own clean image, ``‖x_t − x^(i)‖² − ‖x_t − x_0‖² = Σ d (d + 2tε)``, ``d = x_0 − x^(i)``,
    which is summed from the differences and so loses nothing to cancellation; no ``[B, n, ...]`` array is made.

    Args:
      x_0: clean images ``[B, ...]`` in [-1, 1].
      noise: standard normal noise, as ``x_0``.
      t: noise levels ``[B]``, ``> 0``.
      references: ``[n, ...]``.
      mask: optional ``[B, n]`` of booleans: the references a query may see (say, those of its class).

    Returns:
      The estimate ``[B, ...]`` and its diagnostics. Gradients do not flow through it: it is a target.

    Raises:
      ValueError: for shapes that do not fit, and for a query with no visible reference. Where the mask is traced
        (under ``jit``) its values cannot be raised on: that query's estimate is NaN, which stops a training run.
    """
    batch, count = x_0.shape[0], references.shape[0]
    if noise.shape != x_0.shape or references.shape[1:] != x_0.shape[1:] or t.shape != (batch,) or count == 0:
        raise ValueError(
            "posterior_mean needs x_0 and noise [B, ...], t [B] and references [n, ...] with n >= 1, got "
            f"{x_0.shape}, {noise.shape}, {t.shape}, {references.shape}"
        )
    if mask is not None:
        _check_mask(mask, batch, count)
    x_0, noise, t, references = map(jax.lax.stop_gradient, (x_0, noise, t, references))
    queries, rows = x_0.reshape(batch, -1), references.reshape(count, -1).astype(jnp.float32)
    distance = squared_distance_gap(queries, noise.reshape(batch, -1), t, rows)
    log_weights = -distance / (2.0 * t[:, None] ** 2)
    if mask is not None:
        log_weights = jnp.where(mask, log_weights, -jnp.inf)
    weights = jax.nn.softmax(log_weights, axis=1)  # a row of −inf gives NaN, on purpose
    estimate = jnp.matmul(weights, rows, precision="highest")
    return PosteriorMean(
        estimate=estimate.reshape(x_0.shape),
        effective_sample_size=1.0 / jnp.sum(weights**2, axis=1),
        entropy=-jnp.sum(jnp.where(weights > 0, weights * jnp.log(jnp.where(weights > 0, weights, 1.0)), 0.0), axis=1),
        own_distance=jnp.mean((estimate - queries) ** 2, axis=1),
    )


def squared_distance_gap(x_0: Array, noise: Array, t: Array, rows: Array) -> Array:
    """``‖x_t − row‖² − ‖x_t − x_0‖²`` for queries ``[B, D]`` and rows ``[n, D]``, as ``[B, n]`` in float32.

    One fused pass over ``B·n·D`` products; the compiler keeps the differences in registers.
    """
    difference = x_0[:, None, :] - rows[None, :, :]
    return jnp.sum(difference * (difference + (2.0 * per_image(t, x_0) * noise)[:, None, :]), axis=-1)


def same_class(labels: Array, reference_labels: Array) -> Array:
    """The mask ``[B, n]`` of references that share the query's class."""
    return labels[:, None] == reference_labels[None, :]


def _check_mask(mask: Array, batch: int, count: int) -> None:
    if mask.shape != (batch, count):
        raise ValueError(f"mask must be [B, n] = {(batch, count)}, got {mask.shape}")
    if not isinstance(mask, jax.core.Tracer):
        blind = np.flatnonzero(~np.asarray(mask).any(axis=1))
        if blind.size:
            raise ValueError(f"queries {blind.tolist()[:8]} see no reference: include each query's own sample")
