"""What a data source is: a description and random access to images with integer labels."""

import copy
import dataclasses
import hashlib
from typing import Protocol

import numpy as np

from sct_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DataSpec:
    """What the rest of the library needs to know about a data set.

    Attributes:
      image_size: height and width of every image, in pixels.
      channels: 1 (grey) or 3 (RGB); data of floats may have others.
      num_classes: labels lie in ``[0, num_classes)``; 0 means that there are no labels.
      num_examples: how many images there are.
      class_names: one name a class, or empty when the data has none.
      dtype: ``"uint8"``: pixels from 0 to 255, which stand for [-1, 1]; ``"float32"``: values taken as they are, which
        may leave [-1, 1] and are neither clipped nor rounded.
    """

    image_size: int
    channels: int
    num_classes: int
    num_examples: int
    class_names: tuple[str, ...] = ()
    dtype: str = "uint8"

    @property
    def image_bytes(self) -> int:
        """Bytes of all images, as they are stored."""
        return self.num_examples * self.image_size**2 * self.channels * np.dtype(self.dtype).itemsize


class Source(Protocol):
    """Random access to a data set. Instances can be pickled, so that worker processes can read them."""

    spec: DataSpec

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Returns one image, ``[H, W, C]`` of ``spec.dtype``, and its label (0 when there are no labels)."""
        ...

    def read_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns all images, ``[N, H, W, C]`` of ``spec.dtype``, and all labels, int32 ``[N]``."""
        ...


def unit_range(images: np.ndarray) -> np.ndarray:
    """Stored images as float64: uint8 ``[0, 255]`` as ``[-1, 1]``, floats as they are (``process.to_unit_range``)."""
    values = np.asarray(images, np.float64)
    return values / 127.5 - 1.0 if images.dtype == np.uint8 else values


class ArraySource:
    """A source whose images are already in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int, class_names: tuple[str, ...] = ()):
        """Takes images ``[N, S, S, C]``, uint8 or float32, and labels ``[N]`` in ``[0, num_classes)``."""
        self._images = np.ascontiguousarray(images)
        self._labels = np.asarray(labels, np.int32)
        num_examples, image_size, _, channels = images.shape
        self.spec = DataSpec(image_size, channels, num_classes, num_examples, class_names, str(images.dtype))

    def __len__(self) -> int:
        return self.spec.num_examples

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._images[index], int(self._labels[index])

    def read_all(self) -> tuple[np.ndarray, np.ndarray]:
        return self._images, self._labels

    def part(self, first: int, end: int) -> "ArraySource":
        """Returns the examples ``first ... end - 1``."""
        part = copy.copy(self)
        part._images, part._labels = self._images[first:end], self._labels[first:end]
        part.spec = dataclasses.replace(self.spec, num_examples=len(part._labels))
        return part

    def fingerprint(self) -> str:
        """Returns a hash of the images and labels."""
        digest = hashlib.sha256(self._images.tobytes() + self._labels.tobytes())
        return digest.hexdigest()


def pad_to_size(images: np.ndarray, image_size: int, what: str) -> np.ndarray:
    """Centres square images ``[..., S, S, C]`` on a black canvas of ``image_size`` (0: as they are).

    An odd margin puts the extra row below and the extra column on the right. ``what`` names the data in the
    error raised when ``image_size`` is smaller than the images.
    """
    native = images.shape[-2]
    if image_size in (0, native):
        return images
    if image_size < native:
        raise UserError(
            f"image_size={image_size} is smaller than the {native}x{native} images of {what}: "
            f"use 0 (as they are), {native} or more"
        )
    before = (image_size - native) // 2
    margin = (before, image_size - native - before)
    return np.pad(images, [(0, 0)] * (images.ndim - 3) + [margin, margin, (0, 0)])


def check_split(split: str, splits: tuple[str, ...], what: str) -> None:
    """Raises a UserError that lists the splits there are, unless ``split`` is one of them."""
    if split not in splits:
        raise UserError(f"{what} has no split {split!r}: choose one of {', '.join(splits)}")
