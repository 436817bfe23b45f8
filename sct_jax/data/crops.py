"""From an image of any size to a square one: the two ways that are in use.

They give other pixels, so a data set to compare with published numbers needs the crop of those numbers: ImageNet-64 is
``adm`` in ADM, consistency models and EDM2, and ``centre`` in EDM.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def centre(image: "Image", size: int) -> "Image":
    """The central square, resized to ``size`` by Lanczos' filter: ``center-crop`` of EDM's dataset tool."""
    from PIL.Image import Resampling

    if image.size == (size, size):
        return image
    side = min(image.size)
    return _central(image, side).resize((size, size), Resampling.LANCZOS)


def adm(image: "Image", size: int) -> "Image":
    """The crop of ADM (Dhariwal and Nichol 2021).

    Averages 2x2 pixels while the shorter side is at least ``2 size``, resizes bicubically until it is ``size``, and
    takes the central square. Pixel for pixel what ``center-crop-dhariwal`` of EDM2's dataset tool gives.
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Resampling.BICUBIC)
    return _central(image, size)


def _central(image: "Image", side: int) -> "Image":
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


CROPS: dict[str, Callable[["Image", int], "Image"]] = {"centre": centre, "adm": adm}
