"""Truncated consistency models, stage 2 (TCM, arXiv 2410.14895): the network is spent on the noise levels ``t ≥ t'``.

Below ``t'`` (``objective.dividing_time``) a consistency model trained before, that of stage 1, answers and stays as it
is; the trained network answers from ``t'`` up. The two are one function, and the TD target at ``(x_r, r)`` asks the one
whose part ``r`` lies in. What holds the function to the data is the boundary: a fixed share of the batch is moved to
``t = t'``, whose ``r < t'`` are all stage 1's, and the loss is ``mean over the other images + w mean over these``, each
divided by its own number.

The authors put the boundary at ``t' + 1e-8``, so that the trained network answers there; it does so at ``t'`` itself,
which float32 can tell from ``r``.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from sct_jax.diffusion import process
from sct_jax.objectives import Array
from sct_jax.schema import DENOISING

STAGE1 = "stage1"  # in the context: the parameters of stage 1


def is_used(objective: Any) -> bool:
    """Whether the target is divided between two networks; a denoising objective has no such target."""
    return objective.method not in DENOISING and objective.bootstrap == "divided"


def num_boundary(objective: Any, count: int) -> int:
    """The images of a batch of ``count`` that are moved to the boundary: ``⌊share · count⌋``."""
    return math.floor(objective.boundary_share * count + 1e-9)


def on_boundary(objective: Any, count: int) -> Array:
    """Which images those are, bool ``[count]``: the first, for the images of a batch come in random order."""
    return jnp.arange(count) < num_boundary(objective, count)


def divided_times(objective: Any, t: Array) -> Array:
    """Noise levels ``[B]`` of stage 2: the boundary's at ``t'``, the others not below it (where rounding put them)."""
    edge = objective.dividing_time
    return jnp.where(on_boundary(objective, len(t)), edge, jnp.maximum(t, edge))


def factors(objective: Any, count: int) -> Array:
    """``[count]``, on the loss of each image: its mean is then the sum of two means, whatever parts it is taken in."""
    boundary = num_boundary(objective, count)
    if not boundary:
        return jnp.ones(count)
    own, others = objective.boundary_weight * count / boundary, count / (count - boundary)
    return jnp.where(on_boundary(objective, count), own, others)


def is_below(objective: Any, r: Array) -> Array:
    """Whether stage 1 answers at noise levels ``r``, bool of their shape."""
    return r < objective.dividing_time


def answer(trained: Array, stage1: Array, below: Array) -> Array:
    """The divided function ``[B, H, W, C]`` from the answers of both networks and ``is_below``, ``[B]``."""
    return jnp.where(process.per_image(below, trained) > 0, jax.lax.stop_gradient(stage1), trained)
