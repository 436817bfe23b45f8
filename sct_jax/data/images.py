"""Encoded images (PNG, JPEG, ...) to arrays and back, through Pillow."""

import io
from typing import IO, NamedTuple

import numpy as np

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
        if image.mode.split(";")[0] in DEEP_MODES:
            raise UserError(f"image {name} has more than 8 bits a channel ({image.mode}): convert it to 8 bits")
        return ImageHeader(image.width, image.height, 1 if image.mode in GREY_MODES else 3)


def decode_image(file: IO[bytes], name: str, channels: int, image_size: int = 0) -> np.ndarray:
    """Decodes an image to uint8 ``[H, W, channels]``; transparency is dropped.

    Args:
      file: the encoded image.
      name: what to call it in an error.
      channels: 1 (grey) or 3 (RGB).
      image_size: 0 keeps the size; otherwise the central square is resized to it (Lanczos).

    Raises:
      UserError: naming the image, when it is damaged.
    """
    from PIL import Image

    with _opened(file, name) as image:
        try:
            image = image.convert("L" if channels == 1 else "RGB")
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
            raise _damaged(name, error) from error
        if image_size and image.size != (image_size, image_size):
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            image = image.crop((left, top, left + side, top + side))
            image = image.resize((image_size, image_size), Image.Resampling.LANCZOS)
        pixels = np.array(image, np.uint8)
    return pixels[..., None] if channels == 1 else pixels


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 ``[H, W, 1 or 3]`` as PNG, losslessly."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def _opened(file: IO[bytes], name: str):
    from PIL import Image

    try:
        return Image.open(file)
    except Exception as error:  # not only UnidentifiedImageError: see decode_image
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> UserError:
    reason = "not an image" if "cannot identify" in str(error) else str(error) or type(error).__name__
    return UserError(f"cannot read image {name}: {reason}; replace or remove it")
