"""What ``prepare`` writes is read back bit for bit, and nothing is written half."""

import json

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
from test_sources import assert_holds

from sct_jax.data import list_splits, open_source, prepare
from sct_jax.errors import UserError


def assert_round_trip(kind, path, out, split="train", **arguments):
    original = open_source(kind, path, split, **arguments)
    copy = open_source("tfds", out, split)
    assert_holds(copy, *original.read_all())
    names = original.spec.class_names or tuple(str(label) for label in range(original.spec.num_classes))
    assert copy.spec.class_names == names
    assert copy.spec.num_classes == original.spec.num_classes


def test_digits(tmp_path):
    out = prepare("digits", tmp_path / "made" / "digits")
    assert out == tmp_path / "made" / "digits"
    assert list_splits("tfds", out) == ("train", "test")
    assert_round_trip("digits", "", out)
    assert_round_trip("digits", "", out, "test")
    assert_holds(open_source("tfds", out, "train+test"), *open_source("digits", split="all").read_all())
    assert_holds(open_source("tfds", out, "train[:100]"), *(part[:100] for part in open_source("digits").read_all()))
    assert [path.name for path in out.parent.iterdir()] == ["digits"]


@pytest.mark.parametrize("channels", [1, 3])
def test_folder(tmp_path, channels):
    write_class_folder(tmp_path / "in", random_images(40, channels=channels))
    out = prepare(tmp_path / "in", tmp_path / "out")
    assert_round_trip("folder", tmp_path / "in", out)
    assert open_source("tfds", out).spec.class_names == CLASSES


def test_folder_is_cropped_and_resized_once(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode(random_images(1, 20)[0][:, :12]))
    out = prepare(tmp_path / "in", tmp_path / "out", image_size=6, split="validation")
    expected = open_source("folder", tmp_path / "in", image_size=6).read_all()
    assert_holds(open_source("tfds", out, "validation"), *expected)


def test_folder_with_splits(tmp_path):
    write_class_folder(tmp_path / "in" / "train", random_images(6))
    write_class_folder(tmp_path / "in" / "test", random_images(4, seed=1))
    out = prepare(tmp_path / "in", tmp_path / "out")
    assert_round_trip("folder", tmp_path / "in", out)
    assert_round_trip("folder", tmp_path / "in", out, "test")


