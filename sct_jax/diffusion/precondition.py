"""Preconditioning: what turns a network ``F`` into a denoiser ``D(x, t) = c_skip x + c_out F(c_in x, c_noise)``."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array

# c_noise = ln(t)/4 has no value at t = 0; a network asked there sees this noise level. D(x, 0) is x all the same.
SMALLEST_TIME = 1e-8
# What is added to the time that a two-time network jumps to: c_target(0) = −1.7 lies just below c_noise(0.002) = −1.6.
TARGET_OFFSET = 1e-3


class Coefficients(NamedTuple):
    """Each of the shape of ``t``."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array


def coefficients(t: Array, sigma_data: float = 0.5, boundary: str = "zero", t_min: float = 0.002) -> Coefficients:
    """EDM preconditioning (arXiv 2206.00364, table 1), or shifted (Consistency Models, arXiv 2303.01469, app. C).

    Args:
      t: noise levels, any shape, ``>= 0``.
      sigma_data: standard deviation of the data.
      boundary: where ``D`` is the identity: ``"zero"`` at ``t = 0`` (EDM, ECT in training, TCM), ``"sigma_min"`` at
        ``t = t_min`` (CM, iCT, ECT's CIFAR-10 evaluation with ``t_min = 0.003``).
      t_min: the shift; used by ``"sigma_min"`` only.

    Raises:
      ValueError: for an unknown boundary.
    """
    if boundary not in ("zero", "sigma_min"):
        raise ValueError(f"boundary must be 'zero' or 'sigma_min', got {boundary!r}")
    t = jnp.asarray(t, jnp.float32)
    shifted = t - t_min if boundary == "sigma_min" else t
    norm = jnp.sqrt(t**2 + sigma_data**2)
    return Coefficients(
        c_skip=sigma_data**2 / (shifted**2 + sigma_data**2),
        c_out=shifted * sigma_data / norm,
        c_in=1.0 / norm,
        c_noise=jnp.log(jnp.maximum(t, SMALLEST_TIME)) / 4.0,
    )


def c_target(s: Array) -> Array:
    """``ln(s + 10⁻³)/4``, what a two-time network sees of the time ``s >= 0`` that it jumps to, of the shape of ``s``.

    It is ``c_noise`` but near 0, where the end of most jumps lies: there it is bounded, and so is its slope, 250.
    """
    return jnp.log(jnp.asarray(s, jnp.float32) + TARGET_OFFSET) / 4.0
