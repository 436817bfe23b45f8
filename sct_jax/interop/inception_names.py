"""Names of the Inception-v3 of FID in the files people have, and its weights as ours.

Ours are the names of the graph of 2015 (:mod:`sct_jax.features.inception`). NVIDIA's translation keeps them, with dots;
pytorch-fid and torch-fidelity have torchvision's. Batch normalisation becomes part of the convolutions:
y = (conv(x) - mean) · scale / sqrt(variance + 0.001) + shift, in float64.
"""

from collections.abc import Callable, Mapping

import numpy as np

from sct_jax.errors import UserError
from sct_jax.features import inception
from sct_jax.interop.batch_norm import folded
from sct_jax.interop.matching import check

EPSILON = 1e-3  # of batch normalisation

_STEM = {"conv": "1a_3x3", "conv_1": "2a_3x3", "conv_2": "2b_3x3", "conv_3": "3b_1x1", "conv_4": "4a_3x3"}
_LETTERS = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
_BLOCKS = {f"mixed_{index}" if index else "mixed": name for index, name in enumerate(_LETTERS)}
# What torchvision calls the towers of a block, by its first number; the layers of a tower are numbered from 1.
_TOWERS = {
    "5": {"": "1x1", "tower": "5x5_", "tower_1": "3x3dbl_", "tower_2": "_pool"},
    "6a": {"": "3x3", "tower": "3x3dbl_"},
    "6": {"": "1x1", "tower": "7x7_", "tower_1": "7x7dbl_", "tower_2": "_pool"},
    "7a": {"tower": "3x3_", "tower_1": "7x7x3_"},
    "7": {"": "1x1", "tower": "3x3_", "tower_1": "3x3dbl_", "tower_2": "_pool"},
}


def torchvision(name: str) -> str:
    """``mixed_9/tower_1/mixed/conv`` -> ``Mixed_7b.branch3x3dbl_3a``."""
    if name in _STEM:
        return f"Conv2d_{_STEM[name]}"
    block, *rest, layer = name.split("/")
    kind = _BLOCKS[block]
    tower = (_TOWERS.get(kind) or _TOWERS[kind[0]])[rest[0] if rest else ""]
    number = 1 + int(layer.partition("_")[2] or 0)
    if rest[1:]:  # the pair at the end of a tower
        tower += ("2" if rest[0] == "tower" else "3") + "ab"[number - 1]
    elif tower.endswith("_"):
        tower += str(number)
    return f"Mixed_{kind}.branch{tower}"


def nvidia(name: str) -> str:
    """``mixed_9/tower_1/mixed/conv`` -> ``layers.mixed_9.tower_1_mixed_conv``; dots only in the blocks before."""
    block, _, rest = name.partition("/")
    widest = block in ("mixed_9", "mixed_10")
    return f"layers.{block}.{rest.replace('/', '_' if widest else '.')}".rstrip(".")


# Whose names: the name of a layer; of its kernel, scale, shift, mean and variance ("": there is none); of the output.
Scheme = tuple[Callable[[str], str], tuple[str, str, str, str, str], str]
SCHEMES: dict[str, Scheme] = {
    "NVIDIA": (nvidia, (".weight", "", ".beta", ".mean", ".var"), "output.weight"),
    "pytorch-fid and torch-fidelity": (
        torchvision,
        (".conv.weight", ".bn.weight", ".bn.bias", ".bn.running_mean", ".bn.running_var"),
        "fc.weight",
    ),
}


def scheme_of(arrays: Mapping[str, np.ndarray]) -> str:
    """Whose names these are, a key of SCHEMES; empty when they are of another network."""
    if any(name.startswith("layers.mixed") for name in arrays):
        return "NVIDIA"
    return "pytorch-fid and torch-fidelity" if any(name.startswith("Mixed_") for name in arrays) else ""


def params(arrays: Mapping[str, np.ndarray], scheme: str) -> dict[str, dict[str, np.ndarray]]:
    """The weights as :mod:`sct_jax.features.inception` wants them.

    Raises:
      UserError: when they are of another Inception, or not all of them are there.
    """
    if "fc.weight" in arrays and np.shape(arrays["fc.weight"])[:1] == (1000,):
        raise UserError(
            "these are torchvision's ImageNet weights, another network: FID is of the graph of 2015 (1008 classes)"
        )
    layer_name, parts, output = SCHEMES[scheme]
    shapes = inception.shapes()
    wanted: dict[str, tuple[int, ...]] = {output: shapes["output"]["kernel"][::-1]}
    for name, shape in shapes.items():
        if name != "output":
            height, width, channels, features = shape["kernel"]
            kinds = [(features, channels, height, width), *[(features,)] * 4]
            wanted |= {layer_name(name) + part: kind for part, kind in zip(parts, kinds, strict=True) if part}
    # What else a file has (counts of batches, the bias of the logits) changes none of the features.
    check({name: value for name, value in arrays.items() if name in wanted}, wanted)
    found = {"output": {"kernel": np.asarray(arrays[output], np.float32).T}}
    for name in shapes.keys() - {"output"}:
        values = [np.asarray(arrays[layer_name(name) + part], np.float64) if part else 1.0 for part in parts]
        found[name] = folded(*values, EPSILON)
    return found