def test_a_checkout_of_jpeg_folders(tmp_path):
    """As CIFAR-10 lies on GitHub: two splits of class folders beside a README, the order that of the names."""
    images = random_images(12, 32)
    for index, image in enumerate(images):
        folder = tmp_path / "in" / ("train" if index < 8 else "test") / ("airplane", "bird")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index // 2:04}.jpg").write_bytes(encode(image, "JPEG"))
    (tmp_path / "in" / "README.md").write_text("images")
    (tmp_path / "in" / ".git").mkdir()
    (tmp_path / "in" / ".git" / "HEAD").write_text("ref: refs/heads/master")
    out = prepare(tmp_path / "in", tmp_path / "out")
    assert list_splits("tfds", out) == ("train", "test")
    for split, count in (("train", 8), ("test", 4)):
        assert_round_trip("folder", tmp_path / "in", out, split)
        spec = open_source("tfds", out, split).spec
        assert (spec.class_names, spec.num_examples) == (("airplane", "bird"), count)
        assert list(open_source("tfds", out, split).read_all()[1]) == [0] * (count // 2) + [1] * (count // 2)
    single = prepare(tmp_path / "in" / "train", tmp_path / "single")
    assert_holds(open_source("tfds", single), *open_source("tfds", out).read_all())


@pytest.mark.parametrize("labels", [None, [3, 0, 1, 1, 2, 2]])
def test_zip(tmp_path, labels):
    write_zip(tmp_path / "in.zip", random_images(6), labels)
    assert_round_trip("zip", tmp_path / "in.zip", prepare(tmp_path / "in.zip", tmp_path / "out"))


def test_cifar10(tmp_path):
    path = tmp_path / "cifar-10-python.tar.gz"
    write_cifar_archive(path, cifar_batches(random_images(12, 32), np.arange(12) % 10))
    out = prepare(path, tmp_path / "out")
    assert_round_trip("cifar10", path, out)
    assert_round_trip("cifar10", path, out, "test")


def test_idx(tmp_path):
    for split, count in (("train", 9), ("test", 5)):
        write_idx(tmp_path / "in", split, random_images(count, 6, 1)[..., 0], np.arange(count), gzipped=True)
    out = prepare(tmp_path / "in", tmp_path / "out")
    assert_round_trip("idx", tmp_path / "in", out)
    assert_round_trip("idx", tmp_path / "in", out, "test")
    native, _ = open_source("tfds", out).read_all()
    padded, _ = open_source("tfds", out, image_size=8).read_all()
    np.testing.assert_array_equal(padded, np.pad(native, [(0, 0), (1, 1), (1, 1), (0, 0)]))


def test_an_empty_target_is_used_and_a_full_one_is_not(tmp_path):
    write_zip(tmp_path / "in.zip", random_images(2), None)
    (tmp_path / "out").mkdir()
    prepare(tmp_path / "in.zip", tmp_path / "out")
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(UserError, match="out exists already"):
        prepare(tmp_path / "in.zip", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_nothing_is_left_when_an_image_is_damaged(tmp_path):
    write_class_folder(tmp_path / "in", random_images(6, 16))
    bad = tmp_path / "in" / "cow" / "0005.png"
    bad.write_bytes(bad.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"cannot read image .*0005.png"):
        prepare(tmp_path / "in", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_nothing_is_left_when_a_file_cannot_be_finished(tmp_path):
    """A limit on the size of files stands in for a full disk: the write is refused in the same place."""
    import resource

    write_zip(tmp_path / "in.zip", random_images(60, 64), None)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match=r"cannot write .*/out: .*; nothing was left there"):
            prepare(tmp_path / "in.zip", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["in.zip"]


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*file/out"):
        prepare("digits", tmp_path / "file" / "out")


def test_splits_that_differ_are_refused(tmp_path):
    write_class_folder(tmp_path / "in" / "train", random_images(3, 8))
    write_class_folder(tmp_path / "in" / "test", random_images(3, 6))
    with pytest.raises(UserError, match=r"differ in shape \(train 8x8x3, test 6x6x3\)"):
        prepare(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_told_is_asked(tmp_path):
    (tmp_path / "model.pkl").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot tell what .*model\.pkl is"):
        prepare(tmp_path / "model.pkl", tmp_path / "out")
    with pytest.raises(UserError, match=r"no such file or directory: .*nothing"):
        prepare(tmp_path / "nothing", tmp_path / "out")
    with pytest.raises(UserError, match="did you mean 'folder'"):
        prepare(tmp_path, tmp_path / "out", kind="foldr")
    with pytest.raises(UserError, match="no images in"):
        prepare(tmp_path, tmp_path / "out")


def test_a_prepared_data_set_is_not_prepared_again(tmp_path):
    write_zip(tmp_path / "in.zip", random_images(2), None)
    out = prepare(tmp_path / "in.zip", tmp_path / "out")
    with pytest.raises(UserError, match="is a prepared data set already"):
        prepare(out, tmp_path / "again")
    with pytest.raises(UserError, match="smaller than the 8x8 images"):
        open_source("tfds", out, image_size=4)
    with pytest.raises(UserError, match="has no split 'test': choose one of train, all"):
        open_source("tfds", out, "test")


def test_a_damaged_prepared_data_set_is_named(tmp_path):
    write_zip(tmp_path / "in.zip", random_images(20, 32), None)
    out = prepare(tmp_path / "in.zip", tmp_path / "out")
    with pytest.raises(UserError, match=r"did you mean .*out"):
        open_source("tfds", tmp_path)
    info = json.loads((out / "dataset_info.json").read_text())
    (out / "dataset_info.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read the data set in .*out"):
        open_source("tfds", out)
    (out / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match=r"stored as tfrecord.*pip install -e '\.\[tf\]'"):
        open_source("tfds", out)


@pytest.mark.parametrize("damage", ["cut", "overwritten"])
def test_damaged_records_are_named(tmp_path, damage):
    write_zip(tmp_path / "in.zip", random_images(20, 32), None)
    out = prepare(tmp_path / "in.zip", tmp_path / "out")
    (records,) = out.glob("*.array_record-*")
    data = bytearray(records.read_bytes())
    data[20_000:] = b"" if damage == "cut" else bytes(1000) + data[21_000:]
    records.write_bytes(data)
    with pytest.raises(UserError, match=r"cannot read example \d+ of .*out \(train\)"):
        open_source("tfds", out).read_all()
