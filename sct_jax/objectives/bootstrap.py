"""The bootstrap prediction ``g(x_r, r)`` of the TD target, made so that low precision does not lose the TD difference.

What the loss regresses is ``Δ = g(x_t, t) − g(x_r, r)``, a difference of nearly equal numbers. Rounding to bfloat16
gives each an error of about 2⁻⁸ that does not cancel, and once the gap ``(t − r)/t`` is small little of Δ is left:
measured cosine to float32's at ``t = 1``, ``.99`` at a gap of .1, ``.44`` at .005, ``.10`` at .001. A derivative keeps
it: with ``m = (t + r)/2`` on the Euler step from ``x_t`` to ``x_r``, ``ε̂ = (x_t − x̂_0)/t``,

    Δ = (t − r) · d/dτ g(x_m + (τ − m) ε̂, τ) |_{τ = m} + O((t − r)³),

one forward-mode pass whose rounding errors are relative to Δ itself. The bootstrap is then ``sg[g(x_t, t) − Δ]``. Large
gaps are the other way round: evaluated they are sound, and the cubic error of the derivative shows. Both are as good
(.99) at a gap of about .13.

So there are three forms. ``evaluated``: the network at ``(x_r, r)``. ``tangent``: the derivative. ``mixed``: each image
by its octave of ``t``; the pass at ``(x_r, r)`` or at the midpoint is one and the same, so choosing costs nothing more.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sct_jax.diffusion import process
from sct_jax.objectives import Array

# Octaves of the noise level: [2⁻⁹, 2⁻⁸), …, [2⁶, 2⁷); the first and the last take what is beyond.
OCTAVES = tuple(range(-9, 7))
# In the context of "mixed": for each octave whether it trains on the derivative, int8, 1 or 0; at first neither.
DECISION, UNDECIDED = "tangent", -1
LOW_PRECISION = ("bfloat16", "float16", "tf32")


def form(config: Any) -> str:
    """``evaluated``, ``tangent`` or ``mixed``: what ``objective.difference`` comes to for ``model.compute_dtype``.

    ``auto`` is ``mixed`` where activations are rounded to fewer than float32's bits, else ``evaluated``. With another
    network in the target than the trained one (``objective.bootstrap = "ema"``) there is no derivative to take; of a
    divided target it is that of the images whose ``r`` is the trained network's.
    """
    objective = config.objective
    if objective.difference != "auto":
        return objective.difference
    rounded = config.model.compute_dtype in LOW_PRECISION
    return "mixed" if rounded and objective.bootstrap != "ema" else "evaluated"


def undecided() -> Array:
    """The decision before the first measurement, int8 ``[len(OCTAVES)]``."""
    return jnp.full(len(OCTAVES), UNDECIDED, jnp.int8)


def octave(t: Array) -> Array:
    """The place in ``OCTAVES`` of noise levels ``t``, int32 of their shape."""
    place = jnp.floor(jnp.log2(jnp.maximum(t, 2.0 ** OCTAVES[0]))).astype(jnp.int32) - OCTAVES[0]
    return jnp.clip(place, 0, len(OCTAVES) - 1)


def by_derivative(
    forward: Callable[[Array, Array], Array],
    x_t: Array,
    estimate: Array,
    x_r: Array,
    t: Array,
    r: Array,
    prediction: Array,
    chosen: Array,
) -> Array:
    """``g(x_r, r)`` as ``prediction − Δ`` with the derivative's Δ where ``chosen``, elsewhere evaluated; in one pass.

    Args:
      forward: ``g(x, t)`` by operations that ``jax.jvp`` accepts.
      x_t, estimate, x_r: the state ``[B, H, W, C]``, the clean image ``x̂_0`` of its Euler step, and where that ends.
      t, r: noise levels ``[B]``, ``0 ≤ r < t``.
      prediction: ``g(x_t, t)``.
      chosen: bool ``[B]``; an image with ``r = 0``, whose target takes no bootstrap, counts as chosen.
    """
    chosen = chosen | (r <= 0.0)
    at = jnp.where(chosen, 0.5 * (t + r), r)
    x = jnp.where(process.per_image(chosen, x_t) > 0, process.euler_step(x_t, estimate, t, at), x_r)
    # The derivative by ln τ, τ d/dτ: its tangents (m ε̂, m) are of the size of noise and noise level at both ends.
    direction = process.per_image(at / t, x_t) * (x_t - estimate)
    value, slope = jax.jvp(forward, (x, at), (direction, at))
    difference = process.per_image((t - r) / at, x_t) * slope
    return jnp.where(process.per_image(chosen, x_t) > 0, prediction - difference, value)
