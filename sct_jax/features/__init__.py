"""Networks that see: Inception-v3 and DINOv2, whose features the standard metrics compare."""

from sct_jax.features.spaces import NAMES, FeatureSpace, open_space
from sct_jax.features.store import MissingWeights

__all__ = ["NAMES", "FeatureSpace", "MissingWeights", "open_space"]
