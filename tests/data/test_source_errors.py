"""A user's mistake is one line that names the culprit and says what to do."""

import json
import pickle
import zipfile

import numpy as np
import pytest
from data_makers import (
    cifar_batches,
    encode,
    random_images,
    write_cifar_archive,
    write_class_folder,
    write_idx,
    write_zip,
)

from sct_jax.data import open_source
from sct_jax.errors import UserError


def refuses(name, path, message, **arguments):
    with pytest.raises(UserError, match=message) as caught:
        open_source(name, path, **arguments)
    assert "\n" not in str(caught.value)


def test_unknown_sources_suggest_the_nearest():
    refuses("digit", "", "unknown data source 'digit': did you mean 'digits'")
    refuses("cifar", "", "did you mean 'cifar10'")
    refuses("qqqq", "", "The sources are digits, idx, cifar10, folder, zip, tfds")


@pytest.mark.parametrize("name", ["idx", "cifar10", "folder", "zip", "tfds"])
def test_missing_paths_are_named(name, tmp_path):
    refuses(name, tmp_path / "absent-data", "absent-data")


@pytest.mark.parametrize("name", ["cifar10", "folder", "zip", "tfds"])
def test_an_empty_path_says_what_is_needed(name):
    refuses(name, "", "needs? a path|path is needed")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("idx", "has no IDX files"),
        ("cifar10", "holds neither"),
        ("folder", "no images in"),
        ("tfds", "is not a prepared data set"),
    ],
)
def test_an_empty_folder_is_refused(name, message, tmp_path):
    (tmp_path / "empty").mkdir()
    refuses(name, tmp_path / "empty", f"({message} .*/empty|/empty {message})")


def test_unknown_splits_list_those_there(tmp_path):
    write_class_folder(tmp_path / "folder", random_images(3))
    write_zip(tmp_path / "in.zip", random_images(3), None)
    write_idx(tmp_path / "idx", "train", random_images(3, 6, 1)[..., 0], np.arange(3), gzipped=False)
    refuses("digits", "", "has no split 'val': choose one of train, test, all", split="val")
    refuses("folder", tmp_path / "folder", "no split 'test': choose one of train", split="test")
    refuses("zip", tmp_path / "in.zip", "no split 'test': choose one of train", split="test")
    refuses("idx", tmp_path / "idx", "no split 'test': choose one of train", split="test")


def test_impossible_image_sizes():
    refuses("digits", "", "image_size=4 is smaller than the 8x8 images", image_size=4)
    refuses("digits", "", "image_size=-8 must be 0", image_size=-8)
    refuses("digits", "/data", "need no path")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_image_is_named_when_it_is_read(tmp_path, kind):
    data = encode(random_images(1, 32)[0], kind)
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    source = open_source("folder", tmp_path)
    for read in (lambda: source[0], source.read_all):
        with pytest.raises(UserError, match=r"cannot read image .*cut\.png: .*; replace or remove it"):
            read()


@pytest.mark.parametrize("content", [b"", b"no image at all"])
def test_what_is_no_image_is_named_at_once(tmp_path, content):
    (tmp_path / "bad.jpg").write_bytes(content)
    refuses("folder", tmp_path, r"cannot read image .*bad\.jpg: not an image")


def test_a_damaged_image_in_a_zip_is_named(tmp_path):
    path = tmp_path / "in.zip"
    write_zip(path, random_images(5, 32), None)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("00000/img00000003.png").header_offset
    data = bytearray(path.read_bytes())
    data[start + 300 : start + 400] = bytes(100)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cannot read image .*in\.zip:00000/img00000003\.png"):
        open_source("zip", path).read_all()


def test_deep_images_are_refused(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "deep.png")
    refuses("folder", tmp_path, r"deep\.png has more than 8 bits")


def test_images_that_are_not_square_or_alike_are_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(random_images(1)[0]))
    odd = tmp_path / "odd.png"
    odd.write_bytes(encode(random_images(1)[0][:, :5]))
    refuses("folder", tmp_path, r"odd\.png is 5x8, not square: set image_size")
    odd.write_bytes(encode(random_images(1, 6)[0]))
    refuses("folder", tmp_path, r"odd\.png is 6x6 but others are 8x8: set image_size")


def test_class_folders_must_hold_the_images(tmp_path):
    write_class_folder(tmp_path, random_images(3))
    (tmp_path / "stray.png").write_bytes(encode(random_images(1)[0]))
    refuses("folder", tmp_path, r"stray\.png lies beside class folders")
    (tmp_path / "stray.png").unlink()
    (tmp_path / "dog").mkdir()
    refuses("folder", tmp_path, "class folder .*dog has no images")


