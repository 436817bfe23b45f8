"""Every source gives back exactly the images and labels that its files hold."""

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_makers import (
    CLASSES,
    cifar_batches,
    encode,
    random_images,
    write_cifar_archive,
    write_class_folder,
    write_idx,
    write_zip,
)
from PIL import Image

from sct_jax.data import DataSpec, list_splits, open_source

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def assert_holds(source, images, labels):
    """Checks both ways of reading, the description, and that a pickled copy reads the same."""
    all_images, all_labels = source.read_all()
    np.testing.assert_array_equal(all_images, images)
    np.testing.assert_array_equal(all_labels, labels)
    assert (all_images.dtype, all_labels.dtype) == (np.uint8, np.int32)
    assert len(source) == source.spec.num_examples == len(images)
    assert (source.spec.image_size, source.spec.channels) == images.shape[2:]
    for reader in (source, pickle.loads(pickle.dumps(source))):
        for index in (0, len(images) - 1):
            image, label = reader[index]
            np.testing.assert_array_equal(image, images[index])
            assert image.dtype == np.uint8
            assert label == labels[index]


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    digits = load_digits()
    everything = open_source("digits", split="all")
    images, labels = everything.read_all()
    np.testing.assert_allclose(images[..., 0] * (16 / 255), digits.images, atol=0.04)  # half of 16/255 is 0.031
    assert_holds(everything, np.round(digits.images * 255 / 16).astype(np.uint8)[..., None], digits.target)
    assert everything.spec == DataSpec(8, 1, 10, 1797, tuple("0123456789"))
    assert (images.min(), images.max()) == (0, 255)
    assert_holds(open_source("digits"), images[:1437], labels[:1437])
    assert_holds(open_source("digits", split="test"), images[1437:], labels[1437:])


def test_padding_centres_on_black():
    native, _ = open_source("digits").read_all()
    padded, _ = open_source("digits", image_size=13).read_all()
    np.testing.assert_array_equal(padded[:, 2:10, 2:10], native)
    assert padded.shape[1:] == (13, 13, 1)
    assert padded.sum(dtype=np.int64) == native.sum(dtype=np.int64)


@pytest.mark.parametrize("gzipped", [False, True])
def test_idx(tmp_path, gzipped):
    images, labels = random_images(7, 6, 1), np.array([0, 5, 1, 1, 2, 3, 0])
    write_idx(tmp_path, "train", images[:4, ..., 0], labels[:4], gzipped)
    write_idx(tmp_path, "test", images[4:, ..., 0], labels[4:], gzipped)
    train, test = (open_source("idx", tmp_path, split) for split in ("train", "test"))
    assert_holds(train, images[:4], labels[:4])
    assert_holds(test, images[4:], labels[4:])
    assert train.spec.num_classes == test.spec.num_classes == 6  # though the test split has no label above 3


