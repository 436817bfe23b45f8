"""EDM's denoising objective (arXiv 2206.00364, eq. 8), which makes the diffusion model that tuning starts from.

With ``method = "stf"`` the target is not the sample but its posterior mean (Stable Target Field, arXiv 2302.00670).
With ``uncertainty`` the loss at each noise level is weighted by what the network learns to expect of it (EDM2).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sct_jax.data.augment import Parameters
from sct_jax.diffusion import process
from sct_jax.diffusion.condition import Condition
from sct_jax.errors import UserError
from sct_jax.objectives import Array, Draws, Objective, pairs, references
from sct_jax.objectives.distances import inverse_output_scale


def build(
    config: Any,
    denoise: Callable[..., Array],
    device_mesh: Any = None,
    uncertainty: Callable[[Any, Array], Array] | None = None,
) -> Objective:
    """``E λ(t) ‖D(x_0 + tε, t) − x̂_0‖²``, ``λ = 1/c_out²``, ``t`` as configured; mean over pixels, not the sum.

    With ``objective.uncertainty`` it is ``E [λ(t)/e^{u(t)} ‖D − x̂_0‖² + u(t)]`` (EDM2, arXiv 2312.02696, eq. 14), ``u``
    being ``uncertainty(params, t)``. EDM2's code sums over the ``H·W·C`` values of an image: its loss is so many times
    this one.

    Raises:
      UserError: when the config asks for the uncertainty of a network without it.
    """
    if config.objective.uncertainty and uncertainty is None:
        raise UserError(
            "config.objective.uncertainty = True needs the head of model.name = 'edm2': set "
            "config.model.uncertainty_channels (EDM2: 128)"
        )
    objective, sigma_data = config.objective, config.model.sigma_data
    draw_t = pairs.build_times(objective)
    stable = objective.method == "stf"
    posterior_mean = references.build(config, device_mesh) if stable else None

    def draw(
        images: Array,
        labels: Array,
        key: Array,
        step: Array,
        rows: Any = None,
        augment_labels: Array | None = None,
        augmented: tuple[Array, Parameters] | None = None,
    ) -> Draws:
        time_key, noise_key = jax.random.split(key)
        t = draw_t(time_key, images.shape[:1])
        noise = jax.random.normal(noise_key, images.shape)
        done = {} if augment_labels is None else {"augment_labels": augment_labels}
        seen = {} if augmented is None else {"augmented": augmented}
        draws = {"labels": labels, "t": t, "x_t": process.add_noise(images, noise, t)} | done
        if posterior_mean is None:
            return draws | {"target": images}
        posterior = posterior_mean(images, noise, t, labels, rows, key, **done, **seen)
        return draws | {
            "target": posterior.estimate,
            "reference_ess": posterior.effective_sample_size,
            "reference_shift": posterior.own_distance,
        }

    def loss(params: Any, context: Any, draws: Draws, dropout_key: Array) -> tuple[Array, dict[str, Array]]:
        t, condition = draws["t"], Condition(draws["labels"], draws.get("augment_labels"))
        prediction = denoise(params, draws["x_t"], t, condition, dropout_key=dropout_key)
        error = jnp.mean((prediction - draws["target"]) ** 2, axis=tuple(range(1, prediction.ndim)))
        metrics = {k: v for k, v in draws.items() if k.startswith("reference_")}
        weighted, metrics = inverse_output_scale(t, t, sigma_data) * error, {"error": error} | metrics
        if not objective.uncertainty:
            return weighted, metrics
        expected = uncertainty(params, t)
        return weighted * jnp.exp(-expected) + expected, metrics | {"uncertainty": expected}

    return Objective(draw, loss)
