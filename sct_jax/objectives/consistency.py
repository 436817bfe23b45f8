"""Consistency training as temporal-difference learning; ECT and SCT are rows of one table (``objectives/table.py``).

State ``(x_t, t)``; transition, one Euler step of the probability-flow ODE to ``(x_r, r)``; bootstrap target
``y = sg[f(x_r, r)]`` by the same weights under the same dropout masks, or ``y = x_r`` where ``r = 0`` (terminal:
nothing is left to bootstrap); loss ``w(t, r) d(f(x_t, t), y)``.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sct_jax.diffusion import process, score, times
from sct_jax.objectives import Array, Draws, Objective
from sct_jax.objectives.distances import DISTANCES, WEIGHTS


def build(config: Any, denoise: Callable[..., Array]) -> Objective:
    """The consistency objective of ``config.objective``, over a pure denoiser ``f``."""
    objective, sigma_data = config.objective, config.model.sigma_data
    distance, weight = DISTANCES[objective.distance], WEIGHTS[objective.weight]
    mask_classes = config.model.conditional and config.reference.same_class

    def draw(images: Array, labels: Array, key: Array, step: Array) -> Draws:
        time_key, noise_key = jax.random.split(key)
        t = times.lognormal(time_key, images.shape[:1], objective.time_mean, objective.time_std)
        noise = jax.random.normal(noise_key, images.shape)
        s = times.stage(step, objective.stage_steps, objective.schedule)
        r = times.map_to_r(t, s, objective.q, objective.k, objective.b, objective.ratio_limit)
        scale = objective.q**-s if objective.normalize_stage else jnp.ones(())

        x_t = process.add_noise(images, noise, t)
        draws = {"labels": labels, "t": t, "r": r, "x_t": x_t, "scale": jnp.broadcast_to(scale, t.shape)}
        if objective.transition == "sample":  # x̂_0 = x_0: the Euler step is x_0 + r ε
            return draws | {"x_r": process.add_noise(images, noise, r)}
        mask = score.same_class(labels, labels) if mask_classes else None
        posterior = score.posterior_mean(images, noise, t, images, mask)
        return draws | {
            # The Euler step with x̂_0, as CT's and what the mean moves it by: the large noise does not cancel.
            "x_r": process.add_noise(images, noise, r)
            + process.per_image(1.0 - r / t, images) * (posterior.estimate - images),
            "reference_ess": posterior.effective_sample_size,
            "reference_shift": posterior.own_distance,
        }

    def loss(params: Any, context: Any, draws: Draws, dropout_key: Array) -> tuple[Array, dict[str, Array]]:
        t, r, labels = draws["t"], draws["r"], draws["labels"]
        prediction = denoise(params, draws["x_t"], t, labels, dropout_key=dropout_key)
        bootstrap = denoise(jax.lax.stop_gradient(params), draws["x_r"], r, labels, dropout_key=dropout_key)
        terminal = process.per_image(r, prediction) == 0
        target = jnp.where(terminal, draws["x_r"], bootstrap)
        difference = prediction - target
        per_image = draws["scale"] * weight(t, r, sigma_data) * distance(difference, objective.huber_c)
        metrics = {
            "td_error": jnp.mean(difference**2, axis=(1, 2, 3)),
            "terminal": (r == 0).astype(jnp.float32),
        }
        return per_image, metrics | {k: v for k, v in draws.items() if k.startswith("reference_")}

    return Objective(draw, loss)
