"""The table of data sources, and ``open_source``, which opens one by its name."""

import difflib
from collections.abc import Callable
from typing import NamedTuple

from sct_jax.data import arrays, cifar, files, mixtures, tfds_source
from sct_jax.data.crops import CROPS
from sct_jax.data.spec import Source
from sct_jax.errors import UserError


class SourceKind(NamedTuple):
    """How a kind of source is opened and its splits listed."""

    open: Callable[..., Source]  # of the path, the split and the image size; if it crops: crop and lenient
    splits: Callable[[str], tuple[str, ...]]
    crops: bool = False


SOURCES = {
    "digits": SourceKind(arrays.open_digits, arrays.digits_splits),
    "idx": SourceKind(arrays.open_idx, arrays.idx_splits),
    "cifar10": SourceKind(cifar.open_cifar10, cifar.cifar10_splits),
    "folder": SourceKind(files.open_folder, files.folder_splits, crops=True),
    "zip": SourceKind(files.open_zip, files.zip_splits, crops=True),
    "tfds": SourceKind(tfds_source.open_tfds, tfds_source.tfds_splits),
    "gmm": SourceKind(mixtures.open_gmm, mixtures.gmm_splits),
}

NO_DATA = "none"  # what the config of an imported model says


def open_source(
    name: str, path: str = "", split: str = "train", image_size: int = 0, crop: str = "centre", lenient: bool = False
) -> Source:
    """Opens a data set for random access.

    Args:
      name: the kind of source, one of

        - ``digits``: scikit-learn's 1,797 8x8 digits (splits ``train``, ``test``, ``all``; no path);
        - ``idx``: a directory of IDX files (an empty path is Debian's Fashion-MNIST);
        - ``cifar10``: the Python archive of CIFAR-10, packed or unpacked;
        - ``folder``: a folder of images, its sub-folders the classes (below ``train``, ``test`` if there);
        - ``zip``: an EDM-style zip, labels in its ``dataset.json``;
        - ``tfds``: a prepared tensorflow-datasets directory (array_record), such as ``prepare`` writes;
        - ``gmm``: samples of a known Gaussian mixture, float32; the path names it: ``2d`` or ``64d`` (splits ``train``,
          ``test``).
      path: where the data is.
      split: which part to open.
      image_size: 0 keeps the images as they are. Otherwise ``folder`` and ``zip`` images are cropped and resized to it;
        all others are padded with black up to it, but for ``gmm``, which is as it is.
      crop: how ``folder`` and ``zip`` images become squares: ``centre`` or ``adm`` (see ``crops.py``).
      lenient: a ``folder`` or ``zip`` is opened even if it has images that cannot be read.

    Raises:
      UserError: the data is missing, damaged, or is not what the arguments say; the message says what to do.
    """
    if name == NO_DATA:
        raise UserError("data.source = 'none': an imported model brings no images; name a data set")
    if image_size < 0:
        raise UserError(f"image_size={image_size} must be 0 (as the images are) or a positive number of pixels")
    kind = source_kind(name)
    if crop not in CROPS:
        raise UserError(f"unknown crop {crop!r}: choose one of {', '.join(CROPS)}")
    if crop == "adm" and not (kind.crops and image_size):
        raise UserError("the crop 'adm' makes squares of a folder's or zip's images: it needs these and an image_size")
    of_files = (crop, lenient) if kind.crops else ()
    return kind.open(str(path), split, image_size, *of_files)


def list_splits(name: str, path: str = "") -> tuple[str, ...]:
    """Returns the names of the splits of a source; see ``open_source``."""
    return source_kind(name).splits(str(path))


def source_kind(name: str) -> SourceKind:
    """Looks a kind of source up, naming the nearest one when there is none of that name."""
    if name in SOURCES:
        return SOURCES[name]
    near = difflib.get_close_matches(name, SOURCES, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"unknown data source {name!r}: {hint}The sources are {', '.join(SOURCES)}")
