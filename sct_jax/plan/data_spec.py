"""What the images are, for data that need not be on this machine."""

import re
from typing import Any

from sct_jax.data import DataSpec, open_source
from sct_jax.errors import UserError

CIFAR10 = DataSpec(32, 3, 10, 50_000)
IMAGENET_CLASSES, IMAGENET_IMAGES = 1000, 1_281_167


def parse(text: str) -> DataSpec:
    """``"64x64x3,1000,1281167"``: height x width x channels, classes (0: no labels), images.

    Raises:
      UserError: when the text is not that, or the images are not square.
    """
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+),(\d+),(\d+)", text.replace(" ", "").replace("_", ""))
    numbers = [int(number) for number in found.groups()] if found else []
    if not numbers or numbers[0] != numbers[1] or 0 in numbers[:3] or not numbers[4]:
        raise UserError(
            f"--data-spec {text!r}: write HEIGHTxWIDTHxCHANNELS,CLASSES,IMAGES with square images, such as "
            "64x64x3,1000,1281167"
        )
    size, _, channels, classes, count = numbers
    return DataSpec(size, channels, classes, count)


def find(config: Any, text: str = "") -> DataSpec:
    """The spec that ``text`` gives, else that of a well-known data set, else that of the data itself.

    CIFAR-10 is known by its source, ImageNet by a path that names it together with ``data.image_size``.

    Raises:
      UserError: when none of these tells.
    """
    data = config.data
    if text:
        return parse(text)
    if data.source == "cifar10":
        return DataSpec(data.image_size or CIFAR10.image_size, 3, CIFAR10.num_classes, CIFAR10.num_examples)
    if "imagenet" in data.path.lower() and data.image_size:
        return DataSpec(data.image_size, 3, IMAGENET_CLASSES, IMAGENET_IMAGES)
    try:
        return open_source(data.source, data.path, split=data.split, image_size=data.image_size).spec
    except UserError as error:
        raise UserError(
            f"the data is not here ({error}); say what it is with --data-spec 64x64x3,1000,1281167"
        ) from error
