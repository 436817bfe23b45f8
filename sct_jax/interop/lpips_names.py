"""Names of LPIPS's weights in the files people have, and the weights as ours.

A backbone has torchvision's names (``features.0.weight``), the linear heads the names of the PyPI package ``lpips``
(``lin0.model.1.weight``): two files, or one, the state_dict of that package's module, whose backbone is in slices
(``net.slice1.0.weight``).
"""

import re
from collections.abc import Mapping

import numpy as np

from sct_jax.errors import UserError
from sct_jax.features import lpips
from sct_jax.interop.matching import check

TORCHVISION, LPIPS = "torchvision and lpips", "lpips"
_HEAD = re.compile(r"lin(\d+)\.model\.[01]\.weight")  # behind dropout, or without it
_SLICE = re.compile(r"net\.slice\d+\.")
# Of the module: heads again, and the scaling of images, which is a constant; of a backbone: its classifier.
_UNUSED = ("lins.", "scaling_layer.", "classifier.")


def scheme_of(arrays: Mapping[str, np.ndarray]) -> str:
    """TORCHVISION or LPIPS; empty when the names are of another network."""
    if any(_SLICE.match(name) for name in arrays):
        return LPIPS
    return TORCHVISION if "features.0.weight" in arrays or any(map(_HEAD.fullmatch, arrays)) else ""


def params(arrays: Mapping[str, np.ndarray], scheme: str) -> dict[str, dict[str, np.ndarray]]:
    """The weights as :mod:`sct_jax.features.lpips` wants them.

    Raises:
      UserError: when heads or backbone are not there, or are of another network.
    """
    arrays = {_renamed(name): value for name, value in arrays.items() if not name.startswith(_UNUSED)}
    if "head_0.weight" not in arrays:
        raise UserError("these are weights of a backbone: LPIPS's linear heads are missing, give their file as --heads")
    if "0.weight" not in arrays:
        raise UserError(
            "these are LPIPS's linear heads: give the file of the backbone as --source, and this one as --heads"
        )
    shapes = lpips.shapes(_kind(arrays))
    check(arrays, {name: shape for layer, parts in shapes.items() for name, shape in _theirs(layer, parts).items()})
    return {layer: _ours(layer, parts, arrays) for layer, parts in shapes.items()}


def _renamed(name: str) -> str:
    """``features.3.squeeze.weight`` and ``net.slice2.3.squeeze.weight`` -> ``3.squeeze.weight``; heads ``head_0``."""
    head = _HEAD.fullmatch(name)
    return f"head_{head[1]}.weight" if head else _SLICE.sub("", name).removeprefix("features.")


def _kind(arrays: Mapping[str, np.ndarray]) -> str:
    if any("squeeze" in name for name in arrays):
        return "squeeze"
    return "alex" if np.shape(arrays["0.weight"])[-1:] == (11,) else "vgg"


def _theirs(layer: str, parts: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a layer's arrays in a file."""
    if "weight" in parts:
        return {f"{layer}.weight": (1, *parts["weight"], 1, 1)}
    height, width, channels, features = parts["kernel"]
    name = layer.replace("/", ".")
    return {f"{name}.weight": (features, channels, height, width), f"{name}.bias": (features,)}


def _ours(layer: str, parts: dict[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    name = layer.replace("/", ".")
    weight = np.asarray(arrays[f"{name}.weight"], np.float32)
    if "weight" in parts:
        return {"weight": weight.reshape(-1)}
    return {"kernel": weight.transpose(2, 3, 1, 0), "bias": np.asarray(arrays[f"{name}.bias"], np.float32)}
