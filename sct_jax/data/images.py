"""Encoded images (PNG, JPEG, ...) to arrays, through Pillow."""

from typing import IO, NamedTuple

import numpy as np

from sct_jax.data.crops import CROPS
from sct_jax.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
GREY_MODES = frozenset({"1", "L", "LA", "La"})
DEEP_MODES = frozenset({"I", "F"})


class ImageHeader(NamedTuple):
    """What is known of an image before its pixels are decoded."""

    width: int
    height: int
    channels: int


def read_header(file: IO[bytes], name: str) -> ImageHeader:
    """Reads the size of an image, and whether it is grey (1 channel) or anything else (3).

    Raises:
      UserError: naming the image, when it is no image or has more than 8 bits a channel.
    """
    with _opened(file, name) as image:
        return ImageHeader(image.width, image.height, 1 if image.mode in GREY_MODES else 3)


def decode_image(file: IO[bytes], name: str, channels: int, image_size: int = 0, crop: str = "centre") -> np.ndarray:
    """Decodes an image of any mode to uint8 ``[H, W, channels]``.

    Palettes are looked up, CMYK becomes RGB, transparency is dropped. The orientation that a camera noted
    is not applied: no data set with published numbers does.

    Args:
      file: the encoded image.
      name: what to call it in an error.
      channels: 1 (grey) or 3 (RGB).
      image_size: 0 keeps the size; otherwise the image becomes a square of it.
      crop: how (a name of ``CROPS``).

    Raises:
      UserError: naming the image, when it is damaged or has more than 8 bits a channel.
    """
    with _opened(file, name) as image:
        try:
            if isinstance(image.info.get("transparency"), bytes):  # a palette's, which Pillow warns of otherwise
                image = image.convert("RGBA")
            image = image.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            raise _damaged(name, error) from error
        pixels = np.array(CROPS[crop](image, image_size) if image_size else image, np.uint8)
    return pixels[..., None] if channels == 1 else pixels


def _opened(file: IO[bytes], name: str):
    from PIL import Image

    try:
        image = Image.open(file)
    except Exception as error:  # not only UnidentifiedImageError: see decode_image
        raise _damaged(name, error) from error
    if image.mode.split(";")[0] in DEEP_MODES:
        raise UserError(f"image {name} has more than 8 bits a channel ({image.mode}): convert it to 8 bits")
    return image


def _damaged(name: str, error: Exception) -> UserError:
    reason = "not an image" if "cannot identify" in str(error) else str(error) or type(error).__name__
    return UserError(f"cannot read image {name}: {reason}; replace or remove it")
