"""Turns any source into a tensorflow-datasets directory (array_record) on disk, without TensorFlow."""

import os
from pathlib import Path
from typing import Any

from sct_jax.data import writing
from sct_jax.data.arrays import IDX_IMAGES, IDX_PREFIXES, find_idx_file
from sct_jax.data.cifar import ARCHIVE, FOLDER, SPLIT_FILES
from sct_jax.data.sources import SOURCES, list_splits, open_source, source_kind
from sct_jax.data.spec import Source
from sct_jax.data.tfds_source import INFO_FILE
from sct_jax.errors import UserError

UNDIVIDED = ("folder", "zip")  # kinds whose data need not be divided into splits
SHARD_SIZE = 4096
FORMAT = 1  # of what is written: to be raised when the same source would give other bytes


def prepare(
    source_path: str | Path,
    out: str | Path,
    *,
    kind: str = "auto",
    image_size: int = 0,
    crop: str = "centre",
    split: str = "train",
    workers: int = 0,
    compress: bool = False,
    skip_damaged: bool = False,
    shard_size: int = SHARD_SIZE,
) -> Path:
    """Writes all splits of a source to ``out``, to be read with ``open_source("tfds", path=out)``.

    The images are stored as PNG, so what is read is what the source gives, bit for bit and in its order. Shards are
    written in parallel; killed at any moment, the same call goes on with those that are not finished. Where processes
    are started the program needs the usual ``if __name__ == "__main__"`` guard.

    Args:
      source_path: a folder or zip of images, a CIFAR-10 archive, a directory of IDX files, or ``digits``.
      out: the directory to make; it must not exist, or be empty.
      kind: what ``source_path`` is (a name of ``open_source``); ``auto`` finds out.
      image_size: as in ``open_source``.
      crop: as in ``open_source``.
      split: what to call the data of a folder or zip that is not divided into splits.
      workers: processes; 0: one a core. What would fit into one shard is written in this one.
      compress: smaller files that take four times as long to read.
      skip_damaged: leave out images that cannot be read; the manifest has their names.
      shard_size: images a shard.

    Returns:
      ``out``.

    Raises:
      UserError: the source cannot be read or is not what an earlier, unfinished run saw, or ``out`` not be written.
    """
    path, target = str(source_path), Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already: choose another place, or remove it first")
    if workers < 0 or shard_size < 1:
        raise UserError(f"out of range: workers={workers}, shard_size={shard_size}")
    kind = detect_kind(path) if kind == "auto" else kind
    source_kind(kind)
    path = "" if kind == "digits" else path
    names = tuple(name for name in list_splits(kind, path) if name != "all")
    sources = {name: open_source(kind, path, name, image_size, crop, skip_damaged) for name in names}
    if kind in UNDIVIDED and names == ("train",):
        sources = {split: sources["train"]}
    _check_agreement(sources, path)
    plan: dict[str, Any] = {
        "format": FORMAT,
        "arguments": {"kind": kind, "image_size": image_size, "crop": crop, "compress": compress},
        "shard_size": shard_size,
        "source": {name: source.fingerprint() for name, source in sources.items()},
    }
    workers = workers or _cores()
    writing.write(sources, target, plan, shard_size=shard_size, workers=workers, skip_damaged=skip_damaged)
    return target


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def detect_kind(path: str) -> str:
    """Returns which kind of source (a name of ``open_source``) a path is, by what lies there."""
    location = Path(path).expanduser()
    if path == "digits" and not location.exists():
        return "digits"
    if not path or not location.exists():
        raise UserError(f"no such file or directory: {path or '(empty path)'}; give the data to prepare, or 'digits'")
    if location.is_file():
        if location.suffix.lower() == ".zip":
            return "zip"
        if location.name.endswith((".tar.gz", ".tgz", ".tar")):
            return "cifar10"
    elif (location / INFO_FILE).is_file():
        raise UserError(f"{location} is a prepared data set already: read it with the source 'tfds'")
    elif any(find_idx_file(location, split, IDX_IMAGES) for split in IDX_PREFIXES):
        return "idx"
    elif any((location / name).exists() for name in (FOLDER, ARCHIVE, SPLIT_FILES["train"][0])):
        return "cifar10"
    else:
        return "folder"
    kinds = ", ".join(name for name in SOURCES if name != "tfds")
    raise UserError(f"cannot tell what {location} is (a .zip, a CIFAR-10 .tar.gz or a folder?): say which of {kinds}")


def _check_agreement(sources: dict[str, Source], path: str) -> None:
    """Makes sure that one description fits all splits."""
    shapes = {name: (source.spec.image_size, source.spec.channels) for name, source in sources.items()}
    if len(set(shapes.values())) > 1:
        found = ", ".join(f"{name} {size}x{size}x{channels}" for name, (size, channels) in shapes.items())
        raise UserError(f"the splits of {path} differ in shape ({found}): set image_size, or prepare them one by one")
    if len({bool(source.spec.num_classes) for source in sources.values()}) > 1:
        raise UserError(f"some splits of {path} have labels and others none: prepare them one by one")
