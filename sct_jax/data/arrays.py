"""Sources that fit in memory: scikit-learn's digits and IDX files (MNIST, Fashion-MNIST and their kin)."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from sct_jax.data.spec import ArraySource, check_split, pad_to_size
from sct_jax.errors import UserError

DEBIAN_FASHION_MNIST = "/usr/share/datasets/fashion-mnist"
NUM_TRAIN_DIGITS = 1437
DIGITS_SPLITS = {
    "train": slice(0, NUM_TRAIN_DIGITS),
    "test": slice(NUM_TRAIN_DIGITS, None),
    "all": slice(None),
}
IDX_PREFIXES = {"train": "train", "test": "t10k"}
IDX_IMAGES, IDX_LABELS = 3, 1  # the number of dimensions, also part of the files' names


def open_digits(path: str, split: str, image_size: int) -> ArraySource:
    """Opens scikit-learn's digits: 8x8, grey, values 0..16 scaled to 0..255, ten classes."""
    from sklearn.datasets import load_digits

    if path:
        raise UserError(f"the digits come with scikit-learn and need no path: remove path={path!r}")
    check_split(split, digits_splits(path), "the digits data set")
    digits = load_digits()
    part = DIGITS_SPLITS[split]
    images = np.round(digits.images[part] * (255 / 16)).astype(np.uint8)[..., None]
    images = pad_to_size(images, image_size, "the digits")
    return ArraySource(images, digits.target[part], 10, tuple(str(digit) for digit in range(10)))


def digits_splits(path: str) -> tuple[str, ...]:
    """Returns the splits of the digits; ``all`` is ``train`` followed by ``test``."""
    return tuple(DIGITS_SPLITS)


def open_idx(path: str, split: str, image_size: int) -> ArraySource:
    """Opens a directory of IDX files, plain or gzipped, named as MNIST's (``train-images-idx3-ubyte.gz``)."""
    folder = _idx_folder(path)
    check_split(split, idx_splits(path), str(folder))
    image_file, label_file = (find_idx_file(folder, split, kind) for kind in (IDX_IMAGES, IDX_LABELS))
    if image_file is None or label_file is None:
        raise UserError(f"{folder} has the images of {split!r} but no labels beside them: add the idx1 file")
    images = read_idx(image_file, IDX_IMAGES)
    labels = read_idx(label_file, IDX_LABELS)
    if len(images) != len(labels):
        raise UserError(
            f"{image_file} holds {len(images)} images but {label_file.name} "
            f"{len(labels)} labels: they do not belong together"
        )
    if not len(images):
        raise UserError(f"{image_file} holds no images")
    if images.shape[1] != images.shape[2]:
        raise UserError(f"{image_file} holds {images.shape[2]}x{images.shape[1]} images: only square ones can be used")
    others = (find_idx_file(folder, other, IDX_LABELS) for other in IDX_PREFIXES if other != split)
    all_labels = [labels, *(read_idx(file, IDX_LABELS) for file in others if file)]
    num_classes = 1 + max(int(values.max(initial=0)) for values in all_labels)  # the same for every split
    return ArraySource(pad_to_size(images[..., None], image_size, str(folder)), labels, num_classes)


def idx_splits(path: str) -> tuple[str, ...]:
    """Returns the splits of which a directory holds the image file."""
    folder = _idx_folder(path)
    splits = tuple(split for split in IDX_PREFIXES if find_idx_file(folder, split, IDX_IMAGES))
    if not splits:
        raise UserError(f"{folder} has no IDX files: train-images-idx3-ubyte.gz and its companions are expected there")
    return splits


def find_idx_file(folder: Path, split: str, dimensions: int) -> Path | None:
    """Returns the image (3 dimensions) or label (1) file of a split, or None."""
    stem = f"{IDX_PREFIXES[split]}-{'images' if dimensions == IDX_IMAGES else 'labels'}"
    for separator in "-.":
        for suffix in ("", ".gz"):
            file = folder / f"{stem}{separator}idx{dimensions}-ubyte{suffix}"
            if file.is_file():
                return file
    return None


def read_idx(file: Path, dimensions: int) -> np.ndarray:
    """Reads one IDX file of unsigned bytes: bytes 00 00 08 <dimensions>, big-endian sizes, data."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {file}: {error}; it is damaged or incomplete, fetch it again") from error
    header = 4 + 4 * dimensions
    if len(data) < header or data[:4] != bytes([0, 0, 8, dimensions]):
        raise UserError(f"{file} is not an IDX file of unsigned bytes with {dimensions} dimension(s): fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", count=dimensions, offset=4))
    expected, found = int(np.prod(shape, dtype=np.int64)), len(data) - header
    if expected != found:
        raise UserError(f"{file} is incomplete: {found} bytes of data where {expected} are announced; fetch it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _idx_folder(path: str) -> Path:
    folder = Path(path or DEBIAN_FASHION_MNIST).expanduser()
    if folder.is_dir():
        return folder
    if path:
        raise UserError(f"no directory {folder}: give the one that holds the IDX files")
    raise UserError(f"no Fashion-MNIST in {folder}: apt install dataset-fashion-mnist, or give the path of IDX files")
