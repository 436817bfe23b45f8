"""Networks that see, Inception-v3, DINOv2 and EfficientNet-Lite2, whose features metrics compare."""

from sct_jax.features.spaces import NAMES, FeatureSpace, open_space
from sct_jax.features.store import MissingWeights

__all__ = ["NAMES", "FeatureSpace", "MissingWeights", "open_space"]
