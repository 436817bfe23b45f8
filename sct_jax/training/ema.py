"""Exponential moving averages of the parameters, as named profiles that are functions of the step alone.

A profile is a short text: ``constant:0.9999``; ``half_life:IMAGES[:RAMP]``, EDM's half-life in training images that is
limited to ``RAMP`` times the images seen so far (NVIDIA's EDM recipe: ``half_life:500000:0.05``); or ``power:STD``,
EDM2's power function whose width is the share ``STD`` of the training so far (``power:0.05``).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sct_jax.errors import UserError

if TYPE_CHECKING:
    import jax


class Profile(NamedTuple):
    """What the kind needs: ``decay`` (constant), ``half_life`` in images and ``ramp`` (0: none), ``gamma`` (power)."""

    kind: str
    decay: float = 0.0
    half_life: float = 0.0
    ramp: float = 0.0
    gamma: float = 0.0


def parse_profile(text: str) -> Profile:
    """The profile a config names.

    Raises:
      UserError: when the text is no profile.
    """
    kind, *numbers = text.split(":")
    try:
        values = [float(number) for number in numbers]
        if kind == "constant" and len(values) == 1 and 0 <= values[0] < 1:
            return Profile(kind, decay=values[0])
        if kind == "half_life" and 1 <= len(values) <= 2 and values[0] > 0 and min(values) >= 0:
            return Profile(kind, half_life=values[0], ramp=values[1] if len(values) == 2 else 0.0)
        if kind == "power" and len(values) == 1 and 0 < values[0] <= 0.288:
            return Profile(kind, gamma=power_exponent(values[0]))
    except ValueError:
        pass
    raise UserError(
        f"config.ema.profiles: {text!r} is no profile; write constant:DECAY (0 <= DECAY < 1), "
        "half_life:IMAGES[:RAMP] or power:STD (0 < STD <= 0.288), such as constant:0.9999, half_life:500000:0.05 or "
        "power:0.05"
    )


def power_exponent(std: float) -> float:
    """The exponent ``γ`` of the averaging weights ``τ^γ``, ``τ`` in [0, 1], whose standard deviation is ``std``.

    ``std² = (γ + 1) / ((γ + 2)² (γ + 3))``: the largest root of ``γ³ + 7γ² + (16 − std⁻²)γ + 12 − std⁻² = 0`` (EDM2,
    arXiv 2312.02696, sec. 3.1 and app. C). At ``std = 1/√12`` it is 0, the plain average of all steps.
    """
    square = std**-2.0
    return float(np.roots([1.0, 7.0, 16.0 - square, 12.0 - square]).real.max())


def decay_at(profile: Profile, step: "jax.Array", batch_size: int) -> "jax.Array":
    """The factor ``β`` of update ``step`` (counted from 0): ``ema ← β ema + (1 − β) params``."""
    import jax.numpy as jnp

    if profile.kind == "constant":
        return jnp.asarray(profile.decay, jnp.float32)
    if profile.kind == "power":  # (1 − 1/k)^{γ+1} with k from 1: the first update takes the parameters
        k = step.astype(jnp.float32) + 1.0
        return jnp.exp((profile.gamma + 1.0) * jnp.log1p(-1.0 / k))
    half_life = jnp.asarray(profile.half_life, jnp.float32)
    if profile.ramp:
        half_life = jnp.minimum(half_life, profile.ramp * batch_size * step.astype(jnp.float32))
    return jnp.exp2(-batch_size / jnp.maximum(half_life, 1e-8))


def update(ema: Any, params: Any, decay: "jax.Array") -> Any:
    """One update of a tree of averages, in float32; a parameter that never moves is kept to the last bit."""
    import jax

    return jax.tree.map(lambda average, value: average + (1.0 - decay) * (value - average), ema, params)
