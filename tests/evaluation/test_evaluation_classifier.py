"""The classifier is accurate, deterministic, cached under what it depends on, and never read half-written."""

import gzip
from pathlib import Path

import jax
import numpy as np
import pytest

from sct_jax.errors import UserError
from sct_jax.evaluation import Classifier, train_or_load_classifier
from sct_jax.evaluation import classifier as classifier_module
from sct_jax.models.classifier import build_classifier

FASHION = Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def counted_training(monkeypatch):
    """Leaves the initial parameters instead of training, and notes each time training was due."""
    calls = []

    def untrained(images, labels, network, key, seed):
        calls.append(key)
        return Classifier(network, network.init(jax.random.key(len(calls))), 0.5, {"key": key})

    monkeypatch.setattr(classifier_module, "_train", untrained)
    return calls


@pytest.mark.slow
def test_digits_accuracy_on_unseen_writers(evaluator, digits):
    images, labels = digits
    classifier = evaluator.classifier
    assert classifier.accuracy(images[1437:], labels[1437:]) >= 0.97
    assert classifier.accuracy(images[:1437], labels[:1437]) >= 0.998
    assert classifier.provenance["train_images"] == 1437
    assert classifier.features(images[:1437]).var(axis=0).mean() == pytest.approx(1, rel=1e-3)


def test_a_row_does_not_depend_on_its_neighbours(evaluator, digits):
    images, _ = digits
    classifier = evaluator.classifier
    np.testing.assert_array_equal(classifier.features(images[:600])[517:520], classifier.features(images[517:520]))
    assert classifier.predict(images[:3]).dtype == np.int32
    assert classifier.features(images[:3]).dtype == np.float32


def test_cache_is_used_for_the_same_data_and_seed_only(digits, tmp_path, counted_training, capsys):
    images, labels = digits[0][:100], digits[1][:100]
    first = train_or_load_classifier(images, labels, num_classes=10, cache_dir=tmp_path)
    assert f"on 100 real images, once (kept in {tmp_path})" in capsys.readouterr().err
    again = train_or_load_classifier(images, labels, num_classes=10, cache_dir=tmp_path)
    assert capsys.readouterr().err == ""
    assert len(counted_training) == 1
    np.testing.assert_array_equal(first.features(images), again.features(images))
    assert first.provenance == again.provenance
    changed = images.copy()
    changed[0, 0, 0, 0] ^= 1
    train_or_load_classifier(changed, labels, num_classes=10, cache_dir=tmp_path)
    train_or_load_classifier(images, labels, num_classes=10, cache_dir=tmp_path, seed=1)
    train_or_load_classifier(images, (labels + 1) % 10, num_classes=10, cache_dir=tmp_path)
    assert len(counted_training) == 4
    assert len(list(tmp_path.glob("classifier-*.npz"))) == 4
    assert not list(tmp_path.glob(".classifier-*"))


def test_same_seed_trains_the_same_classifier(digits, monkeypatch):
    monkeypatch.setitem(classifier_module.RECIPE, "steps", {"tiny": 2, "small": 2})
    images, labels = digits[0][:100], digits[1][:100]
    one, two = (train_or_load_classifier(images, labels, num_classes=10, cache_dir=None, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.features(images), two.features(images))


def test_damaged_cache_is_trained_anew(digits, tmp_path, counted_training):
    images, labels = digits[0][:100], digits[1][:100]
    first = train_or_load_classifier(images, labels, num_classes=10, cache_dir=tmp_path)
    (file,) = tmp_path.glob("classifier-*.npz")
    file.write_bytes(file.read_bytes()[:1000])
    again = train_or_load_classifier(images, labels, num_classes=10, cache_dir=tmp_path)
    assert len(counted_training) == 2
    assert np.abs(first.features(images) - again.features(images)).max() > 0
    train_or_load_classifier(images, labels, num_classes=10, cache_dir=tmp_path)
    assert len(counted_training) == 2


def test_mistakes_are_named(digits, tmp_path):
    images, labels = digits[0][:20], digits[1][:20]
    with pytest.raises(UserError, match=r"0\.\.4, found 0\.\.9"):
        train_or_load_classifier(images, labels, num_classes=5, cache_dir=None)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache folder"):
        train_or_load_classifier(images, labels, num_classes=10, cache_dir=tmp_path / "file" / "cache")


@pytest.mark.parametrize(("size", "channels", "features"), [(8, 1, 64), (12, 3, 64), (16, 1, 128), (32, 3, 128)])
def test_network_shapes(size, channels, features):
    network = build_classifier(size, channels, 7)
    params = jax.eval_shape(network.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((5, size, size, channels), np.float32)
    shapes = jax.eval_shape(network.apply, params, image)
    assert [leaf.shape for leaf in shapes] == [(5, features), (5, 7)]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.skipif(not FASHION.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_accuracy(tmp_path):
    def read(name, offset):
        return np.frombuffer(gzip.open(FASHION / name).read(), np.uint8, offset=offset)

    def images(name):
        return np.pad(read(name, 16).reshape(-1, 28, 28, 1), ((0, 0), (2, 2), (2, 2), (0, 0)))

    labels = read("train-labels-idx1-ubyte.gz", 8)
    classifier = train_or_load_classifier(
        images("train-images-idx3-ubyte.gz"), labels, num_classes=10, cache_dir=tmp_path
    )
    assert classifier.accuracy(images("t10k-images-idx3-ubyte.gz"), read("t10k-labels-idx1-ubyte.gz", 8)) >= 0.9
