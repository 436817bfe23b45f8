"""Ground truth where it is known: exact consistency functions and jumps, and distances to them.

For a Gaussian mixture, or a finite data set, ``E[x_0 | x_t]`` is known, so the probability-flow ODE (EDM, arXiv
2206.00364, eq. 4) can be solved to any accuracy, and a consistency model be compared with the function that it is to
learn, with no feature extractor in between. Everything exact is float64 on the host.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sct_jax.data.mixtures import GaussianMixture
from sct_jax.data.spec import unit_range
from sct_jax.diffusion.jump import jump

__all__ = [
    "GaussianMixture",
    "Queries",
    "consistency_error",
    "draw_queries",
    "empirical_denoiser",
    "exact_consistency",
    "exact_jump",
    "prediction_error",
    "target_moments",
    "wasserstein",
    "wasserstein_floor",
]

TIMES = tuple(float(t) for t in np.geomspace(0.02, 80.0, 13))
WHOLE_PATH = (0.0, np.inf)  # the edges of a model with one phase
TARGETS = ("consistency", "denoiser", "jump")
JUMPS, SMALLEST_JUMP = 4, 0.002  # times that the states of a level jump to, and the least of them
MOST_POINTS = 1500  # of an optimal assignment, whose cost grows with their cube
ExactDenoise = Callable[..., np.ndarray]  # of x [b, ...], t (a float) and, where there are labels, labels [b]


def exact_consistency(
    denoise: ExactDenoise,
    x: np.ndarray,
    t: np.ndarray | float,
    *,
    labels: np.ndarray | None = None,
    s: np.ndarray | float = 0.0,
    t_min: float = 1e-5,
    rtol: float = 1e-8,
) -> np.ndarray:
    """Where the probability-flow ODE ``dx/dt = (x − D(x, t))/t`` takes each ``x`` from ``t`` to ``s``.

    In ``u = ln t`` it is ``dx/du = x − D``. Queries of one ``t`` and ``s`` are one system, so few distinct ones are
    cheap, for an explicit Runge–Kutta method of order 8 with adaptive steps (DOP853). Where ``s`` is 0 the path ends at
    ``t_min`` with ``D``: the last step is exact to ``O(t_min²)``.

    Args:
      denoise: ``E[x_0 | x_t]`` as ``denoise(x, t)``, or ``denoise(x, t, labels)`` where there are labels, float64.
      x: states ``[B, ...]``.
      t: noise levels, a scalar or ``[B]``.
      labels: what ``denoise`` is conditional on, ``[B]``.
      s: where to stop, a scalar or ``[B]``, below ``t``; 0 is the consistency function.
      t_min: the noise level that stands for 0.
      rtol: relative tolerance of a step, root mean square over the queries of a system.

    Raises:
      ValueError: for times out of order.
      ArithmeticError: when the solver fails.
    """
    x = np.asarray(x, np.float64)
    t, s = (np.broadcast_to(np.asarray(time, np.float64), len(x)) for time in (t, s))
    if not ((t > 0) & (s >= 0) & (s < t)).all():
        raise ValueError("exact_consistency needs 0 <= s < t")
    result = np.empty_like(x)
    for start, stop in np.unique(np.stack([t, s], axis=1), axis=0):
        own = (t == start) & (s == stop)
        given = () if labels is None else (np.asarray(labels)[own],)
        end = max(stop, min(t_min, start))
        state = _solve(lambda x, t, given=given: denoise(x, t, *given), x[own], start, end, rtol)
        result[own] = state if stop > 0 else denoise(state, end, *given)
    return result


def _solve(denoise: ExactDenoise, x: np.ndarray, start: float, end: float, rtol: float) -> np.ndarray:
    """The states ``x`` at noise level ``start``, brought to ``end``."""
    from scipy.integrate import DOP853

    def slope(u: float, state: np.ndarray) -> np.ndarray:
        at = state.reshape(x.shape)
        return (at - denoise(at, float(np.exp(u)))).ravel()

    solver = DOP853(slope, np.log(start), x.ravel(), np.log(end), rtol=rtol, atol=rtol)
    while solver.status == "running":
        solver.step()
    if solver.status != "finished":
        raise ArithmeticError(f"the probability-flow ODE could not be solved to rtol={rtol:g}; try a larger one")
    return solver.y.reshape(x.shape)


def exact_jump(
    mixture: GaussianMixture,
    x: np.ndarray,
    t: np.ndarray | float,
    s: np.ndarray | float,
    component: np.ndarray | None = None,
    rtol: float = 1e-8,
) -> np.ndarray:
    """``f*(x, t → s)``: where a mixture's probability-flow ODE takes each ``x [B, ...]`` from ``t`` to ``s``, float64.

    In closed form with ``component [B]``, of whose own flow it is then; else see :func:`exact_consistency`.

    Raises:
      ValueError: unless ``0 <= s <= t``.
    """
    rows = np.asarray(x, np.float64).reshape(len(x), -1)
    t, s = (np.broadcast_to(np.asarray(time, np.float64), len(rows)) for time in (t, s))
    if not ((s >= 0) & (s <= t)).all():
        raise ValueError("exact_jump needs 0 <= s <= t")
    if component is not None:
        return mixture.component_flow(rows, t, s, component).reshape(x.shape)
    axes, aligned = mixture.aligned()
    end, moves = rows.copy(), s < t
    inside = exact_consistency(aligned.posterior_mean, rows[moves] @ axes, t[moves], s=s[moves], rtol=rtol)
    end[moves] = inside @ axes.T
    return end.reshape(x.shape)


def empirical_denoiser(
    images: np.ndarray, labels: np.ndarray | None = None, *, block: int = 1024
) -> Callable[..., np.ndarray]:
    """The exact posterior mean of a finite data set: ``D(x, t, query_labels=None)``, float64.

    With it, :func:`exact_consistency` gives the exact empirical flow. ``images [N, ...]`` are uint8 (which stands for
    [-1, 1]) or floats as they are; ``x [B, ...]``, ``t`` a scalar or ``[B]``. With ``labels [N]`` a query sees the rows
    of its own class only, and needs ``query_labels [B]``. Rows are visited ``block`` at a time: memory is
    ``O(B·(D + block))``.

    Raises:
      ValueError: (of ``D``) for queries without labels, or whose class has no rows.
    """
    rows = unit_range(images).reshape(len(images), -1)
    shift = rows.mean(axis=0)  # distances are those of the centred data: less to cancel
    rows = rows - shift
    squared = np.einsum("nd,nd->n", rows, rows)

    def denoise(x: np.ndarray, t: np.ndarray, query_labels: np.ndarray | None = None) -> np.ndarray:
        if labels is not None and (query_labels is None or not np.isin(query_labels, labels).all()):
            raise ValueError("the rows have labels: a query needs one of them too")
        queries = np.asarray(x, np.float64).reshape(len(x), -1) - shift
        half_precision = 0.5 / np.asarray(t, np.float64)[..., None] ** 2
        highest, total = np.full((len(x), 1), -np.inf), np.zeros((len(x), 1))
        weighted = np.zeros_like(queries)
        for start in range(0, len(rows), block):
            part = slice(start, start + block)
            logits = half_precision * (2 * queries @ rows[part].T - squared[part])
            if labels is not None:
                logits = np.where(np.asarray(query_labels)[:, None] == labels[part], logits, -np.inf)
            above = np.maximum(highest, logits.max(axis=1, keepdims=True))
            seen = np.isfinite(above)  # no row of the query's class so far: nothing to rescale
            weights = np.exp(logits - np.where(seen, above, 0.0))
            rescale = np.exp(highest - np.where(seen, above, 0.0))
            total = rescale * total + weights.sum(axis=1, keepdims=True)
            weighted, highest = rescale * weighted + weights @ rows[part], above
        return (weighted / total + shift).reshape(x.shape)

    return denoise


class Queries(NamedTuple):
    """Noisy states of a mixture and what a perfect model answers; ``T`` noise levels, ``num`` states of each."""

    x_t: np.ndarray  # [T·num, D], float32, drawn from the exact p_t
    t: np.ndarray  # [T·num], float32
    labels: np.ndarray | None  # [T·num], int32: the components; None where the model is unconditional
    exact: np.ndarray  # [T·num, D], float64
    times: np.ndarray  # [T]
    s: np.ndarray | None = None  # [T·num], float32: where to jump to; None where a clean image is asked for


def draw_queries(
    mixture: GaussianMixture,
    times: Sequence[float] = TIMES,
    num: int = 128,
    seed: int = 0,
    *,
    conditional: bool = False,
    edges: Sequence[float] = WHOLE_PATH,
    target: str = "consistency",
    rtol: float = 1e-7,
) -> Queries:
    """Draws states ``x_t`` from the exact ``p_t`` and solves for the exact answers.

    With ``conditional`` the answers are those of the state's own component. ``target="consistency"`` is the consistency
    function; of a model of several phases with the given ``edges`` (ascending, from 0) it is the prediction
    ``(f(x, t→s) − (s/t) x)/(1 − s/t)`` that takes ``x`` to the edge ``s`` below ``t``. ``target="denoiser"`` is
    ``E[x_0 | x_t]``, which a diffusion model is to predict. ``target="jump"`` is ``f*(x, t → s)``, for JUMPS random
    times ``s`` of each level ``t``, even in ``ln s`` from SMALLEST_JUMP to ``t``.
    """
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    rng = np.random.default_rng(seed)
    times = np.asarray(times, np.float32)
    t = np.repeat(times, num)
    x_0, component = mixture.sample(rng, len(t))
    x_t = (x_0 + t[:, None] * rng.standard_normal(x_0.shape)).astype(np.float32)
    if target == "denoiser":
        exact = mixture.posterior_mean(x_t, t, component if conditional else None)
    elif target == "jump":
        share = rng.uniform(size=(len(times), min(JUMPS, num)))
        drawn = SMALLEST_JUMP * (np.maximum(times, SMALLEST_JUMP)[:, None] / SMALLEST_JUMP) ** share
        s = np.minimum(np.stack([np.resize(row, num) for row in drawn]).ravel().astype(np.float32), t)
        exact = exact_jump(mixture, x_t, t, s, component if conditional else None, rtol)
        return Queries(x_t, t, component if conditional else None, exact, times, s)
    else:
        edges = np.asarray(edges, np.float64)
        s = edges[np.clip(np.searchsorted(edges, t), 1, len(edges) - 1) - 1]
        end = exact_jump(mixture, x_t, t, s, component if conditional else None, rtol)
        ratio = (s / t)[:, None]
        exact = (end - ratio * x_t) / (1 - ratio)
    return Queries(x_t, t, component if conditional else None, exact, times)


def prediction_error(model_fn: Any, queries: Queries, image_shape: tuple[int, ...] | None = None) -> dict[str, Any]:
    """``E‖f_θ(x_t, t) − f*(x_t, t)‖²/D`` against ``t``; of jumps ``E‖f_θ(x_t, t → s) − f*(x_t, t → s)‖²/D``.

    ``model_fn(x, t, labels)`` takes float32 ``x [B, *image_shape]`` (None: ``[B, D]``) and ``t [B]``, and int32 labels
    ``[B]`` or None; for jumps ``model_fn(x, t, labels, s)`` is the clean image predicted on the way to ``s``.

    Returns plain JSON types: ``t [T]``, ``error [T]`` and its standard error over the states, ``mean`` over the noise
    levels, ``at_t_max``, the error at the largest of them (that of one-step generation), and ``queries``, the states of
    each level.
    """
    rows, size = queries.x_t.shape
    x = queries.x_t.reshape(rows, *(image_shape or (size,)))
    if queries.s is None:
        answer = model_fn(x, queries.t, queries.labels)
    else:
        answer = jump(lambda x, t, s: model_fn(x, t, queries.labels, s), x, queries.t, queries.s)
    answer = np.asarray(answer, np.float64).reshape(rows, size)
    each = np.mean((answer - queries.exact) ** 2, axis=1).reshape(len(queries.times), -1)
    error = each.mean(axis=1)
    return {
        "t": [float(t) for t in queries.times],
        "error": error.tolist(),
        "standard_error": (each.std(axis=1) / np.sqrt(each.shape[1])).tolist(),
        "mean": float(error.mean()),
        "at_t_max": float(error[np.argmax(queries.times)]),
        "queries": each.shape[1],
    }


def consistency_error(
    model_fn: Any,
    mixture: GaussianMixture,
    times: Sequence[float] = TIMES,
    num: int = 128,
    seed: int = 0,
    *,
    conditional: bool = False,
    image_shape: tuple[int, ...] | None = None,
    edges: Sequence[float] = WHOLE_PATH,
) -> dict[str, Any]:
    """How far a consistency model is from the exact one; see :func:`draw_queries` and :func:`prediction_error`."""
    queries = draw_queries(mixture, times, num, seed, conditional=conditional, edges=edges)
    return prediction_error(model_fn, queries, image_shape)


def wasserstein(samples: np.ndarray, reference: np.ndarray) -> float:
    """The Wasserstein-2 distance between two sets of equally many points ``[N, ...]``, by an optimal assignment.

    It is never 0 between independent samples of one distribution: report :func:`wasserstein_floor` beside it.

    Raises:
      ValueError: for sets of different sizes, or of more than 1,500 points.
    """
    from scipy.optimize import linear_sum_assignment

    a, b = (np.asarray(points, np.float64).reshape(len(points), -1) for points in (samples, reference))
    if a.shape != b.shape or not 0 < len(a) <= MOST_POINTS:
        raise ValueError(f"wasserstein needs two sets of 1 to {MOST_POINTS} points alike, got {a.shape} and {b.shape}")
    squared = np.einsum("nd,nd->n", a, a)[:, None] + np.einsum("nd,nd->n", b, b) - 2 * a @ b.T
    pairs = linear_sum_assignment(squared)
    return float(np.sqrt(np.mean(np.sum((a[pairs[0]] - b[pairs[1]]) ** 2, axis=1))))


def wasserstein_floor(
    mixture: GaussianMixture,
    num: int,
    seed: int | Sequence[int] = 0,
    component: np.ndarray | None = None,
    repeats: int = 5,
) -> float:
    """What exact samples score against exact samples: the mean distance of ``repeats`` pairs of sets of ``num``."""
    rng = np.random.default_rng(seed)
    draw = lambda: mixture.sample(rng, num, component)[0]  # noqa: E731
    return float(np.mean([wasserstein(draw(), draw()) for _ in range(repeats)]))


def target_moments(
    mixture: GaussianMixture,
    t: Sequence[float],
    sizes: Sequence[int],
    *,
    own_sample: bool = True,
    num_queries: int = 32,
    num_draws: int = 64,
    seed: int = 0,
) -> dict[str, Any]:
    """Bias and variance of the self-normalised posterior mean of ``n`` references (SCT, arXiv 2410.18958, eq. 12).

    A query is ``x_t`` of the exact ``p_t``. Given it, the own sample is a draw of ``p(x_0 | x_t)`` and the other
    references are draws of the mixture; without ``own_sample`` all of them are (Stable Target Field, arXiv 2302.00670,
    eq. 6, without its own sample), and the estimate is biased.

    Returns plain JSON types: ``t [T]``, ``sizes [S]``, ``bias_squared [T][S]``, an unbiased estimate (it may be
    negative) of ``‖E[x̂_0 | x_t] − E[x_0 | x_t]‖²`` averaged over queries, ``variance [T][S]``, that of
    ``Tr Cov(x̂_0 | x_t)``, and the standard errors of both over queries.
    """
    rng = np.random.default_rng(seed)
    x_0, _ = mixture.sample(rng, num_queries)
    noise = rng.standard_normal(x_0.shape)
    bias = np.empty((num_queries, len(t), len(sizes)))
    variance = np.empty_like(bias)
    for query, level, column in np.ndindex(bias.shape):
        state, size = x_0[query] + t[level] * noise[query], sizes[column]
        others = mixture.sample(rng, num_draws * size)[0].reshape(num_draws, size, -1)
        if own_sample:
            others[:, 0] = mixture.sample_posterior(rng, state, t[level], num_draws)
        log_weights = -np.sum((state - others) ** 2, axis=-1) / (2 * t[level] ** 2)
        weights = np.exp(log_weights - log_weights.max(axis=1, keepdims=True))
        estimates = np.einsum("rn,rnd->rd", weights / weights.sum(axis=1, keepdims=True), others)
        spread = estimates.var(axis=0, ddof=1).sum()
        offset = estimates.mean(axis=0) - mixture.posterior_mean(state[None], t[level])[0]
        variance[query, level, column] = spread
        bias[query, level, column] = offset @ offset - spread / num_draws
    error = lambda values: (values.std(axis=0, ddof=1) / np.sqrt(num_queries)).tolist()  # noqa: E731
    return {
        "t": [float(level) for level in t],
        "sizes": [int(size) for size in sizes],
        "bias_squared": bias.mean(axis=0).tolist(),
        "variance": variance.mean(axis=0).tolist(),
        "bias_standard_error": error(bias),
        "variance_standard_error": error(variance),
        "own_sample": own_sample,
        "queries": num_queries,
        "draws": num_draws,
    }
