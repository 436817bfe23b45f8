"""Generator-augmented flows (GC, arXiv 2406.09570): the model's own images in place of some of the data's.

An average of the trained network, the generator, maps ``x_0 + r ε`` back to an image ``x̂ = f_EMA(x_0 + r ε, r)`` that
is coupled with its noise ``ε`` better than ``x_0`` is. The pair of states is then ``x̂ + r ε`` and ``x̂ + t ε``, with the
same noise. That happens to an image with probability ``objective.generated``; the others are those of CT. (The authors'
code generates with 1 minus its parameter, which is 1/2 in all they publish.)

The generator is not trained through, and has no dropout: the authors' is switched to inference by the evaluation before
the first step, and their models have none.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sct_jax.diffusion import process
from sct_jax.objectives import Array, Draws

GENERATOR = "generator"  # in the context: its parameters
CHOSEN = "generated"  # in the draws: which images are replaced
CHOICE = 2  # folded into the key of a batch's draws


def choose(objective: Any, key: Array, r: Array) -> Array:
    """Which images are replaced, bool ``[B]``: with probability ``objective.generated``, where ``r > 0``."""
    return jax.random.bernoulli(jax.random.fold_in(key, CHOICE), objective.generated, r.shape) & (r > 0.0)


def states(generate: Callable[[Array, Array], Array], draws: Draws) -> tuple[Array, Array, Array]:
    """``(x_t, x_r, x̂_0)`` with the images of ``generate(x, t)`` where they are chosen, elsewhere those of the draws."""
    x_r, estimate = draws["x_r"], draws["estimate"]
    chosen = process.per_image(draws[CHOSEN], x_r) > 0
    image = generate(x_r, draws["r"])
    moved = lambda x: jnp.where(chosen, x + (image - estimate), x)  # noqa: E731
    return moved(draws["x_t"]), moved(x_r), jnp.where(chosen, image, estimate)


def decay_at(objective: Any, step: Array) -> Array:
    """The decay of the generator after step ``step`` (from 0); 1, no change, but for every ``generator_every`` steps.

    ``min(decay, 1 − (1 + k)^{−2/3})``, and 0 up to the second update: the warm-up of the library that the authors use,
    ema_pytorch, which counts training steps ``k``, not updates.
    """
    k = jnp.asarray(step, jnp.float32)
    decay = jnp.minimum(objective.generator_decay, 1.0 - (1.0 + k) ** (-2.0 / 3.0))
    decay = jnp.where(k <= objective.generator_every, 0.0, decay)
    return jnp.where(step % objective.generator_every == 0, decay, 1.0)
