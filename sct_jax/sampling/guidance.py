"""Guidance: predictions pushed away from those of a worse model, ``D_good + ω (D_good − D_bad)``.

One formula for both kinds. Classifier-free guidance (arXiv 2207.12598): the bad model is the same network without the
label. Guidance by a bad version of itself (arXiv 2406.02507; SCT, arXiv 2410.18958): a snapshot from earlier
in the run, or a smaller network. Either costs two evaluations, made in one batched call where the networks are alike.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sct_jax.diffusion.condition import NO_CONDITION, Condition

Array = jax.Array
Denoise = Callable[..., Array]


def guide(good: Array, bad: Array, omega: Array | float) -> Array:
    """``good + omega (good − bad)``, linear in ``omega``; 0 is the good prediction itself."""
    return good + omega * (good - bad)


def guided_denoise(
    denoise: Denoise, omega: Array | float, *, unconditional: bool = False, bad_denoise: Denoise | None = None
) -> Denoise:
    """A denoiser ``(params, x, t, condition) -> x_0 prediction`` that is guided with weight ``omega``.

    Args:
      denoise: the good network.
      omega: the weight, a scalar; it may be traced.
      unconditional: guide by the same network without labels. ``params`` are its own, and one call of ``2B`` images
        does both.
      bad_denoise: guide by a network of another architecture. ``params`` are ``(good, bad)``; there are two calls.

    Without either, ``params`` are those of two versions of the network, as :func:`stack` joins them, and one call
    mapped over both does all.

    Raises:
      ValueError: when both kinds of bad model are asked for, or labels are lacking where they alone tell the two apart.
    """
    if unconditional and bad_denoise is not None:
        raise ValueError("a bad model is either the network without labels or another one, not both")

    def without_labels(params: Any, x: Array, t: Array, condition: Condition = NO_CONDITION) -> Array:
        labels = condition.labels
        if labels is None:
            raise ValueError("guidance by the unconditional prediction needs labels")
        # Rows alternate, so that the two of an image stay on the device that holds it.
        both = jnp.stack([labels, jnp.full_like(labels, -1)], axis=1).reshape(-1)
        x, t, twice = jax.tree.map(lambda rows: jnp.repeat(rows, 2, axis=0), (x, t, condition))
        predictions = denoise(params, x, t, twice._replace(labels=both))
        return guide(predictions[0::2], predictions[1::2], omega)

    def two_versions(params: Any, x: Array, t: Array, condition: Condition = NO_CONDITION) -> Array:
        good, bad = jax.vmap(lambda version: denoise(version, x, t, condition))(params)
        return guide(good, bad, omega)

    def two_networks(params: Any, x: Array, t: Array, condition: Condition = NO_CONDITION) -> Array:
        good, bad = params
        return guide(denoise(good, x, t, condition), bad_denoise(bad, x, t, condition), omega)

    if unconditional:
        return without_labels
    return two_versions if bad_denoise is None else two_networks


def stack(good: Any, bad: Any) -> Any:
    """Two parameter trees of one architecture as one, each leaf with a leading axis of 2."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), good, bad)


class Guide(NamedTuple):
    """What guides a model away from itself; the default is its own unconditional prediction.

    Attributes:
      params: weights of the bad model; None: the good model's own, without labels.
      denoise: the bad model's network where it is another; None: the good model's.
    """

    params: Any = None
    denoise: Denoise | None = None

    def join(self, params: Any) -> Any:
        """The parameters that :func:`guided_denoise` takes, of the good model and this one."""
        if self.params is None:
            return params
        return stack(params, self.params) if self.denoise is None else (params, self.params)
