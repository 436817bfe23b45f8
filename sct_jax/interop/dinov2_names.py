"""Names of DINOv2's weights in Meta's files and in Hugging Face's, and the weights as ours."""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sct_jax.errors import UserError
from sct_jax.features.dinov2 import HEAD_CHANNELS, RESOLUTION
from sct_jax.interop.matching import check

MOST_BLOCKS = 128
_MASK = "mask_token"  # for training only
# Hugging Face's name (a pattern) -> Meta's.
_HUGGING_FACE = {
    r"embeddings\.(cls_token|mask_token)": r"\1",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection\.": "patch_embed.proj.",
    r"encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"blocks.\1.attn.proj.",
    r"encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.": r"blocks.\1.attn.\2.",
    r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1": r"blocks.\1.ls\2.gamma",
    r"encoder\.layer\.(\d+)\.mlp\.weights_in\.": r"blocks.\1.mlp.w12.",
    r"encoder\.layer\.(\d+)\.mlp\.weights_out\.": r"blocks.\1.mlp.w3.",
    r"encoder\.layer\.(\d+)\.": r"blocks.\1.",
    r"layernorm\.": "norm.",
}


def scheme_of(arrays: Mapping[str, np.ndarray]) -> str:
    """``Meta`` or ``Hugging Face``; empty when the names are of another network."""
    if {"cls_token", "pos_embed"} <= arrays.keys():
        return "Meta"
    return "Hugging Face" if {"embeddings.cls_token", "embeddings.position_embeddings"} <= arrays.keys() else ""


def params(arrays: Mapping[str, np.ndarray], scheme: str) -> dict[str, Any]:
    """The weights as :mod:`sct_jax.features.dinov2` wants them; sizes follow from their shapes.

    Raises:
      UserError: when they are of another transformer, or not all of them are there.
    """
    if scheme == "Hugging Face":
        arrays = _as_meta(arrays)
    if any("register_tokens" in name for name in arrays):
        raise UserError("the weights have register tokens: FD-DINOv2 is of those without (dinov2_vitl14_pretrain.pth)")
    arrays = {name: value for name, value in arrays.items() if name != _MASK}
    sizes = _sizes(arrays)
    check(arrays, _wanted(sizes))
    return _ours({name: np.asarray(value, np.float32) for name, value in arrays.items()}, sizes)


class _Sizes(NamedTuple):
    """Of a transformer: blocks, channels, pixels of a patch, positions along an axis, outputs of an MLP's first layer,
    and the names of its two layers."""

    depth: int
    width: int
    patch: int
    side: int
    hidden: int
    mlp: tuple[str, str]


def _sizes(arrays: Mapping[str, np.ndarray]) -> _Sizes:
    """As the shapes tell; where an array is missing, the check behind this says so."""
    depth = len({match[1] for name in arrays if (match := re.match(r"blocks\.(\d{1,3})\.", name))})
    width = np.shape(arrays["cls_token"])[-1]
    patch = np.shape(arrays.get("patch_embed.proj.weight", np.zeros(14)))[-1]
    side = math.isqrt(max(np.shape(arrays["pos_embed"])[1] - 1, 1))
    mlp = ("mlp.w12", "mlp.w3") if "blocks.0.mlp.w12.weight" in arrays else ("mlp.fc1", "mlp.fc2")
    hidden = np.shape(arrays.get(f"blocks.0.{mlp[0]}.bias", np.zeros(4 * width)))[0]
    if not 0 < depth <= MOST_BLOCKS or not width or width % HEAD_CHANNELS or not patch or RESOLUTION % patch:
        raise UserError(f"a transformer of {depth} blocks, width {width}, patches of {patch} is none of DINOv2's")
    return _Sizes(depth, width, patch, side, hidden, mlp)


def _wanted(sizes: _Sizes) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all arrays."""
    width, patch, (first, second) = sizes.width, sizes.patch, sizes.mlp
    matrices = {
        "attn.qkv": (3 * width, width),
        "attn.proj": (width, width),
        first: (sizes.hidden, width),
        second: (width, sizes.hidden // 2 if first == "mlp.w12" else sizes.hidden),
    }
    block: dict[str, tuple[int, ...]] = {"ls1.gamma": (width,), "ls2.gamma": (width,)}
    for name, shape in matrices.items():
        block |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    for name in ("norm1", "norm2"):
        block |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    wanted: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + sizes.side**2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for index in range(sizes.depth):
        wanted |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    return wanted


def _as_meta(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Meta's names; query, key and value become one matrix where all three are there."""
    renamed = {}
    for name, value in arrays.items():
        for pattern, theirs in _HUGGING_FACE.items():
            if re.match(pattern, name):
                name = re.sub(pattern, theirs, name, count=1)
                break
        renamed[name] = value
    for name in [name for name in renamed if ".attn.query." in name]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            renamed[name.replace(".query.", ".qkv.")] = np.concatenate([renamed.pop(part) for part in parts])
    return renamed


def _ours(arrays: dict[str, np.ndarray], sizes: _Sizes) -> dict[str, Any]:
    def stacked(name: str) -> np.ndarray:
        return np.stack([arrays[f"blocks.{i}.{name}"] for i in range(sizes.depth)])

    def linear(name: str) -> dict[str, np.ndarray]:
        return {"kernel": stacked(f"{name}.weight").swapaxes(1, 2), "bias": stacked(f"{name}.bias")}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {"scale": stacked(f"{name}.weight"), "bias": stacked(f"{name}.bias")}

    first, positions = arrays["pos_embed"][0, 0], arrays["pos_embed"][0, 1:]
    return {
        "class_token": arrays["cls_token"][0, 0],
        "class_position": first,
        "positions": positions.reshape(sizes.side, sizes.side, -1),
        "patch": {
            "kernel": arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
            "bias": arrays["patch_embed.proj.bias"],
        },
        "blocks": {
            "norm1": norm("norm1"),
            "qkv": linear("attn.qkv"),
            "out": linear("attn.proj"),
            "scale1": stacked("ls1.gamma"),
            "norm2": norm("norm2"),
            "mlp": {"in": linear(sizes.mlp[0]), "out": linear(sizes.mlp[1])},
            "scale2": stacked("ls2.gamma"),
        },
        "norm": {"scale": arrays["norm.weight"], "bias": arrays["norm.bias"]},
    }
