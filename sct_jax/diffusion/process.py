"""The variance-exploding process ``x_t = x_0 + t ε`` and steps along its probability-flow ODE.

Times are noise levels (standard deviations), images lie in [-1, 1]. A time broadcasts over the trailing axes of the
images it belongs to: ``t`` is a scalar or ``[B]`` for images ``[B, ...]``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def per_image(t: Array, x: Array) -> Array:
    """Reshapes times ``[B]`` (or a scalar) to broadcast against images ``[B, ...]``."""
    t = jnp.asarray(t, jnp.float32)
    return t if t.ndim == 0 else t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def to_unit_range(images: Array) -> Array:
    """uint8 ``[0, 255]`` to float32 ``[-1, 1]``; float images are taken as they are."""
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(jnp.float32)
    return images.astype(jnp.float32) / 127.5 - 1.0


def add_noise(x_0: Array, noise: Array, t: Array) -> Array:
    """The state at noise level ``t``: ``x_t = x_0 + t ε``."""
    return x_0 + per_image(t, x_0) * noise


def euler_step(x_t: Array, x_0: Array, t: Array, r: Array) -> Array:
    """One Euler step of the probability-flow ODE from ``t`` to ``r``, given any estimate ``x_0`` of the clean image.

    ``dx/dt = (x − x̂_0)/t`` (EDM, arXiv 2206.00364, eq. 4) integrated with ``x̂_0`` held:
    ``x_r = (r/t) x_t + (1 − r/t) x̂_0``. With the sample itself as ``x̂_0`` the result is ``x_0 + r ε`` exactly.
    """
    ratio = per_image(r / t, x_t)
    return ratio * x_t + (1.0 - ratio) * x_0


def heun_step(denoise: Callable[[Array, Array], Array], x: Array, t: Array, r: Array) -> Array:
    """One Heun step from noise level ``t`` to ``r`` (EDM, algorithm 1); a plain Euler step where ``r`` is 0.

    Args:
      denoise: maps images ``[B, ...]`` and times ``[B]`` to predictions of the clean image.
      x: state ``[B, ...]`` at ``t``; ``t`` and ``r`` are scalars or ``[B]``, ``r < t``.
    """
    t, r = (jnp.broadcast_to(jnp.asarray(s, jnp.float32), x.shape[:1]) for s in (t, r))
    slope = (x - denoise(x, t)) / per_image(t, x)
    euler = x + per_image(r - t, x) * slope
    safe_r = jnp.where(r > 0, r, t)
    slope_r = (euler - denoise(euler, safe_r)) / per_image(safe_r, x)
    heun = x + per_image(r - t, x) * 0.5 * (slope + slope_r)
    return jnp.where(per_image(r, x) > 0, heun, euler)


def karras_grid(num: int, t_min: float = 0.002, t_max: float = 80.0, rho: float = 7.0) -> np.ndarray:
    """The ascending grid of ``num`` noise levels, dense near ``t_min`` (EDM, eq. 5), in float64.

    Raises:
      ValueError: when ``num < 2`` or the bounds are not ``0 < t_min < t_max``.
    """
    if num < 2 or not 0 < t_min < t_max:
        raise ValueError(f"karras_grid needs num >= 2 and 0 < t_min < t_max, got {num}, {t_min}, {t_max}")
    fraction = np.arange(num, dtype=np.float64) / (num - 1)
    low, high = t_min ** (1 / rho), t_max ** (1 / rho)
    return (low + fraction * (high - low)) ** rho
