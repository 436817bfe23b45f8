"""Dynamic scaling of the loss for gradients in float16, whose smallest normal number is 6e-5.

The loss is multiplied by a power of two before the backward pass and the gradients are divided by it after, in float32,
so that what float16 would round to zero keeps its bits. Where the gradients overflow the step is left out and the scale
halved; after ``PATIENCE`` steps that do not overflow it is doubled (Micikevicius et al. 2018, arXiv 1710.03740, sec.
3.2). The scale lies in the state, so that a resumed run has it.
"""

from typing import Any

import jax
import jax.numpy as jnp

Array = jax.Array

PATIENCE = 2000
LARGEST = 2.0**24
NAME = "loss_scale"  # its place in the state's context


def is_used(config: Any) -> bool:
    """Whether a config's gradients are made in float16."""
    return config.model.compute_dtype == "float16"


def initial(config: Any) -> dict[str, Array]:
    """``{"scale", "good"}``: the factor, and the steps since it was last changed."""
    return {"scale": jnp.float32(config.optimizer.loss_scale), "good": jnp.int32(0)}


def unscaled(grads: Any, scale: dict[str, Array]) -> tuple[Any, Array]:
    """The gradients of the loss itself, and whether to take them.

    They are not taken where one of them is not finite, and are zeros then. At a scale of 1 there is nothing to lower:
    what is not finite then is an error, and is handed on to be seen.
    """
    factor = scale["scale"]
    finite = jnp.all(jnp.stack([jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]))
    taken = finite | (factor <= 1.0)
    return jax.tree.map(lambda g: jnp.where(taken, g / factor, 0.0), grads), taken


def moved(scale: dict[str, Array], taken: Array) -> dict[str, Array]:
    """The scale for the next step."""
    good = jnp.where(taken, scale["good"] + 1, 0)
    grows = good >= PATIENCE
    factor = jnp.where(taken, jnp.where(grows, 2.0, 1.0), 0.5) * scale["scale"]
    return {"scale": jnp.clip(factor, 1.0, LARGEST), "good": jnp.where(grows, 0, good)}


def chosen(taken: Array, new: Any, old: Any) -> Any:
    """``new`` where the gradients were taken, else ``old``: two trees alike."""
    return jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, old)
