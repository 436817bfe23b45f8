"""The names and layouts of EDM's PyTorch DDPM++/NCSN++ ("SongUNet"), read into the parameters of `DDPMpp`.

Numpy in, numpy out: PyTorch is not needed. The original has OIHW kernels, [out, in] matrices, and an input to
attention whose channels interleave q, k, v innermost.
"""

import re
from collections.abc import Mapping

import numpy as np

_STAGE = {"enc": "encoder", "dec": "decoder"}
_LAYER = {"aux_residual": "residual", "aux_skip": "skip", "aux_norm": "out_norm", "aux_conv": "out_conv"}
_ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "out"}
_KEY = re.compile(r"(enc|dec)\.(\d+)x\2_(\w+?)\.(?:(\w+)\.)?(weight|bias)")


def params_from_torch(state_dict: Mapping[str, np.ndarray]) -> dict:
    """The nested parameter dict of the `DDPMpp` with the same options, float32.

    state_dict: arrays by the names of the network or of its preconditioner (then they start with "model.").
    ValueError for a name this network does not have.
    """
    arrays = {key.removeprefix("model."): np.asarray(value, np.float32) for key, value in state_dict.items()}
    arrays = {key: value for key, value in arrays.items() if not key.endswith("resample_filter")}
    sizes = [int(match[2]) for key in arrays if (match := _KEY.fullmatch(key))]
    if not sizes:
        raise ValueError("no layer of a DDPM++ network among the names: is this another architecture?")
    params: dict = {}
    for key, value in arrays.items():
        *path, leaf = _path(key, max(sizes))
        node = params
        for name in path:
            node = node.setdefault(name, {})
        node.update(_convert(path[-1], leaf, value))
    return params


def _path(key: str, image_size: int) -> list[str]:
    """Where a parameter goes: the path to its layer here, then its own name there."""
    if key == "map_noise.freqs":
        return ["map_noise", "frequencies"]
    if match := re.fullmatch(r"(map_label|map_augment|map_layer0|map_layer1)\.(weight|bias)", key):
        return [match[1], match[2]]
    if not (match := _KEY.fullmatch(key)):
        raise ValueError(f"a DDPM++ network has no parameter {key!r}")
    stage, size, layer, part, leaf = match.groups()
    level = (image_size // int(size)).bit_length() - 1
    path = [_STAGE[stage], f"level{level}_{_LAYER.get(layer, layer)}"]
    if part in _ATTENTION:
        return [*path, "attention", _ATTENTION[part], leaf]
    return [*path, part, leaf] if part else [*path, leaf]


def _convert(layer: str, leaf: str, value: np.ndarray) -> dict[str, np.ndarray]:
    """One array of the original in this project's layout, under this project's name."""
    if layer == "qkv":
        value = value.reshape(-1, 3, *value.shape[1:2]).swapaxes(0, 1).reshape(value.shape[:2])
    elif layer == "out":
        value = value.reshape(value.shape[:2])
    if leaf != "weight":
        return {leaf: value}
    if value.ndim == 4:
        return {"kernel": value.transpose(2, 3, 1, 0)}
    return {"kernel": value.T} if value.ndim == 2 else {"scale": value}
