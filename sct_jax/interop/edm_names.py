"""NVIDIA's EDM networks: the names of DDPM++/NCSN++ ("SongUNet") and of ADM ("DhariwalUNet"), read both ways."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from sct_jax.interop.names import AS_IS, CONV, LINEAR, Entry, Layout, interleaved_qkv, pointwise
from sct_jax.trees import Path, leaves

_STAGE = {"encoder": "enc", "decoder": "dec"}
_LAYER = {"residual": "aux_residual", "skip": "aux_skip", "out_norm": "aux_norm", "out_conv": "aux_conv"}
_ATTENTION = {"norm": "norm2", "qkv": "qkv", "out": "proj"}
_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias", "frequencies": "freqs"}


def entries(model: Any, spec: Any, params_shapes: Any) -> list[Entry]:
    """The table of the network of `model` (name "ddpmpp" or "adm") whose parameters have these shapes.

    `spec.image_size` is part of the names. KeyError or ValueError for parameters of another network.
    """
    return [
        Entry(path, _name(path, spec.image_size), _layout(path, len(shape))) for path, shape in leaves(params_shapes)
    ]


def constants(model: Any, spec: Any) -> dict[str, np.ndarray]:
    """The resampling filters, [1, 1, k, k], that the original keeps at each convolution that resamples."""
    taps = np.asarray((1, 1) if model.name == "adm" else model.resample_filter, np.float32)
    window = np.outer(taps, taps)[None, None] / taps.sum() ** 2
    return {f"{layer}.resample_filter": window for layer in _resampling_layers(model, spec.image_size)}


def _resampling_layers(model: Any, image_size: int) -> Iterator[str]:
    for level in range(1, len(model.channel_mult)):
        here, above = image_size >> level, image_size >> (level - 1)
        for block in (f"enc.{here}x{here}_down", f"dec.{above}x{above}_up"):
            yield from (f"{block}.conv0", f"{block}.skip")
        if model.name == "ddpmpp" and model.encoder == "residual":
            yield f"enc.{here}x{here}_aux_residual"


def _name(path: Path, image_size: int) -> str:
    *layers, leaf = path
    if layers[0] in _STAGE:
        level, layer = re.fullmatch(r"level(\d+)_(\w+)", layers[1]).groups()
        size = image_size >> int(level)
        layers[:2] = [_STAGE[layers[0]], f"{size}x{size}_{_LAYER.get(layer, layer)}"]
    if layers[-2:-1] == ["attention"]:
        layers[-2:] = [_ATTENTION[layers[-1]]]
    return ".".join([*layers, _LEAF[leaf]])


def _layout(path: Path, ndim: int) -> Layout:
    attention, layer, leaf = path[-3:-2] == ("attention",), path[-2], path[-1]
    order = interleaved_qkv() if attention and layer == "qkv" else AS_IS
    if leaf != "kernel":
        return order
    if ndim == 4:
        return CONV
    return order.then(pointwise()) if attention else LINEAR
