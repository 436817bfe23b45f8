"""One map for every kind of model: where the path through ``(x, t)`` is at ``s``."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from sct_jax.diffusion import process, times

Array = jax.Array


def jump(
    denoise: Callable[[Array, Array, Array], Array],
    x: Array,
    t: Array | float,
    s: Array | float,
    edges: Sequence[float] | None = None,
) -> Array:
    """``f(x, t → s) = (s/t) x + (1 − s/t) g(x, t, s)``; ``x`` itself where ``s = t``, ``g`` where ``s = 0``.

    What the prediction ``g`` of a clean image is makes the map: of a diffusion model it is one Euler step, of a
    consistency model the chord to the end of the path, and a two-time model answers for ``s`` itself. A phased model
    maps within a segment so, and goes on from edge to edge to an ``s`` below its segment.

    Args:
      denoise: ``g(x, t, s)`` of images ``[B, ...]`` and times ``[B]``; only a two-time network looks at ``s``.
      x: states ``[B, ...]`` at noise level ``t``.
      t: noise levels, a scalar or ``[B]``; where it is 0 the result is ``x``.
      s: where to go, a scalar or ``[B]``, ``0 ≤ s ≤ t``.
      edges: of a phased model, ascending, from 0 (``times.phase_edges``): ``len(edges) − 1`` evaluations. None: one.
    """
    t, s = (jnp.asarray(time, jnp.float32) for time in (t, s))
    if edges is None:
        return _chord(denoise, x, t, s)
    for _ in range(len(edges) - 1):
        stop = jnp.clip(times.phase_start(t, edges), s, t)
        x, t = _chord(denoise, x, t, stop), stop
    return x


def _chord(denoise: Callable[[Array, Array, Array], Array], x: Array, t: Array, s: Array) -> Array:
    t, s = jnp.where(t > 0, t, 1.0), jnp.where(t > 0, s, 1.0)
    return process.euler_step(x, denoise(x, *(jnp.broadcast_to(time, x.shape[:1]) for time in (t, s))), t, s)
