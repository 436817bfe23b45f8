"""What network some weights belong to, told by their names and shapes alone.

Dropout, attention's head width and the like leave no trace in the weights: they come from what else the file says, or
are the defaults of the original.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from sct_jax.errors import UserError
from sct_jax.interop.allowed import shown

Shapes = dict[str, tuple[int, ...]]
EDM2_NETWORK = "unet."
MOST_TAPS = 16  # of a resampling filter
MOST_LEVELS, MOST_BLOCKS = 12, 64


class Architecture(NamedTuple):
    """A network.

    Attributes:
      family: whose names: "edm" (DDPM++, NCSN++, ADM as NVIDIA writes them), "edm2" or "openai".
      fields: of ``config.model``.
      image_size: 0 when the weights do not tell.
      channels: of an image.
      num_classes: 0 when unconditional.
    """

    family: str
    fields: dict[str, Any]
    image_size: int
    channels: int
    num_classes: int


def infer(state_dict: Mapping[str, np.ndarray], image_size: int = 0) -> Architecture:
    """The network of these weights, named as the original names them without a common prefix.

    ``image_size`` is that of a network whose weights do not tell it (OpenAI's).

    Raises:
      UserError: when the names are of no network that is known here, or of a variant that is not supported.
    """
    shapes = {name.removeprefix(EDM2_NETWORK): np.shape(value) for name, value in state_dict.items()}
    for sign, read in _FAMILIES.items():
        if any(re.fullmatch(sign, name) for name in shapes):
            try:
                return _openai(shapes, image_size) if read is None else read(shapes, state_dict)
            except (KeyError, IndexError, ValueError) as error:
                what = shown(str(error))
                raise UserError(
                    f"the weights are incomplete or of an unknown variant of the network: {what} is missing"
                ) from error
    examples = ", ".join(map(shown, sorted(shapes)[:3])) or "none"
    raise UserError(f"the names of the weights ({examples}) are of no network that is known here")


def _ddpmpp(shapes: Shapes, arrays: Mapping[str, np.ndarray]) -> Architecture:
    """NVIDIA's SongUNet: DDPM++, NCSN++."""
    if any("aux_skip" in name for name in shapes) or len(_matching(shapes, r"dec\.(\d+)x\1_aux_conv\.weight")) > 1:
        raise UserError("the network sums images of several resolutions (encoder or decoder 'skip'): not supported")
    sizes = _resolutions(shapes)
    channels, image_channels = shapes[f"enc.{_pixels(sizes[0])}_conv.weight"][:2]
    embedding, noise = shapes["map_layer0.weight"]
    residual = any("aux_residual" in name for name in shapes)
    fields = {
        "name": "ddpmpp",
        **_levels(shapes, sizes, channels, "conv1.weight", "qkv.weight"),
        "channel_mult_embedding": _ratio(embedding, channels),
        "channel_mult_noise": _ratio(noise, channels),
        "embedding": "fourier" if "map_noise.freqs" in shapes else "positional",
        "encoder": "residual" if residual else "standard",
        "resample_filter": _resample_filter(arrays, (1, 3, 3, 1) if residual else (1, 1)),
        **_conditioning(shapes, "map_label.weight"),
    }
    return Architecture("edm", fields, sizes[0], image_channels, shapes.get("map_label.weight", (0, 0))[1])


def _adm(shapes: Shapes, arrays: Mapping[str, np.ndarray]) -> Architecture:
    """NVIDIA's DhariwalUNet: ADM."""
    sizes = _resolutions(shapes)
    embedding, channels = shapes["map_layer0.weight"]
    fields = {
        "name": "adm",
        **_levels(shapes, sizes, channels, "conv1.weight", "qkv.weight"),
        "channel_mult_embedding": _ratio(embedding, channels),
        **_conditioning(shapes, "map_label.weight"),
    }
    image_channels = shapes[f"enc.{_pixels(sizes[0])}_conv.weight"][1]
    return Architecture("edm", fields, sizes[0], image_channels, shapes.get("map_label.weight", (0, 0))[1])


def _edm2(shapes: Shapes, arrays: Mapping[str, np.ndarray]) -> Architecture:
    """EDM2's UNet. Its channels are told up to a common factor of the multipliers, which makes no difference."""
    sizes = _resolutions(shapes)
    widths = [shapes[f"enc.{_pixels(size)}_block0.conv_res1.weight"][0] for size in sizes]
    embedding, noise = shapes["emb_noise.weight"]
    channels = math.gcd(*widths, embedding, noise)
    fields = {
        "name": "edm2",
        **_levels(shapes, sizes, channels, "conv_res1.weight", "attn_qkv.weight"),
        "channel_mult_embedding": embedding // channels,
        "channel_mult_noise": noise // channels,
        "uncertainty_channels": shapes.get("logvar_linear.weight", (1, 0))[1],
        **_conditioning(shapes, "emb_label.weight"),
    }
    image_channels = shapes["out_conv.weight"][0]
    return Architecture("edm2", fields, sizes[0], image_channels, shapes.get("emb_label.weight", (0, 0))[1])


def _openai(shapes: Shapes, image_size: int) -> Architecture:
    """OpenAI's ADM. Its blocks are numbered: a level ends where one of the decoder holds a second residual block."""
    embedding, channels = shapes["time_embed.0.weight"]
    ends = sorted(int(match[1]) for match in _matching(shapes, r"output_blocks\.(\d{1,4})\.[12]\.in_layers\.2\.weight"))
    blocks = sum(name.endswith(".0.in_layers.2.weight") for name in shapes if name.startswith("output_blocks."))
    if any(re.fullmatch(r"(input|output)_blocks\.\d+\.\d\.(op|conv)\.weight", name) for name in shapes):
        raise UserError("the network resamples by plain convolutions (resblock_updown False): not supported")
    num_blocks = _checked_blocks(len(ends) + 1, (ends[0] if ends else blocks - 1) or 1)
    firsts = [f"input_blocks.{1 + level * (num_blocks + 1)}" for level in range(len(ends) + 1)]
    widths = [shapes[f"{first}.0.out_layers.3.weight"][0] for first in firsts]
    mult = tuple(_ratio(width, channels) for width in widths)
    image_size = image_size or _OPENAI_IMAGE_SIZES.get(mult, 0)
    if not image_size:
        raise UserError("the image size is not in the weights of this network: give it with --image-size")
    image_channels, out_channels = shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0]
    if image_channels != out_channels:
        raise UserError(f"the network predicts {out_channels} channels of {image_channels} (a variance): not supported")
    num_classes = shapes.get("label_emb.weight", (0, 0))[0]
    fields = {
        "name": "adm",
        "channels": channels,
        "channel_mult": mult,
        "channel_mult_embedding": _ratio(embedding, channels),
        "num_blocks": num_blocks,
        "attention_resolutions": tuple(
            image_size >> level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in shapes
        ),
        "adaptive_scale": shapes[f"{firsts[0]}.0.emb_layers.1.weight"][0] == 2 * widths[0],
        "time_scale": 1000.0,
        "conditional": bool(num_classes),
    }
    return Architecture("openai", fields, image_size, image_channels, num_classes)


