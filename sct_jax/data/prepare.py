"""Turns any source into a tensorflow-datasets directory (array_record) on disk, without TensorFlow."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sct_jax.data.arrays import IDX_IMAGES, IDX_PREFIXES, find_idx_file
from sct_jax.data.cifar import ARCHIVE, FOLDER, SPLIT_FILES
from sct_jax.data.images import encode_png
from sct_jax.data.sources import SOURCES, list_splits, open_source, source_kind
from sct_jax.data.spec import Source
from sct_jax.data.tfds_source import INFO_FILE
from sct_jax.errors import UserError

BUILDER_NAME = "images"
UNDIVIDED = ("folder", "zip")  # kinds whose data need not be divided into splits


def prepare(
    source_path: str | Path, out: str | Path, *, kind: str = "auto", image_size: int = 0, split: str = "train"
) -> Path:
    """Writes all splits of a source to ``out``, to be read with ``open_source("tfds", path=out)``.

    The images are stored as PNG, so what is read is what the source gives, bit for bit and in its order.
    Everything is written beside ``out`` first and renamed when complete.

    Args:
      source_path: a folder or zip of images, a CIFAR-10 archive, a directory of IDX files, or ``digits``.
      out: the directory to make; it must not exist, or be empty.
      kind: what ``source_path`` is (a name of ``open_source``); ``auto`` finds out.
      image_size: as in ``open_source``.
      split: what to call the data of a folder or zip that is not divided into splits.

    Returns:
      ``out``.

    Raises:
      UserError: the source cannot be read, or ``out`` not be written.
    """
    path, target = str(source_path), Path(out).expanduser()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"{target} exists already: choose another place, or remove it first")
    kind = detect_kind(path) if kind == "auto" else kind
    source_kind(kind)
    path = "" if kind == "digits" else path
    names = tuple(name for name in list_splits(kind, path) if name != "all")
    sources = {name: open_source(kind, path, name, image_size) for name in names}
    if kind in UNDIVIDED and names == ("train",):
        sources = {split: sources["train"]}
    _check_agreement(sources, path)
    try:
        _write(sources, target)
    except (OSError, RuntimeError) as error:  # array_record reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {target}: {reason}; nothing was left there") from error
    return target


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


def _write(sources: dict[str, Source], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-incomplete-", dir=target.parent) as aside:
        builder = _make_builder(sources, aside)
        with _quiet():
            builder.download_and_prepare(file_format="array_record")
        os.replace(builder.data_path, target)  # takes the place of an empty directory


def _make_builder(sources: dict[str, Source], data_dir: str) -> Any:
    """Returns a tensorflow-datasets builder; it is handed PNG bytes, which need no TensorFlow."""
    import tensorflow_datasets as tfds

    spec = max((source.spec for source in sources.values()), key=lambda spec: spec.num_classes)

    class Images(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = BUILDER_NAME
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None  # nothing is downloaded, so there are no checksums to look for in this package

        def _info(self) -> tfds.core.DatasetInfo:
            shape = (spec.image_size, spec.image_size, spec.channels)
            features = {"image": tfds.features.Image(shape=shape, encoding_format="png")}
            if spec.num_classes:
                names = list(spec.class_names) or None
                features["label"] = tfds.features.ClassLabel(
                    names=names, num_classes=None if names else spec.num_classes
                )
            return tfds.core.DatasetInfo(
                builder=self,
                description="Square 8-bit images, in the order of their source.",
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {name: self._generate_examples(source) for name, source in sources.items()}

        def _generate_examples(self, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
            for index in range(len(source)):
                image, label = source[index]
                example = {"image": encode_png(image)}
                yield index, example | ({"label": label} if spec.num_classes else {})

    return Images(data_dir=data_dir)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps tensorflow-datasets' announcements off stdout, and its progress bars for terminals."""
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        yield
