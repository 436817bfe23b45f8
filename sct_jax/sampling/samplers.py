"""The samplers. Each is ``sampler(denoise, x, times, keys) -> images``, a pure function.

``denoise(x, t, s=None)`` predicts the clean images of ``x`` ``[B, H, W, C]`` at noise levels ``t`` ``[B]``, for a step
to ``s`` (None: to 0), which two-time networks look at; ``x`` is the start at noise level ``times[0]``; ``times``
descend; ``keys`` ``[B]`` is one random key for each image.
"""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from sct_jax.diffusion import process
from sct_jax.diffusion.jump import jump

Array = jax.Array
BoundDenoise = Callable[..., Array]
SAMPLING = 2  # the room of a seed's random numbers; training uses 0 and 1
Sampler = Callable[[BoundDenoise, Array, Sequence[float], Array], Array]


def heun(denoise: BoundDenoise, x: Array, times: Sequence[float], keys: Array) -> Array:
    """EDM's deterministic second-order sampler (arXiv 2206.00364, alg. 1) through ``times`` and on to 0.

    ``2·len(times) − 1`` network evaluations.
    """
    levels = jnp.asarray(times, jnp.float32)
    ends = jnp.append(levels[1:], 0.0)
    # A step to r > 0 is two evaluations: at t, to make Euler's step, and at r, to mend it with the mean of both slopes.
    evaluation = np.arange(2 * len(times) - 1)
    asked, step, mends = (evaluation + 1) // 2, evaluation // 2, evaluation % 2 == 1

    def evaluate(carry: tuple[Array, Array, Array], now: tuple[Array, ...]) -> tuple[tuple[Array, Array, Array], None]:
        x, start, slope = carry  # where the network is asked, and where and in which direction it was before
        here, t, r, mend = now
        images = denoise(x, jnp.full(x.shape[:1], here))
        slope_here = (x - images) / here
        heun = start + (r - t) * 0.5 * (slope + slope_here)
        return (jnp.where(mend, heun, process.euler_step(x, images, here, r)), x, slope_here), None

    # One network in the program, however many evaluations: it is what takes time to compile.
    carry, _ = jax.lax.scan(evaluate, (x, x, x), (levels[asked], levels[step], ends[step], mends))
    return carry[0]


def consistency(denoise: BoundDenoise, x: Array, times: Sequence[float], keys: Array) -> Array:
    """Multistep consistency sampling (arXiv 2303.01469, alg. 1): denoise, add fresh noise of the next level, denoise.

    One network evaluation for each of ``times``; ``times = (80.0,)`` is one-step generation.
    """
    images = denoise(x, jnp.full(x.shape[:1], times[0], jnp.float32))
    for index, t in enumerate(times[1:], start=1):
        noise = image_noise(keys, index, images.shape[1:])
        images = denoise(images + t * noise, jnp.full(images.shape[:1], t, jnp.float32))
    return images


def deterministic(denoise: BoundDenoise, x: Array, times: Sequence[float], keys: Array) -> Array:
    """Multistep sampling without fresh noise: on to the next level by the noise that the last prediction implies.

    ``x_s = (s/t) x + (1 − s/t) x̂_0`` (``jump``), then the model is evaluated at ``(x_s, s)``; the last prediction is
    the result. With an exact consistency function ``x_s`` lies on the chord from ``(x, t)`` to the trajectory's end,
    not on the trajectory, and the result is a little off unless the trajectory is straight; with an exact phased model
    whose edges are ``times`` the chord ends on the trajectory, and the result is exact. So it is with an exact two-time
    model.
    """
    for t, s in itertools.pairwise(times):
        x = jump(denoise, x, t, s)
    return denoise(x, jnp.full(x.shape[:1], times[-1], jnp.float32))


def adjusted(
    denoise: BoundDenoise, x: Array, times: Sequence[float], keys: Array, share: float = 0.1, sigma_data: float = 0.5
) -> Array:
    """Adjusted DDIM (aDDIM, arXiv 2403.06807, sec. 3.2, alg. 3): :func:`deterministic` with its noise scaled up.

    A step by the mean ``x̂_0`` of all images that ``x`` may come from lacks their variance. It is put back along the
    noise ``ε̂ = (x − x̂_0)/t`` of ``d`` values, ``x_s = x̂_0 + √(s² + (1 − s/t)² v_t d/‖ε̂‖²) ε̂``, with ``v_t`` a
    ``share`` of the posterior variance of Gaussian data, ``v_t = share / (1/σ_data² + 1/t²)`` a value. The paper's is
    ``0.1 / (2 + 1/t²)``, for data of variance 1/2. With ``share = 1`` and data that is Gaussian the squared distance
    of ``x_s`` from ``x̂_0`` is on average what it is after a step by a random image of the posterior; ``share = 0``
    is :func:`deterministic`.
    """
    images = denoise(x, jnp.full(x.shape[:1], times[0], jnp.float32))
    for t, s in itertools.pairwise(times):
        t, s = jnp.float32(t), jnp.float32(s)
        noise = (x - images) / t
        power = jnp.mean(noise**2, axis=tuple(range(1, x.ndim)), keepdims=True)
        lacking = (1.0 - s / t) ** 2 * share / (1.0 / sigma_data**2 + 1.0 / t**2)
        x = images + jnp.sqrt(s**2 + lacking / jnp.maximum(power, 1e-12)) * noise
        images = denoise(x, jnp.full(x.shape[:1], s, jnp.float32))
    return images


def phased(denoise: BoundDenoise, x: Array, times: Sequence[float], keys: Array, eta: float = 1.0) -> Array:
    """Sampling a phased model (SCT, arXiv 2410.18958, sec. 4.3): a step for each phase, the last to 0.

    ``times`` are the edges ``T = s_M > … > s_1 > 0``. From ``(x, t)`` a step goes to ``(η s, η s)``, ``s`` the edge
    below, by ``f(x, t→ηs) = (ηs/t) x + (1 − ηs/t) g(x, t)``: past the edge, where the target jumps and a Lipschitz
    network is worst (edge skipping). ``eta = 1`` goes to the edge itself; one edge is one-step generation.
    """
    return deterministic(denoise, x, skip_edges(times, eta), keys)


def skip_edges(edges: Sequence[float], eta: float) -> tuple[float, ...]:
    """The noise levels where a phased model is evaluated: the first edge, then ``eta`` times each further one."""
    return (float(edges[0]), *(eta * float(edge) for edge in edges[1:]))


def image_keys(seed: int, indices: Array) -> Array:
    """A key for each image ``[B]``, a function of the seed and the image's index alone."""
    room = jax.random.fold_in(jax.random.key(seed), SAMPLING)
    return jax.vmap(lambda index: jax.random.fold_in(room, index))(indices)


def image_noise(keys: Array, draw: int, shape: tuple[int, ...]) -> Array:
    """Standard normal noise ``[B, *shape]``, draw number ``draw`` of each image's key."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, draw), shape))(keys)


def consistency_times(steps: int, mid_times: Sequence[float], t_max: float) -> tuple[float, ...]:
    """Descending noise levels of ``steps`` evaluations: ``t_max``, then the ``mid_times`` where they are as many.

    For another number of steps the levels go from ``t_max`` down to the smallest of them, evenly in ``ln t``.
    """
    mid = sorted(mid_times, reverse=True)
    if steps == 1 or len(mid) == steps - 1:
        return (t_max, *mid[: steps - 1])
    low = mid[-1] if mid else 0.8
    return tuple(float(t) for t in np.exp(np.linspace(np.log(t_max), np.log(low), steps)))