def _conditioning(shapes: Shapes, label: str) -> dict[str, Any]:
    return {"conditional": label in shapes, "augment_dim": shapes.get("map_augment.weight", (0, 0))[1]}


def _levels(shapes: Shapes, sizes: list[int], channels: int, last: str, attention: str) -> dict[str, Any]:
    """The fields that repeat at each resolution; ``last`` is the last convolution of a block."""
    first = f"enc.{_pixels(sizes[0])}_block"
    num_blocks = _checked_blocks(len(sizes), sum(name.startswith(first) and name.endswith(last) for name in shapes))
    return {
        "channels": channels,
        "channel_mult": tuple(_ratio(shapes[f"enc.{_pixels(size)}_block0.{last}"][0], channels) for size in sizes),
        "num_blocks": num_blocks,
        "attention_resolutions": tuple(size for size in sizes if f"enc.{_pixels(size)}_block0.{attention}" in shapes),
    }


def _checked_blocks(levels: int, blocks: int) -> int:
    if levels > MOST_LEVELS or blocks > MOST_BLOCKS:
        raise UserError(f"the network has {levels} levels of {blocks} blocks: it is none that is known here")
    return blocks


def _resolutions(shapes: Shapes) -> list[int]:
    """The encoder's resolutions, descending."""
    found = {int(match[1]) for match in _matching(shapes, r"enc\.(\d{1,5})x\1_(?:conv|down).*")}
    return sorted(found, reverse=True)


def _matching(shapes: Shapes, pattern: str) -> list[re.Match]:
    return [match for name in shapes if (match := re.fullmatch(pattern, name))]


def _pixels(size: int) -> str:
    return f"{size}x{size}"


def _ratio(width: int, channels: int) -> int:
    if not channels or width % channels:
        raise UserError(f"a width of {width} is no multiple of the network's {channels} channels: not supported")
    return width // channels


def _resample_filter(arrays: Mapping[str, np.ndarray], otherwise: tuple[int, ...]) -> tuple[int, ...]:
    """The filter's taps, from the outer product that the original keeps as a buffer; whole numbers, the first is 1."""
    window = next((value for name, value in arrays.items() if name.endswith("resample_filter")), None)
    if window is None:
        return otherwise
    shape = np.shape(window)
    if len(shape) != 4 or shape[:2] != (1, 1) or shape[2] != shape[3] or not 1 <= shape[2] <= MOST_TAPS:
        raise UserError(f"the resampling filter is not square, or of more than {MOST_TAPS} taps: not supported")
    taps = np.asarray(window, np.float64)[0, 0].sum(0)
    ratios = taps / taps[0] if taps[0] else np.full_like(taps, np.nan)
    whole = np.rint(ratios)
    if not np.allclose(ratios, whole, rtol=1e-3):
        raise UserError("the resampling filter has taps that are no whole multiples of its first: not supported")
    return tuple(int(tap) for tap in whole)


# The published networks (their script's table): multipliers of the channels and the image size they are for.
_OPENAI_IMAGE_SIZES = {(1, 2, 3, 4): 64, (1, 1, 2, 3, 4): 128, (1, 1, 2, 2, 4, 4): 256}

# A name that only one family has, and what reads it; None: OpenAI's, which needs the image size.
_FAMILIES: dict[str, Callable[[Shapes, Mapping[str, np.ndarray]], Architecture] | None] = {
    r"emb_noise\.weight": _edm2,
    r"dec\.(\d+)x\1_aux_norm\.weight": _ddpmpp,
    r"out_norm\.weight": _adm,
    r"input_blocks\.0\.0\.weight": None,
}
