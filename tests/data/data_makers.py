"""Small real data files for the tests of the data room."""

import gzip
import io
import json
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ant", "bee", "cow")


def random_images(count: int, size: int = 8, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Returns noise, uint8 ``[count, size, size, channels]``: no two images are alike."""
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, kind)
    return file.getvalue()


def write_class_folder(root: Path, images: np.ndarray) -> np.ndarray:
    """Writes images to one sub-folder a class, in turn; returns their labels, in the order given."""
    labels = np.arange(len(images)) % len(CLASSES)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = root / CLASSES[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:04d}.png").write_bytes(encode(image))
    return labels


def write_zip(path: Path, images: np.ndarray, labels: object) -> None:
    """Writes an EDM-style zip; ``labels`` is what its JSON holds (a list of numbers is paired with names)."""
    names = [f"{number // 4:05d}/img{number:08d}.png" for number in range(len(images))]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, image in zip(names, images, strict=True):
            archive.writestr(name, encode(image))
        if isinstance(labels, list):
            labels = [[name, label] for name, label in zip(names, labels, strict=False)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


def write_idx(folder: Path, split: str, images: np.ndarray, labels: np.ndarray, gzipped: bool) -> None:
    """Writes grey images ``[N, H, W]`` and labels ``[N]`` as a pair of IDX files."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix, suffix = {"train": "train", "test": "t10k"}[split], ".gz" if gzipped else ""
    pack = gzip.compress if gzipped else bytes
    for kind, values in (("images", images), ("labels", labels)):
        header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
        data = pack(header + values.astype(np.uint8).tobytes())
        (folder / f"{prefix}-{kind}-idx{values.ndim}-ubyte{suffix}").write_bytes(data)


def cifar_batches(images: np.ndarray, labels: np.ndarray) -> dict[str, bytes]:
    """Returns the files of a CIFAR-10 archive, a sixth of the images each: five for training, one test."""
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    names = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    return {
        name: pickle.dumps({b"data": part, b"labels": [int(label) for label in part_labels]}, protocol=2)
        for name, part, part_labels in zip(names, np.split(rows, 6), np.split(labels, 6), strict=True)
    }


def write_cifar_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
