"""Training objectives as pure functions: draw the random parts of a batch once, then a loss for any part of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Array = jax.Array
# What the network sees and is compared with: arrays with a leading batch axis.
Draws = dict[str, Array]


class Objective(NamedTuple):
    """A training method.

    ``draw(images, labels, key, step)`` makes everything random or reference-based for a global batch (no network),
    as arrays with the batch as leading axis. ``loss(params, context, draws, dropout_key)`` gives the loss of each
    image ``[b]`` and per-image metrics, for all of the draws or any slice of them (gradient accumulation).
    """

    draw: Callable[[Array, Array, Array, Array], Draws]
    loss: Callable[[Any, Any, Draws, Array], tuple[Array, dict[str, Array]]]


def build(config: Any, denoise: Callable[..., Array]) -> Objective:
    """The objective that ``config.objective`` and ``config.reference`` describe, over a pure denoiser."""
    from sct_jax.objectives import consistency, denoising

    if config.objective.method == "edm":
        return denoising.build(config, denoise)
    return consistency.build(config, denoise)
