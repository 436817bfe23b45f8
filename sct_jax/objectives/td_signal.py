"""``td_signal``: how much of the TD difference is left in the precision that a run computes in.

For a few images at every octave of the noise level, the cosine between the difference ``g(x_t, t) − target`` as it is
trained on and float32's, with the same parameters, noise and dropout masks: 1 where rounding changes nothing, near 0
where the loss regresses on rounding errors. Both forms of the difference are measured (`bootstrap.py`), and
``objective.difference = "auto"`` takes the sounder one at each octave. The transition is the sample's (CT): the form
depends on the network's arithmetic, not on where its target comes from. Of a divided target (`divided.py`) the images
whose ``r`` is the trained network's are measured: between two networks there is no derivative to prefer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sct_jax.diffusion import process, times
from sct_jax.diffusion.condition import Condition
from sct_jax.objectives import Array, bootstrap, divided, pairs
from sct_jax.objectives.consistency import combine

IMAGES = 32
SOUND = 0.995  # at and above it an octave stays evaluated, which is cheaper
LOST = 0.9  # a mean below it is said, where it is not mended
CANDIDATES = 4096  # pairs drawn to find images at every octave that training meets


class Signal(NamedTuple):
    """Mean cosines by octave of the noise level, ``[len(OCTAVES)]``; ``share`` is that of an octave in training.

    Octaves that training does not meet have share 0 and cosines that mean nothing. The shares sum to 1, or to 0 where
    no image's target is the trained network's.
    """

    evaluated: Array
    tangent: Array
    share: Array

    def trained(self, form: str, chosen: Any) -> np.ndarray:
        """The cosines of the difference as it is trained on, given the octaves ``chosen`` for the derivative."""
        evaluated, tangent = np.asarray(self.evaluated), np.asarray(self.tangent)
        if form == "mixed":
            return np.where(np.asarray(chosen), tangent, evaluated)
        return tangent if form == "tangent" else evaluated

    def mean(self, cosines: Any) -> float:
        """Over the noise levels of training; 1 where there is nothing to measure."""
        share = np.asarray(self.share)
        return float(np.sum(share * np.asarray(cosines))) if share.any() else 1.0

    def better_as_derivative(self) -> np.ndarray:
        """The octaves whose evaluated difference is not sound, and less so than the derivative.

        Those that training does not meet follow the nearest.
        """
        met = np.flatnonzero(np.asarray(self.share))
        if not len(met):
            return np.zeros(len(bootstrap.OCTAVES), bool)
        nearest = met[np.argmin(np.abs(np.arange(len(bootstrap.OCTAVES))[:, None] - met), axis=1)]
        evaluated, tangent = np.asarray(self.evaluated), np.asarray(self.tangent)
        return ((evaluated < SOUND) & (tangent > evaluated))[nearest]


def build(
    config: Any, denoise: Callable[..., Array], forward: Callable[..., Array], exact: Callable[..., Array]
) -> Callable[[Any, Array, Array, Array, Array], Signal]:
    """``measure(params, images, labels, key, step) -> Signal`` of an online consistency objective.

    Args:
      denoise, forward: the network as it trains, and by operations that ``jax.jvp`` accepts.
      exact: the same network in float32.
    """
    objective = config.objective
    draw_pair = pairs.build(objective, config.total_steps)
    edges = times.phase_edges(objective.phases, objective.t_min, objective.t_max, objective.rho)
    places = len(bootstrap.OCTAVES)

    def measure(params: Any, images: Array, labels: Array, key: Array, step: Array) -> Signal:
        time_key, noise_key, dropout_key = jax.random.split(key, 3)
        t, r = draw_pair(time_key, CANDIDATES, step)
        place = bootstrap.octave(t)
        if divided.is_used(objective):
            place = jnp.where(divided.is_below(objective, r), places, place)
        index, there, share = _spread(place, len(images), places)
        t, r = t[index], r[index]
        s = times.phase_start(t, edges)
        r = jnp.maximum(r, s)
        noise = jax.random.normal(noise_key, images.shape)
        x_t, x_r = process.add_noise(images, noise, t), process.add_noise(images, noise, r)

        def at(network: Callable[..., Array]) -> Callable[[Array, Array], Array]:
            return lambda x, t: network(params, x, t, Condition(labels), dropout_key=dropout_key)

        def cosines(prediction: Array, target: Array) -> Array:
            found = _cosine(prediction - combine(images, target, t, r, s), wanted)
            return _by_place(found, bootstrap.octave(t), there, places)

        wanted = at(exact)(x_t, t) - combine(images, at(exact)(x_r, r), t, r, s)
        prediction, every = at(denoise)(x_t, t), jnp.ones(t.shape, bool)
        derived = bootstrap.by_derivative(at(forward), x_t, images, x_r, t, r, prediction, every)
        return Signal(cosines(prediction, at(denoise)(x_r, r)), cosines(prediction, derived), share)

    return measure


def _spread(place: Array, count: int, places: int) -> tuple[Array, Array, Array]:
    """``count`` candidates spread evenly over the places: their indices, which of them are real, and the places' share.

    Places are filled in turn, from those that have candidates; an index beyond a place's candidates is not real. A
    candidate of place ``places`` is none.
    """
    order = jnp.argsort(place, stable=True)
    number = jnp.bincount(place, length=places + 1)[:places]
    start = jnp.cumsum(number) - number
    slot = jnp.arange(count)
    own, turn = slot % places, slot // places
    index = order[jnp.minimum(start[own] + turn, place.size - 1)]
    return index, turn < number[own], number / jnp.maximum(jnp.sum(number), 1)


def _cosine(a: Array, b: Array) -> Array:
    """``[B]``: of two arrays ``[B, ...]``; 1 where both are zero."""
    dot = lambda x, y: jnp.sum(x * y, axis=tuple(range(1, x.ndim)))  # noqa: E731
    sizes = jnp.sqrt(dot(a, a)) * jnp.sqrt(dot(b, b))
    return jnp.where(sizes > 0, dot(a, b) / jnp.where(sizes > 0, sizes, 1.0), jnp.all(a == b) * 1.0)


def _by_place(values: Array, place: Array, there: Array, places: int) -> Array:
    number = jnp.zeros(places).at[place].add(there * 1.0)
    return jnp.zeros(places).at[place].add(jnp.where(there, values, 0.0)) / jnp.maximum(number, 1.0)
