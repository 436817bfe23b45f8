"""OpenAI's consistency models: the names of their ADM ("UNetModel"), read both ways.

Their q, k and v lie one after the other, as ours do; a label is a row of an embedding, which is our matrix as it is.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from sct_jax.interop.names import AS_IS, CONV, LINEAR, Entry, Layout, pointwise
from sct_jax.models.unet import entry_names
from sct_jax.trees import Path, leaves

_TOP = {
    "map_layer0": "time_embed.0",
    "map_layer1": "time_embed.2",
    "map_label": "label_emb",
    "out_norm": "out.0",
    "out_conv": "out.2",
}
_BLOCK = {
    "norm0": "in_layers.0",
    "conv0": "in_layers.2",
    "affine": "emb_layers.1",
    "norm1": "out_layers.0",
    "conv1": "out_layers.3",
    "skip": "skip_connection",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "out": "proj_out"}
_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def entries(model: Any, spec: Any, params_shapes: Any) -> list[Entry]:
    """The table of the network of `model` (name "adm", no augmentation labels) whose parameters have these shapes.

    KeyError for parameters that OpenAI's network does not have.
    """
    places = _places(params_shapes, len(model.channel_mult), model.num_blocks)
    return [Entry(path, _name(path, places), _layout(path, len(shape))) for path, shape in leaves(params_shapes)]


def constants(model: Any, spec: Any) -> dict[str, np.ndarray]:
    """Nothing: OpenAI's network has no buffers."""
    return {}


def _places(shapes: Any, levels: int, num_blocks: int) -> dict[tuple[str, str], tuple[str, str]]:
    """(stage, layer) -> the names of its residual block and of its attention.

    Encoder and decoder are lists of small sequences there: a block, its attention if it has one, and at the end of a
    level of the decoder the block that doubles the image.
    """
    encoder = [("encoder", name) for name in _encoder_names(levels, num_blocks)]
    places = {place: (f"input_blocks.{i}.0", f"input_blocks.{i}.1") for i, place in enumerate(encoder)}
    places["decoder", f"level{levels - 1}_in0"] = ("middle_block.0", "middle_block.1")
    places["decoder", f"level{levels - 1}_in1"] = ("middle_block.2", "")
    for level in reversed(range(levels)):
        first = (levels - 1 - level) * (num_blocks + 1)
        for index in range(num_blocks + 1):
            sequence = f"output_blocks.{first + index}"
            places["decoder", f"level{level}_block{index}"] = (f"{sequence}.0", f"{sequence}.1")
        if level:
            attends = "attention" in shapes["decoder"][f"level{level}_block{num_blocks}"]
            (above,) = entry_names(level - 1, levels)
            places["decoder", above] = (f"{sequence}.{1 + attends}", "")
    return places


def _encoder_names(levels: int, num_blocks: int) -> Iterator[str]:
    for level in range(levels):
        yield f"level{level}_down" if level else "level0_conv"
        yield from (f"level{level}_block{index}" for index in range(num_blocks))


def _name(path: Path, places: dict) -> str:
    *layers, leaf = path
    if layers[0] in _TOP:
        return f"{_TOP[layers[0]]}.{_LEAF[leaf]}"
    block, attention = places[layers[0], layers[1]]
    if layers[2:3] == ["attention"]:
        return f"{attention}.{_ATTENTION[layers[3]]}.{_LEAF[leaf]}"
    return ".".join([block, *(_BLOCK[layer] for layer in layers[2:]), _LEAF[leaf]])


def _layout(path: Path, ndim: int) -> Layout:
    if path[-1] != "kernel" or path[-2] == "map_label":
        return AS_IS
    if ndim == 4:
        return CONV
    return pointwise() if path[-3:-2] == ("attention",) else LINEAR
