"""Distributions of the noise level ``t``, and the mapping ``t -> r`` that shrinks as training goes on.

Everything is a function of the step alone, so that a resumed run needs to remember nothing.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def lognormal(key: Array, shape: tuple[int, ...], mean: float, std: float) -> Array:
    """``ln t ~ N(mean, std²)``: EDM (−1.2, 1.2), ECT on CIFAR-10 (−1.1, 2.0), on ImageNet-64 (−0.8, 1.6)."""
    return jnp.exp(mean + std * jax.random.normal(key, shape))


def stage(step: Array, stage_steps: int, schedule: str) -> Array:
    """The stage ``s`` that sets how close ``r`` is to ``t``: whole numbers, or a smooth ramp.

    Args:
      step: the number of finished training steps, an integer scalar.
      stage_steps: steps a stage lasts; 0 means stage 0 for ever (a fixed ``q``, as in ECT's one-hour recipe).
      schedule: ``"staged"`` is ECT's ``⌊k/d⌋`` (arXiv 2406.14548, sec. 3.2); ``"smooth"`` is SCT's ``k/d``
        (arXiv 2410.18958, sec. 4.2), the same law without the jumps.

    Raises:
      ValueError: for an unknown schedule.
    """
    if schedule not in ("staged", "smooth"):
        raise ValueError(f"schedule must be 'staged' or 'smooth', got {schedule!r}")
    if stage_steps == 0:
        return jnp.zeros((), jnp.float32)
    step = jnp.asarray(step)
    if schedule == "staged":
        return (step // stage_steps).astype(jnp.float32)
    return step.astype(jnp.float32) / stage_steps


def map_to_r(t: Array, s: Array, q: float = 2.0, k: float = 8.0, b: float = 1.0, ratio_limit: float = 0.999) -> Array:
    """The earlier time of the pair: ``r = max(0, t (1 − n(t)/q^{s+1}))``, ``n(t) = 1 + k·sigmoid(−b t)``.

    ECT (arXiv 2406.14548, eq. 17). ``r/t`` is capped at ``ratio_limit`` so that the weight ``1/(t − r)`` and the
    rounding of ``t − r`` stay bounded; 1 means no cap.

    Args:
      t: noise levels ``[B]``.
      s: the stage, a scalar, see :func:`stage`.
    """
    decay = jnp.power(jnp.asarray(q, jnp.float32), -(s + 1.0))
    ratio = 1.0 - decay * (1.0 + k * jax.nn.sigmoid(-b * t))
    return t * jnp.clip(ratio, 0.0, ratio_limit)
