"""EDM's denoising objective (arXiv 2206.00364, eq. 8): the diffusion model that consistency tuning starts from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sct_jax.diffusion import process, times
from sct_jax.objectives import Array, Draws, Objective


def build(config: Any, denoise: Callable[..., Array]) -> Objective:
    """``E λ(t) ‖D(x_0 + tε, t) − x_0‖²`` with ``ln t ~ N(mean, std²)``; mean over pixels, not the sum."""
    objective, sigma_data = config.objective, config.model.sigma_data

    def draw(images: Array, labels: Array, key: Array, step: Array) -> Draws:
        time_key, noise_key = jax.random.split(key)
        t = times.lognormal(time_key, images.shape[:1], objective.time_mean, objective.time_std)
        noise = jax.random.normal(noise_key, images.shape)
        return {"x_0": images, "labels": labels, "t": t, "x_t": process.add_noise(images, noise, t)}

    def loss(params: Any, context: Any, draws: Draws, dropout_key: Array) -> tuple[Array, dict[str, Array]]:
        t = draws["t"]
        prediction = denoise(params, draws["x_t"], t, draws["labels"], dropout_key=dropout_key)
        error = jnp.mean((prediction - draws["x_0"]) ** 2, axis=tuple(range(1, prediction.ndim)))
        return edm_weight(t, sigma_data) * error, {"error": error}

    return Objective(draw, loss)


def edm_weight(t: Array, sigma_data: float) -> Array:
    """``λ(t) = (t² + σ_d²)/(t σ_d)²``, which weighs all noise levels alike at initialisation (EDM, table 1)."""
    return (t**2 + sigma_data**2) / (t * sigma_data) ** 2