@pytest.mark.skipif(not FASHION_MNIST.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_the_default_of_idx():
    source = open_source("idx", split="test", image_size=32)
    images, labels = source.read_all()
    assert source.spec == DataSpec(32, 1, 10, 10_000)
    np.testing.assert_array_equal(np.bincount(labels), 1000)
    assert images[:, :2].max() == images[:, -2:].max() == images[:, :, :2].max() == images[:, :, -2:].max() == 0
    assert images.mean() * (32 / 28) ** 2 == pytest.approx(73.15, abs=0.01)  # published mean 0.2868 of the test set


@pytest.mark.parametrize("form", ["archive", "folder", "parent of archive", "parent of folder"])
def test_cifar10(tmp_path, form):
    images, labels = random_images(12, 32), np.arange(12) % 10
    files = cifar_batches(images, labels)
    archive, folder = tmp_path / "cifar-10-python.tar.gz", tmp_path / "cifar-10-batches-py"
    if "archive" in form:
        write_cifar_archive(archive, files)
    else:
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
    path = {"archive": archive, "folder": folder}.get(form, tmp_path)
    assert_holds(open_source("cifar10", path), images[:10], labels[:10])
    test = open_source("cifar10", path, "test")
    assert_holds(test, images[10:], labels[10:])
    assert test.spec.num_classes == 10
    assert test.spec.class_names[:2] == ("airplane", "automobile")


def test_cifar10_as_python_2_pickled_it():
    """The published archive was pickled by Python 2, whose byte strings hold numpy's data."""
    from sct_jax.data.cifar import parse_batch

    row = bytes(range(256)) * 12
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01(K\x01M\x00\x0ctcnumpy\ndtype\n"
        b"(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(row).to_bytes(4, "little")
        + row
        + b"tb"
    )
    data = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x09eU\x0bbatch_labelU\x04testu."
    images, labels = parse_batch(data, "test")
    np.testing.assert_array_equal(images[0], np.frombuffer(row, np.uint8).reshape(3, 32, 32).transpose(1, 2, 0))
    assert labels.tolist() == [9]


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_of_classes(tmp_path, channels):
    images = random_images(8, channels=channels)
    labels = write_class_folder(tmp_path, images)
    order = np.argsort(labels, kind="stable")
    source = open_source("folder", tmp_path)
    assert_holds(source, images[order], labels[order])
    assert source.spec == DataSpec(8, channels, 3, 8, CLASSES)


def test_folder_without_classes_has_no_labels(tmp_path):
    images = random_images(3)
    for name, image in zip("cab", images, strict=True):
        (tmp_path / f"{name}.PNG").write_bytes(encode(image))
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("nor this")
    source = open_source("folder", tmp_path)
    assert_holds(source, images[[1, 2, 0]], np.zeros(3))
    assert source.spec.num_classes == 0


def test_folder_with_split_folders(tmp_path):
    images = random_images(6)
    write_class_folder(tmp_path / "train", images[:5])
    (tmp_path / "test" / "bee").mkdir(parents=True)
    (tmp_path / "test" / "bee" / "x.png").write_bytes(encode(images[5]))
    assert list_splits("folder", tmp_path) == ("train", "test")
    assert open_source("folder", tmp_path).spec.num_examples == 5
    test = open_source("folder", tmp_path, "test")
    assert_holds(test, images[5:], [1])  # bee is class 1 although it is the only one here
    assert test.spec.class_names == CLASSES


def test_folder_with_dataset_json(tmp_path):
    """An EDM-style zip that someone unpacked: its numbered folders are not classes."""
    images = random_images(2)
    for folder, image in zip(("00000", "00001"), images, strict=True):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "img.png").write_bytes(encode(image))
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [["00000/img.png", 4], ["00001/img.png", 0]]}))
    source = open_source("folder", tmp_path)
    assert_holds(source, images, [4, 0])
    assert source.spec.num_classes == 5


def test_grey_and_colour_together_become_rgb(tmp_path):
    grey, colour = random_images(1, channels=1)[0], random_images(1)[0]
    (tmp_path / "a.png").write_bytes(encode(grey))
    (tmp_path / "b.png").write_bytes(encode(colour))
    assert_holds(open_source("folder", tmp_path), np.stack([np.repeat(grey, 3, axis=-1), colour]), [0, 0])


def test_image_size_crops_the_centre_and_resizes(tmp_path):
    wide = np.full((20, 40, 3), 255, np.uint8)
    wide[:, 10:30] = np.array([10, 100, 200], np.uint8)  # the central square
    (tmp_path / "wide.png").write_bytes(encode(wide))
    (tmp_path / "tall.png").write_bytes(encode(wide.transpose(1, 0, 2)))
    fits = random_images(1, 5)[0]
    (tmp_path / "fits.png").write_bytes(encode(fits))
    source = open_source("folder", tmp_path, image_size=5)
    flat = np.broadcast_to(np.array([10, 100, 200], np.uint8), (5, 5, 3))
    assert_holds(source, np.stack([fits, flat, flat]), [0, 0, 0])


def test_jpeg_is_what_pillow_decodes(tmp_path):
    data = encode(random_images(1, 16)[0], "JPEG")
    (tmp_path / "a.jpg").write_bytes(data)
    assert_holds(open_source("folder", tmp_path), np.array(Image.open(io.BytesIO(data)))[None], [0])


def test_zip_with_labels(tmp_path):
    images, labels = random_images(6), [2, 0, 7, 7, 2, 0]
    write_zip(tmp_path / "data.zip", images, labels)
    source = open_source("zip", tmp_path / "data.zip")
    assert_holds(source, images, labels)
    assert source.spec.num_classes == 8  # a gap in the labels is allowed


def test_zip_without_labels(tmp_path):
    images = random_images(6, channels=1)
    write_zip(tmp_path / "data.zip", images, None)
    source = open_source("zip", tmp_path / "data.zip")
    assert_holds(source, images, np.zeros(6))
    assert source.spec.num_classes == 0


def test_importing_the_room_is_light():
    heavy = "{'jax', 'grain', 'tensorflow_datasets', 'sklearn', 'PIL', 'flax'}"
    code = f"import sys, sct_jax.data; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
