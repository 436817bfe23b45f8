"""Exponential moving averages of the parameters, as named profiles that are functions of the step alone.

A profile is a short text: ``constant:0.9999``, or ``half_life:IMAGES[:RAMP]``, EDM's half-life in training images that
is limited to ``RAMP`` times the images seen so far (NVIDIA's EDM recipe: ``half_life:500000:0.05``).
"""

from typing import TYPE_CHECKING, Any, NamedTuple

from sct_jax.errors import UserError

if TYPE_CHECKING:
    import jax


class Profile(NamedTuple):
    """``decay`` for the constant kind; ``half_life`` (images) and ``ramp`` (0: none) for the other."""

    kind: str
    decay: float = 0.0
    half_life: float = 0.0
    ramp: float = 0.0


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
    except ValueError:
        pass
    raise UserError(
        f"config.ema.profiles: {text!r} is no profile; write constant:DECAY (0 <= DECAY < 1) or "
        "half_life:IMAGES[:RAMP], such as constant:0.9999 or half_life:500000:0.05"
    )


def decay_at(profile: Profile, step: "jax.Array", batch_size: int) -> "jax.Array":
    """The factor ``β`` of update ``step`` (counted from 0): ``ema ← β ema + (1 − β) params``."""
    import jax.numpy as jnp

    if profile.kind == "constant":
        return jnp.asarray(profile.decay, jnp.float32)
    half_life = jnp.asarray(profile.half_life, jnp.float32)
    if profile.ramp:
        half_life = jnp.minimum(half_life, profile.ramp * batch_size * step.astype(jnp.float32))
    return jnp.exp2(-batch_size / jnp.maximum(half_life, 1e-8))


def update(ema: Any, params: Any, decay: "jax.Array") -> Any:
    """One update of a tree of averages, in float32; a parameter that never moves is kept to the last bit."""
    import jax

    return jax.tree.map(lambda average, value: average + (1.0 - decay) * (value - average), ema, params)
