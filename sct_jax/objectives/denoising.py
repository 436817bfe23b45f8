"""EDM's denoising objective (arXiv 2206.00364, eq. 8), which makes the diffusion model that tuning starts from.

With ``method = "stf"`` the target is not the sample but its posterior mean (Stable Target Field, arXiv 2302.00670).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sct_jax.diffusion import process
from sct_jax.objectives import Array, Draws, Objective, pairs, references
from sct_jax.objectives.distances import inverse_output_scale


def build(config: Any, denoise: Callable[..., Array], device_mesh: Any = None) -> Objective:
    """``E λ(t) ‖D(x_0 + tε, t) − x̂_0‖²``, ``λ = 1/c_out²``, ``t`` as configured; mean over pixels, not the sum."""
    objective, sigma_data = config.objective, config.model.sigma_data
    draw_t = pairs.build_times(objective)
    stable = objective.method == "stf"
    posterior_mean = references.build(config, device_mesh) if stable else None

    def draw(images: Array, labels: Array, key: Array, step: Array, rows: Any = None) -> Draws:
        time_key, noise_key = jax.random.split(key)
        t = draw_t(time_key, images.shape[:1])
        noise = jax.random.normal(noise_key, images.shape)
        draws = {"labels": labels, "t": t, "x_t": process.add_noise(images, noise, t)}
        if posterior_mean is None:
            return draws | {"target": images}
        posterior = posterior_mean(images, noise, t, labels, rows, key)
        return draws | {
            "target": posterior.estimate,
            "reference_ess": posterior.effective_sample_size,
            "reference_shift": posterior.own_distance,
        }

    def loss(params: Any, context: Any, draws: Draws, dropout_key: Array) -> tuple[Array, dict[str, Array]]:
        t = draws["t"]
        prediction = denoise(params, draws["x_t"], t, draws["labels"], dropout_key=dropout_key)
        error = jnp.mean((prediction - draws["target"]) ** 2, axis=tuple(range(1, prediction.ndim)))
        metrics = {k: v for k, v in draws.items() if k.startswith("reference_")}
        return inverse_output_scale(t, t, sigma_data) * error, {"error": error} | metrics

    return Objective(draw, loss)
