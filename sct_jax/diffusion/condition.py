"""What a denoiser is told beside the noisy images and their noise level, as one value."""

from typing import NamedTuple

import jax

Array = jax.Array


class Condition(NamedTuple):
    """A pytree of arrays with a leading batch axis; None where a network has no such input, or is not told.

    Attributes:
      labels: classes, int32 ``[B]``, −1 for none; None: none of any image.
      augment_labels: what was done to the images, float32 ``[B, 9]`` (``data.augment``); None: nothing.
      s: the noise level that a two-time network predicts the way to, float32 ``[B]``; None: 0, the end of the path.
      guidance: the weight ω of a network that was distilled from guided predictions, float32 ``[B]``; None: 0.
    """

    labels: Array | None = None
    augment_labels: Array | None = None
    s: Array | None = None
    guidance: Array | None = None


NO_CONDITION = Condition()
