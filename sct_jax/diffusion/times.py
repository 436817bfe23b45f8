"""Time pairs ``(t, r)``: distributions of the noise level ``t``, and the earlier ``r`` that nears it in training.

Two kinds: continuous ``t`` with a mapping ``t -> r`` (ECT, SCT), and neighbours of a grid that grows finer (CM, iCT).
Everything is a function of the step alone, so that a resumed run needs to remember nothing.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf

from sct_jax.diffusion.process import karras_grid

Array = jax.Array
BELOW_ONE = float(np.nextafter(np.float32(1.0), np.float32(0.0)))  # times any float32 t, it is less than t
SCHEDULES = ("staged", "smooth", "smooth_matched")


def lognormal(key: Array, shape: tuple[int, ...], mean: float, std: float) -> Array:
    """``ln t ~ N(mean, std²)``: EDM (−1.2, 1.2), ECT on CIFAR-10 (−1.1, 2.0), on ImageNet-64 (−0.8, 1.6)."""
    return jnp.exp(mean + std * jax.random.normal(key, shape))


def truncated_lognormal(
    key: Array, shape: tuple[int, ...], mean: float, std: float, t_min: float, t_max: float
) -> Array:
    """``ln t ~ N(mean, std²)`` between ``ln t_min`` and ``ln t_max`` (TCM, arXiv 2410.14895, stage 1)."""
    low, high = ((math.log(t) - mean) / std for t in (t_min, t_max))
    return jnp.exp(mean + std * jax.random.truncated_normal(key, low, high, shape))


def truncated_student(
    key: Array, shape: tuple[int, ...], mean: float, std: float, t_min: float, t_max: float, freedom: float = 0.01
) -> Array:
    """``ln t`` of Student's t with location ``mean`` and scale ``std`` on ``[ln t_min, ln t_max]`` (TCM, stage 2).

    By inversion on a table: the density is ``(1 + z²/ν)^{−(ν+1)/2}``, ``z = (ln t − mean)/std``, so heavy at ν = 0.01
    that rejection would seldom accept. The table is finest where the density is narrow.
    """
    z_low, z_high = ((math.log(t) - mean) / std for t in (t_min, t_max))
    width = math.sqrt(freedom)
    z = width * np.sinh(np.linspace(np.arcsinh(z_low / width), np.arcsinh(z_high / width), 4097))
    density = (1.0 + z**2 / freedom) ** (-(freedom + 1.0) / 2.0)
    mass = np.concatenate([[0.0], np.cumsum(0.5 * (density[1:] + density[:-1]) * np.diff(z))])
    uniform = jax.random.uniform(key, shape)
    return jnp.exp(mean + std * jnp.interp(uniform, jnp.asarray(mass / mass[-1]), jnp.asarray(z)))


def stage(step: Array, stage_steps: int, schedule: str) -> Array:
    """The stage ``s`` that sets how close ``r`` is to ``t``: whole numbers, or a smooth ramp.

    Args:
      step: the number of finished training steps, an integer scalar.
      stage_steps: steps a stage lasts; 0 means stage 0 for ever (a fixed ``q``, as in ECT's one-hour recipe).
      schedule: ``"staged"`` is ECT's ``⌊k/d⌋`` (arXiv 2406.14548, sec. 3.2); ``"smooth"`` is SCT's ``k/d``
        (arXiv 2410.18958, sec. 4.2), the same law without the jumps and so half a stage ahead on average;
        ``"smooth_matched"`` is ``max(0, k/d − 1/2)``, smooth with the mean of the stages: it crosses each of them at
        its middle. It is ours, to compare targets at one schedule.

    Raises:
      ValueError: for an unknown schedule.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if stage_steps == 0:
        return jnp.zeros((), jnp.float32)
    step = jnp.asarray(step)
    if schedule == "staged":
        return (step // stage_steps).astype(jnp.float32)
    stages = step.astype(jnp.float32) / stage_steps
    return stages if schedule == "smooth" else jnp.maximum(stages - 0.5, 0.0)


def map_to_r(
    t: Array,
    s: Array,
    q: float = 2.0,
    k: float = 8.0,
    b: float = 1.0,
    ratio_limit: float = 0.999,
    limit_of: str = "pair",
) -> Array:
    """The earlier time of the pair: ``r = max(0, t (1 − n(t)/q^{s+1}))``, ``n(t) = 1 + k·sigmoid(−b t)``.

    ECT (arXiv 2406.14548, eq. 17). ``r/t`` is capped at ``ratio_limit`` so that the weight ``1/(t − r)`` and the
    rounding of ``t − r`` stay bounded; 1 means no cap (ECT). Then too ``r < t``: the ratio stays below 1 by a float32.
    With ``limit_of = "schedule"`` the cap is on ``1 − 1/q^{s+1}``, as in TCM's code: the gap then ends at
    ``(1 − ratio_limit) n(t) t``, wider at small ``t``.

    Args:
      t: noise levels ``[B]``.
      s: the stage, a scalar, see :func:`stage`.

    Raises:
      ValueError: for an unknown ``limit_of``.
    """
    if limit_of not in ("pair", "schedule"):
        raise ValueError(f"limit_of must be 'pair' or 'schedule', got {limit_of!r}")
    decay = jnp.power(jnp.asarray(q, jnp.float32), -(s + 1.0))
    if limit_of == "schedule":
        decay, ratio_limit = jnp.maximum(decay, 1.0 - ratio_limit), 1.0
    ratio = 1.0 - decay * (1.0 + k * jax.nn.sigmoid(-b * t))
    return t * jnp.clip(ratio, 0.0, min(ratio_limit, BELOW_ONE))


def num_scales(step: Array, total_steps: int, s_0: int, s_1: int, growth: str) -> Array:
    """How many points the grid of noise levels has at ``step``, an int32 scalar.

    Args:
      step: the number of finished training steps.
      total_steps: the length of the run, ``K``.
      s_0: intervals at first.
      s_1: intervals at last.
      growth: ``"fixed"``: ``s_0`` points for ever (consistency distillation: 18); ``"progressive"``:
        ``⌈√(k/K ((s_1+1)² − s_0²) + s_0²) − 1⌉ + 1`` (CM, arXiv 2303.01469, app. C); ``"doubling"``:
        ``min(s_0 2^{⌊k/K'⌋}, s_1) + 1`` with ``K' = ⌊K/(log₂⌊s_1/s_0⌋ + 1)⌋`` (iCT, arXiv 2310.14189, eq. 8).

    Raises:
      ValueError: for an unknown growth.
    """
    step = jnp.asarray(step)
    if growth == "fixed":
        return jnp.int32(s_0)
    if growth == "progressive":
        squared = step.astype(jnp.float32) / total_steps * ((s_1 + 1) ** 2 - s_0**2) + s_0**2
        return jnp.maximum(jnp.ceil(jnp.sqrt(squared) - 1.0), 1.0).astype(jnp.int32) + 1
    if growth == "doubling":
        every = max(1, int(total_steps / (math.log2(s_1 // s_0) + 1)))
        doublings = jnp.minimum(step // every, math.ceil(math.log2(s_1 / s_0)))
        return jnp.minimum(s_0 * 2**doublings, s_1).astype(jnp.int32) + 1
    raise ValueError(f"growth must be 'fixed', 'progressive' or 'doubling', got {growth!r}")


def most_scales(s_0: int, s_1: int, growth: str) -> int:
    """The largest value of :func:`num_scales`."""
    return s_0 if growth == "fixed" else s_1 + 1


def target_decay(points: Array, s_0: int, mu_0: float) -> Array:
    """Decay of the target network's EMA, ``μ = exp(s_0 ln μ_0 / (points − 1))``: slower on finer grids (CM, app. C).

    ``points`` is :func:`num_scales`; the authors' code divides by its intervals, and so do we.
    """
    return jnp.exp(s_0 * math.log(mu_0) / (points - 1).astype(jnp.float32)) if mu_0 > 0 else jnp.zeros(())


def karras_times(index: Array, points: Array, t_min: float, t_max: float, rho: float = 7.0) -> Array:
    """Noise level number ``index`` (from 0, ascending) of the Karras grid of ``points`` (EDM, eq. 5); may be traced."""
    low, high = t_min ** (1 / rho), t_max ** (1 / rho)
    return (low + index / (points - 1) * (high - low)) ** rho


def grid_log_probabilities(
    points: Array, most: int, mean: float, std: float, t_min: float, t_max: float, rho: float = 7.0
) -> Array:
    """``ln P(i)`` up to a constant for the intervals of the grid, ``[most − 1]``; −inf from ``points − 1`` on.

    ``P(i) ∝ erf((ln t_{i+1} − mean)/(√2 std)) − erf((ln t_i − mean)/(√2 std))``: the lognormal of the continuous
    methods, in bins (iCT, arXiv 2310.14189, eq. 10, with ``P_mean = −1.1``, ``P_std = 2``).
    """
    index = jnp.arange(most)
    edge = erf((jnp.log(karras_times(index, points, t_min, t_max, rho)) - mean) / (math.sqrt(2.0) * std))
    inside = index[1:] < points
    return jnp.where(inside, jnp.log(jnp.maximum(jnp.where(inside, edge[1:] - edge[:-1], 1.0), 1e-30)), -jnp.inf)


def phase_edges(phases: int, t_min: float, t_max: float, rho: float = 7.0) -> np.ndarray:
    """Edges ``0 = s_0 < … < s_M = t_max`` of a phased model, float32 ``[M + 1]`` (SCT, arXiv 2410.18958, sec. 4.3).

    The Karras grid of ``M + 1`` points with its first put to 0; the paper leaves the edges open.
    """
    edges = karras_grid(phases + 1, t_min, t_max, rho)
    edges[0] = 0.0
    return edges.astype(np.float32)


def phase_start(t: Array, edges: np.ndarray) -> Array:
    """The edge ``s_{m−1}`` below each ``t`` of ``(s_{m−1}, s_m]``; above the last edge, the last segment's.

    A ``t`` that rounding put above an edge (a grid's point that is one, say) belongs to the segment that ends there.
    """
    index = jnp.searchsorted(jnp.asarray(edges), t * (1.0 - 1e-5), side="left")
    return jnp.asarray(edges)[jnp.clip(index, 1, len(edges) - 1) - 1]
