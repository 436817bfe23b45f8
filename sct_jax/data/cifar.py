"""CIFAR-10 from its Python archive (Krizhevsky 2009), read without running what a pickle might ask for."""

import codecs
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sct_jax.data.spec import ArraySource, check_split, pad_to_size
from sct_jax.errors import UserError

ARCHIVE = "cifar-10-python.tar.gz"
FOLDER = "cifar-10-batches-py"
SPLIT_FILES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# What the archive's pickles need: numpy's array reconstruction under the names of numpy 1 and 2, and bytes.
_RECONSTRUCT: Any = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}


class ArrayUnpickler(pickle.Unpickler):
    """An unpickler that can rebuild plain containers and numpy arrays and refuses every other name."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in a data file") from None


def open_cifar10(path: str, split: str, image_size: int) -> ArraySource:
    """Opens ``cifar-10-python.tar.gz``, its unpacked directory, or a directory that holds either."""
    location = find_cifar10(path)
    check_split(split, cifar10_splits(path), "CIFAR-10")
    read = _read_archive if location.is_file() else _read_folder
    names = SPLIT_FILES[split]
    files = zip(names, read(location, names), strict=True)
    batches = [parse_batch(data, f"{location}:{name}") for name, data in files]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    return ArraySource(pad_to_size(images, image_size, "CIFAR-10"), labels, len(CLASS_NAMES), CLASS_NAMES)


def cifar10_splits(path: str) -> tuple[str, ...]:
    """Returns the splits of CIFAR-10, after checking that the data is there."""
    find_cifar10(path)
    return tuple(SPLIT_FILES)


def find_cifar10(path: str) -> Path:
    """Returns the archive or the directory of batches that ``path`` is or holds."""
    location = Path(path).expanduser()
    if path and location.is_file():
        return location
    if path and location.is_dir():
        if (location / SPLIT_FILES["train"][0]).is_file():
            return location
        for inside in (location / FOLDER, location / ARCHIVE):
            if inside.exists():
                return inside
        raise UserError(f"{location} holds neither {FOLDER} nor {ARCHIVE}: give the path of one of them")
    if not path:
        raise UserError(f"cifar10 needs a path: that of {ARCHIVE} or of the unpacked {FOLDER}")
    raise UserError(f"no such file or directory: {location}; give the path of {ARCHIVE} or of {FOLDER}")


def parse_batch(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images, uint8 ``[N, 32, 32, 3]``, and labels ``[N]`` of one batch file."""
    try:
        batch = ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
        batch = {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
        images, labels = batch["data"], np.asarray(batch["labels"])
        if images.dtype != np.uint8 or images.shape != (len(labels), 3 * 32 * 32) or labels.dtype.kind not in "iu":
            raise ValueError("it does not hold rows of 3072 bytes and as many integer labels")
    except Exception as error:  # a damaged pickle can fail in almost any way
        raise UserError(f"cannot read {name}: {error}; it is no CIFAR-10 batch or damaged, fetch it again") from error
    if np.any((labels < 0) | (labels >= len(CLASS_NAMES))):
        raise UserError(f"{name} has labels from {labels.min()} to {labels.max()}: only 0 to 9 are classes of CIFAR-10")
    return images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


def _read_folder(folder: Path, names: tuple[str, ...]) -> list[bytes]:
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}: unpack the archive again")
    return [(folder / name).read_bytes() for name in names]


def _read_archive(archive: Path, names: tuple[str, ...]) -> list[bytes]:
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                name = Path(member.name).name
                file = tar.extractfile(member) if name in names and member.isfile() else None
                if file is not None:
                    found[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot read {archive}: {error}; it is damaged or incomplete, fetch it again") from error
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(f"{archive} lacks {', '.join(missing)}: it is not the CIFAR-10 Python archive or incomplete")
    return [found[name] for name in names]
