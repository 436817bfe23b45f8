"""Images as files: a folder whose sub-folders are the classes, and EDM-style zips with a ``dataset.json``."""

import copy
import dataclasses
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from sct_jax.data.images import IMAGE_SUFFIXES, ImageHeader, decode_image, read_header
from sct_jax.data.spec import DataSpec, check_split
from sct_jax.data.stores import FolderStore, Store, ZipStore, is_hidden
from sct_jax.errors import UserError

LABEL_FILE = "dataset.json"
SPLIT_FOLDERS = ("train", "test", "val", "valid", "validation")
_PARALLEL = 4096
_MAX_LABEL = np.iinfo(np.int32).max


class FileSource:
    """Encoded images, decoded when asked for. Headers are read at the start, to agree on a shape."""

    def __init__(
        self,
        store: Store,
        names: list[str],
        labels: list[int] | None,
        class_names: tuple[str, ...],
        image_size: int,
        crop: str,
        lenient: bool,
    ):
        self._store, self._names = store, names
        self._labels = np.zeros(len(names), np.int32) if labels is None else np.asarray(labels, np.int32)
        self._image_size, self._crop = image_size, crop
        num_classes = 0 if labels is None else len(class_names) or int(self._labels.max()) + 1
        native, channels = self._agree_on_shape(lenient)
        self.spec = DataSpec(image_size or native, channels, num_classes, len(names), class_names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._with_file(self._names[index], self._decode), int(self._labels[index])

    def read_all(self) -> tuple[np.ndarray, np.ndarray]:
        spec = self.spec
        images = np.empty((len(self), spec.image_size, spec.image_size, spec.channels), np.uint8)
        for index, image in enumerate(_parallel(lambda index: self[index][0], range(len(self)))):
            images[index] = image
        return images, self._labels

    def part(self, first: int, end: int) -> "FileSource":
        """Returns the examples ``first ... end - 1`` as a source that costs little to send to another process."""
        part = copy.copy(self)
        part._names, part._labels = self._names[first:end], self._labels[first:end]
        part._store = self._store.part(part._names)
        part.spec = dataclasses.replace(self.spec, num_examples=len(part._names))
        return part

    def fingerprint(self) -> str:
        """Returns a hash of the listing of files and their labels: it changes when one of them does."""
        try:
            digest = hashlib.sha256(self._store.fingerprint(self._names).encode())
        except OSError as error:
            raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
        digest.update(self._labels.tobytes() + repr(self.spec.class_names).encode())
        return digest.hexdigest()

    def _agree_on_shape(self, lenient: bool) -> tuple[int, int]:
        """Returns the images' size (the same for all unless resized) and channels (3 if one has colour).

        Of images that are resized, those up to the first with colour are looked at. ``lenient``: an image whose header
        cannot be read has no say; it is complained about when it is asked for.
        """

        def header_of(name: str) -> ImageHeader | None:
            try:
                return self._with_file(name, read_header)
            except UserError:
                if not lenient:
                    raise
                return None

        headers = _parallel(header_of, self._names)
        first, channels = None, 1
        for name, header in zip(self._names, headers, strict=False):
            if header is None:
                continue
            first, channels = first or header, max(channels, header.channels)
            if self._image_size:
                if channels == 3:
                    break
                continue
            found = f"image {self._store.describe(name)} is {header.width}x{header.height}"
            if header.width != header.height:
                raise UserError(f"{found}, not square: set image_size to crop and resize all images")
            if header.width != first.width:
                others = f"others are {first.width}x{first.height}"
                raise UserError(f"{found} but {others}: set image_size to resize all images")
        headers.close()
        if first is None:
            raise UserError(f"no image in {self._store.root} can be read")
        return first.width, channels

    def _decode(self, file: IO[bytes], name: str) -> np.ndarray:
        return decode_image(file, name, self.spec.channels, self._image_size, self._crop)

    def _with_file(self, name: str, use: Callable[[IO[bytes], str], Any]) -> Any:
        described = self._store.describe(name)
        try:
            with self._store.open(name) as file:
                return use(file, described)
        except (
            OSError,
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise UserError(f"cannot read image {described}: {error}; replace or remove it") from error


def open_folder(path: str, split: str, image_size: int, crop: str = "centre", lenient: bool = False) -> FileSource:
    """Opens a folder of images.

    Labels come from its ``dataset.json`` (see ``open_zip``) or else from its sub-folders, the classes in
    order of name; images at the top mean no labels. Sub-folders ``train``, ``test`` and the like are splits.
    """
    root = _existing(path, Path.is_dir, "a folder of images")
    splits = folder_splits(path)
    check_split(split, splits, str(root))
    divided = _split_folders(root)
    part = root / split if divided else root
    store = FolderStore(part)
    names = store.names()
    images = _image_names(names, str(part))
    if LABEL_FILE in names:
        labels = _json_labels((part / LABEL_FILE).read_bytes(), store, images)
        return FileSource(store, images, labels, (), image_size, crop, lenient)
    parts = [root / name for name in divided] or [root]
    classes = sorted({folder.name for part in parts for folder in _subfolders(part)})
    return FileSource(store, images, _folder_labels(part, images, classes), tuple(classes), image_size, crop, lenient)


def folder_splits(path: str) -> tuple[str, ...]:
    """Returns the split folders of a folder, or ``train`` alone when it is not divided."""
    return _split_folders(_existing(path, Path.is_dir, "a folder of images")) or ("train",)


def open_zip(path: str, split: str, image_size: int, crop: str = "centre", lenient: bool = False) -> FileSource:
    """Opens a zip in the format of EDM's dataset tool (Karras et al. 2022).

    Its ``dataset.json`` holds ``{"labels": [["00000/img00000000.png", 6], ...]}``; without that file, or with
    ``null`` for the labels, there are none.
    """
    archive = _existing(path, Path.is_file, "a zip of images")
    check_split(split, zip_splits(path), str(archive))
    store = ZipStore(archive)
    names = store.names()
    images = _image_names(names, str(archive))
    labels = None
    if LABEL_FILE in names:
        try:
            with store.open(LABEL_FILE) as file:
                content = file.read()
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise UserError(f"cannot read {store.describe(LABEL_FILE)}: {error}; make the zip again") from error
        labels = _json_labels(content, store, images)
    return FileSource(store, images, labels, (), image_size, crop, lenient)


def zip_splits(path: str) -> tuple[str, ...]:
    """Returns the one split of a zip."""
    return ("train",)


def _existing(path: str, is_kind: Callable[[Path], bool], what: str) -> Path:
    location = Path(path).expanduser()
    if not path:
        raise UserError(f"a path is needed: that of {what}")
    if not is_kind(location):
        raise UserError(f"{location} {'is not' if location.exists() else 'does not exist: give the path of'} {what}")
    return location


def _subfolders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and not is_hidden(folder.name))


def _split_folders(root: Path) -> tuple[str, ...]:
    """Returns the sub-folders when every one is named like a split, else none."""
    names = {folder.name for folder in _subfolders(root)}
    return tuple(name for name in SPLIT_FOLDERS if name in names) if names <= set(SPLIT_FOLDERS) else ()


def _image_names(names: Iterable[str], where: str) -> list[str]:
    images = [name for name in names if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise UserError(f"no images in {where}: {', '.join(sorted(IMAGE_SUFFIXES))} files are looked for")
    return images


def _folder_labels(root: Path, images: list[str], classes: list[str]) -> list[int] | None:
    tops = [name.partition("/")[0] if "/" in name else "" for name in images]
    if set(tops) == {""} and not classes:
        return None
    if "" in tops:
        raise UserError(f"{root / images[tops.index('')]} lies beside class folders: move it into one of them")
    filled = set(tops)
    for folder in _subfolders(root):
        if folder.name not in filled:
            raise UserError(f"class folder {folder} has no images: fill it or remove it")
    numbers = {name: number for number, name in enumerate(classes)}
    return [numbers[top] for top in tops]


def _json_labels(content: bytes, store: Store, images: list[str]) -> list[int] | None:
    where = store.describe(LABEL_FILE)
    try:
        pairs = json.loads(content)["labels"]
        table = None if pairs is None else {name: label for name, label in pairs}
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f'{where} is not of the form {{"labels": [["image.png", 3], ...]}}: {error}') from error
    if table is None:
        return None
    for name, label in table.items():
        if type(label) is not int or not 0 <= label <= _MAX_LABEL:
            raise UserError(f"{where} gives {name} the label {label!r}: labels are whole numbers from 0 on")
    missing = [name for name in images if name not in table]
    if missing:
        raise UserError(f"{where} has no label for {missing[0]} ({len(missing)} images lack one): add them")
    return [table[name] for name in images]


def _parallel(function: Callable[[Any], Any], items: Sequence[Any]) -> Generator[Any]:
    """Maps in a few threads, results in order; Pillow decodes without the interpreter's lock."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for first in range(0, len(items), _PARALLEL):  # a million tasks at once would take gigabytes
            yield from pool.map(function, items[first : first + _PARALLEL])