@pytest.mark.parametrize("label", [-1, 1.5, "3", True, None, [0, 1], 2**31])
def test_labels_out_of_range_are_named(tmp_path, label):
    write_zip(tmp_path / "in.zip", random_images(3), [0, label, 1])
    refuses("zip", tmp_path / "in.zip", r"in\.zip:dataset\.json gives 00000/img00000001\.png the label ")


def test_incomplete_or_malformed_label_files(tmp_path):
    write_zip(tmp_path / "in.zip", random_images(3), [0, 1])
    refuses("zip", tmp_path / "in.zip", r"no label for 00000/img00000002\.png \(1 images lack one\)")
    write_zip(tmp_path / "in.zip", random_images(3), {"a": 1})
    refuses("zip", tmp_path / "in.zip", r"dataset\.json gives .* the label|is not of the form")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.png").write_bytes(encode(random_images(1)[0]))
    for content in ("{", "[]", json.dumps({"label": []}), json.dumps({"labels": [3]})):
        (tmp_path / "folder" / "dataset.json").write_text(content)
        refuses("folder", tmp_path / "folder", "is not of the form")


def test_files_that_are_not_zips(tmp_path):
    write_zip(tmp_path / "in.zip", random_images(3), None)
    (tmp_path / "cut.zip").write_bytes((tmp_path / "in.zip").read_bytes()[:-200])
    refuses("zip", tmp_path / "cut.zip", "cannot read .*cut.zip")
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as archive:
        archive.writestr("read.me", "no images")
    refuses("zip", tmp_path / "none.zip", "no images in .*none.zip")
    refuses("zip", tmp_path, "is not a zip of images")
    refuses("folder", tmp_path / "in.zip", "is not a folder of images")


def test_damaged_idx_files(tmp_path):
    images, labels = random_images(5, 6, 1)[..., 0], np.arange(5)
    write_idx(tmp_path, "train", images, labels, gzipped=False)
    image_file, label_file = tmp_path / "train-images-idx3-ubyte", tmp_path / "train-labels-idx1-ubyte"
    whole = image_file.read_bytes()
    image_file.write_bytes(whole[:-1])
    refuses("idx", tmp_path, "train-images-idx3-ubyte is incomplete: 179 bytes of data where 180 are announced")
    image_file.write_bytes(label_file.read_bytes())
    refuses("idx", tmp_path, "is not an IDX file of unsigned bytes with 3 dimension")
    image_file.write_bytes(whole)
    write_idx(tmp_path / "other", "train", images[:3], labels[:3], gzipped=False)
    label_file.write_bytes((tmp_path / "other" / "train-labels-idx1-ubyte").read_bytes())
    refuses("idx", tmp_path, "holds 5 images but train-labels-idx1-ubyte 3 labels")
    label_file.unlink()
    refuses("idx", tmp_path, "has the images of 'train' but no labels beside them")


def test_truncated_gzipped_idx(tmp_path):
    write_idx(tmp_path, "train", random_images(50, 6, 1)[..., 0], np.arange(50) % 4, gzipped=True)
    file = tmp_path / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-30])
    refuses("idx", tmp_path, r"cannot read .*train-images-idx3-ubyte\.gz")


def test_damaged_cifar_archives(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    files = cifar_batches(random_images(12, 32), np.arange(12) % 10)
    write_cifar_archive(path, files)
    path.write_bytes(path.read_bytes()[:-2000])
    refuses("cifar10", path, "cannot read .*cifar-10-python.tar.gz", split="test")
    write_cifar_archive(path, {name: data for name, data in files.items() if name != "data_batch_3"})
    refuses("cifar10", path, "lacks data_batch_3")
    write_cifar_archive(path, cifar_batches(random_images(12, 32), np.arange(12)))
    refuses("cifar10", path, "test_batch has labels from 10 to 11", split="test")
    write_cifar_archive(path, files | {"test_batch": files["test_batch"][:-500]})
    refuses("cifar10", path, "cannot read .*test_batch", split="test")


class Attack:
    """Pickles to a call of ``print``, in the place of anything worse."""

    def __reduce__(self):
        return print, ("the pickle was run",)


def test_a_hostile_cifar_pickle_is_not_run(tmp_path, capsys):
    files = cifar_batches(random_images(12, 32), np.arange(12) % 10)
    files["test_batch"] = pickle.dumps({"data": Attack(), "labels": [0]}, protocol=2)
    write_cifar_archive(tmp_path / "bad.tar.gz", files)
    refuses("cifar10", tmp_path / "bad.tar.gz", "print is not allowed in a data file", split="test")
    assert "the pickle was run" not in capsys.readouterr().out


def test_stock_builders_point_to_the_extra():
    refuses("tfds", "cifar10", r"pip install -e '\.\[tf\]', run `tfds build cifar10")
    refuses("tfds", "data/digits", "no such directory: data/digits; write it with `sct-jax prepare`")
