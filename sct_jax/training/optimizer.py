"""Optax optimizers of the published recipes, from ``config.optimizer``."""

from typing import Any

import jax.numpy as jnp
import optax

UPDATE_RULES = {
    "adam": lambda rule: optax.scale_by_adam(rule.b1, rule.b2, rule.eps),
    "radam": lambda rule: optax.scale_by_radam(rule.b1, rule.b2, rule.eps),
    "lion": lambda rule: optax.scale_by_lion(rule.b1, rule.b2),
}


def learning_rate(optimizer: Any, total_steps: int) -> optax.Schedule:
    """The learning rate against the step: a linear ramp, then constant, EDM2's ``lr/√max(k/ref, 1)`` or cosine."""

    def schedule(step):
        step = jnp.asarray(step, jnp.float32)
        rate = optimizer.lr
        if optimizer.decay == "inverse_sqrt":
            rate = rate / jnp.sqrt(jnp.maximum(step / optimizer.decay_reference_steps, 1.0))
        elif optimizer.decay == "cosine":
            rate = rate * 0.5 * (1.0 + jnp.cos(jnp.pi * jnp.minimum(step / total_steps, 1.0)))
        if optimizer.ramp_steps:
            rate = rate * jnp.minimum((step + 1.0) / optimizer.ramp_steps, 1.0)
        return jnp.asarray(rate, jnp.float32)

    return schedule


def build(optimizer: Any, total_steps: int) -> optax.GradientTransformation:
    """Clipping (if any), the update rule, the scheduled learning rate."""
    rule = UPDATE_RULES[optimizer.name](optimizer)
    clip = [optax.clip_by_global_norm(optimizer.clip_norm)] if optimizer.clip_norm else []
    return optax.chain(*clip, rule, optax.scale_by_learning_rate(learning_rate(optimizer, total_steps)))
