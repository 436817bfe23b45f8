"""EDM2's names and layouts ("Precond" over "UNet"); ECT and TCM train the same network on ImageNet-64.

The head of the uncertainty ("logvar") is there where `model.uncertainty_channels` is not 0: ECT and TCM leave it out.
TCM's network lies directly in its preconditioner: its names lack the `unet.` that `NETWORK` stands for.
"""

import re
from typing import Any

from sct_jax.interop.names import AS_IS, CONV, LINEAR, Array, Entry, Layout, interleaved_qkv, pointwise
from sct_jax.trees import Path, leaves

NETWORK = "unet."
_FOURIER = {"frequencies": "freqs", "phases": "phases"}
_TOP = {"map_noise": "emb_noise", "map_label": "emb_label", "out_conv": "out_conv"}
_STAGE = {"encoder": "enc", "decoder": "dec"}
_BLOCK = {
    "conv0": ("conv_res0", CONV),
    "conv1": ("conv_res1", CONV),
    "skip": ("conv_skip", CONV),
    "embedding": ("emb_linear", LINEAR),
}
_ATTENTION = {
    "qkv": ("attn_qkv", interleaved_qkv().then(pointwise())),
    "out": ("attn_proj", pointwise()),
}


def entries(model: Any, spec: Any, shapes: Any) -> list[Entry]:
    """The table of the network that `config.model` (edm2) describes, for images of `spec`.

    shapes: nested dict of the shapes of our parameters. ValueError for a parameter that EDM2 does not have.
    """
    return [Entry(path, *_original(path, spec.image_size)) for path, _ in leaves(shapes)]


def constants(model: Any, spec: Any) -> dict[str, Array]:
    """EDM2 keeps no buffers besides its Fourier features, which are parameters here."""
    return {}


def _original(path: Path, image_size: int) -> tuple[str, Layout]:
    """The original's name and layout of one parameter of ours."""
    match path:
        case ("fourier", leaf):
            return f"{NETWORK}emb_fourier.{_FOURIER[leaf]}", AS_IS
        case ("uncertainty", "fourier", leaf):
            return f"logvar_fourier.{_FOURIER[leaf]}", AS_IS
        case ("uncertainty", "linear", "kernel"):
            return "logvar_linear.weight", LINEAR
        case ("out_gain",):
            return f"{NETWORK}out_gain", AS_IS
        case (("map_noise" | "map_label" | "out_conv") as layer, "kernel"):
            return f"{NETWORK}{_TOP[layer]}.weight", CONV if layer == "out_conv" else LINEAR
        case (("encoder" | "decoder") as stage, layer, *rest):
            level, name = re.fullmatch(r"level(\d+)_(\w+)", layer).groups()
            size = image_size >> int(level)
            part, layout = _block_part(tuple(rest))
            return f"{NETWORK}{_STAGE[stage]}.{size}x{size}_{name}.{part}", layout
    raise ValueError(f"EDM2 has no parameter {'.'.join(path)}")


def _block_part(path: Path) -> tuple[str, Layout]:
    """Name and layout of a parameter of a block, or of the first convolution, relative to it."""
    match path:
        case ("kernel",):
            return "weight", CONV
        case ("embedding_gain",):
            return "emb_gain", AS_IS
        case ("attention", part, "kernel") if part in _ATTENTION:
            name, layout = _ATTENTION[part]
        case (part, "kernel") if part in _BLOCK:
            name, layout = _BLOCK[part]
        case _:
            raise ValueError(f"a block of EDM2 has no parameter {'.'.join(path)}")
    return f"{name}.weight", layout
