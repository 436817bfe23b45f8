"""Distances between the two sides of the consistency loss, and the weights on it. Each is one small pure function.

A distance is ``(prediction, target, c) -> [B]``. LPIPS needs a network beside them: :func:`build`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sct_jax.schema import DENOISING

Array = jax.Array


def _sum(x: Array) -> Array:
    return jnp.sum(x, axis=tuple(range(1, x.ndim)))


def squared_l2(prediction: Array, target: Array, c: float) -> Array:
    """``‖a − b‖²`` (Consistency Models, arXiv 2303.01469)."""
    return _sum((prediction - target) ** 2)


def l1(prediction: Array, target: Array, c: float) -> Array:
    """``‖a − b‖₁``."""
    return _sum(jnp.abs(prediction - target))


def pseudo_huber(prediction: Array, target: Array, c: float) -> Array:
    """``√(‖a − b‖² + c²) − c`` (iCT, arXiv 2310.14189, eq. 7); a tiny ``c`` is ECT's plain norm with its gradient
    guarded at 0. Written as ``s / (√(s + c²) + c)``, which loses no digits at a small difference ``s``."""
    squared = _sum((prediction - target) ** 2)
    return squared / (jnp.sqrt(squared + c**2) + c)


DISTANCES = {"squared_l2": squared_l2, "l1": l1, "pseudo_huber": pseudo_huber}
LPIPS = "lpips"


def is_perceptual(objective: Any) -> bool:
    """Whether the distance needs LPIPS's network; a denoising objective has no distance."""
    return objective.method not in DENOISING and objective.distance == LPIPS


def build(
    objective: Any, perceptual: Callable[[Any, Array, Array], Array] | None = None
) -> Callable[[dict[str, Any], Array, Array], Array]:
    """``distance(context, prediction, target) -> [B]`` as ``objective`` says.

    Args:
      objective: of a config.
      perceptual: LPIPS, ``(weights, a, b) -> [B]`` of images in [-1, 1]; the weights are ``context["lpips"]``.
    """
    if is_perceptual(objective):
        if perceptual is None:
            raise ValueError("the distance 'lpips' needs its network")
        return lambda context, prediction, target: perceptual(context[LPIPS], prediction, target)
    apart = DISTANCES[objective.distance]
    return lambda context, prediction, target: apart(prediction, target, objective.huber_c)


def inverse_gap(t: Array, r: Array, sigma_data: float) -> Array:
    """``1/(t − r)`` (iCT; ECT on CIFAR-10)."""
    return 1.0 / (t - r)


def uniform(t: Array, r: Array, sigma_data: float) -> Array:
    """1 (Consistency Models)."""
    return jnp.ones_like(t)


def snr(t: Array, r: Array, sigma_data: float) -> Array:
    """``1/t² + 1/σ_d²`` (ECT and SCT on ImageNet-64)."""
    return 1.0 / t**2 + 1.0 / sigma_data**2


def inverse_sqrt_gap(t: Array, r: Array, sigma_data: float) -> Array:
    """``1/√(t − r)``."""
    return jax.lax.rsqrt(t - r)


def inverse_output_scale(t: Array, r: Array, sigma_data: float) -> Array:
    """``1/c_out² = (t² + σ_d²)/(t σ_d)²``, EDM's (arXiv 2206.00364, table 1)."""
    return (t**2 + sigma_data**2) / (t * sigma_data) ** 2


WEIGHTS = {
    "inverse_gap": inverse_gap,
    "uniform": uniform,
    "snr": snr,
    "inverse_sqrt_gap": inverse_sqrt_gap,
    "inverse_output_scale": inverse_output_scale,
}
