"""The metrics on real digits: what they reward and refuse; order and batching do not matter."""

import numpy as np
import pytest

from sct_jax.errors import UserError
from sct_jax.evaluation import Evaluator
from sct_jax.evaluation import classifier as classifier_module


def test_real_images_score_the_floor(evaluator, digits):
    floor = evaluator.floor(1437, seed=0)
    assert floor["class_agreement"] > 0.995
    assert floor["class_agreement_held_out"] >= 0.97
    assert 0.04 < floor["fd_pca"] < 0.1
    assert floor["fd_classifier"] < 1
    images, labels = digits
    exact = evaluator.metrics(images[:1437], labels[:1437])
    assert max(exact["fd_pca"], exact["fd_classifier"]) < 1e-9
    # The held-out floor compares the whole sets: it is what the training images score themselves.
    assert exact["fd_pca_held_out"] == pytest.approx(floor["fd_pca_held_out"], rel=1e-9)


def test_class_means_agree_with_their_class_but_are_far(evaluator, digits):
    """Why both numbers are always shown."""
    images, labels = digits
    means = np.stack([images[labels == k].mean(axis=0) for k in range(10)]).astype(np.uint8)
    scores = evaluator.metrics(means[labels], labels)
    assert scores["class_agreement"] > 0.95
    assert scores["fd_pca"] > 3


def test_wrong_labels_and_noise_are_seen(evaluator, digits):
    images, labels = digits
    assert evaluator.metrics(images[:200], (labels[:200] + 1) % 10, ["class_agreement"])["class_agreement"] < 0.05
    noisy = np.clip(images + np.random.default_rng(0).normal(0, 60, images.shape), 0, 255).astype(np.uint8)
    clean_scores, noisy_scores = evaluator.metrics(images), evaluator.metrics(noisy)
    for name in ("fd_pca", "fd_classifier", "fd_pca_held_out"):
        assert noisy_scores[name] > 2 * clean_scores[name]


def test_order_and_batch_size_do_not_matter(evaluator, digits, monkeypatch):
    images, labels = digits[0][1000:1700], digits[1][1000:1700]
    expected = evaluator.metrics(images, labels)
    order = np.random.default_rng(0).permutation(len(images))
    assert evaluator.metrics(images[order], labels[order]) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(classifier_module, "BATCH", 96)
    assert evaluator.metrics(images, labels) == pytest.approx(expected, rel=1e-4)


def test_without_sample_labels_there_is_no_agreement(evaluator, digits):
    assert set(evaluator.metrics(digits[0][:100])) == {
        "fd_pca",
        "fd_pca_held_out",
        "fd_classifier",
        "fd_classifier_held_out",
    }


def test_data_without_classes_needs_no_classifier(digits):
    images, labels = digits
    unlabelled = Evaluator((images, np.zeros_like(labels)), num_classes=0)
    assert unlabelled.names == ("fd_pca",)
    assert set(unlabelled.metrics(images[:50], None, ("class_agreement", "fd_pca"))) == {"fd_pca"}
    assert set(unlabelled.floor(100)) == {"fd_pca"}
    with pytest.raises(UserError, match="without classes; use fd_pca"):
        unlabelled.metrics(images[:50], None, ["fd_classifier"])


def test_further_feature_spaces_join_by_name(digits):
    images, labels = digits
    ink = {"ink": lambda batch: batch.reshape(len(batch), -1).mean(axis=1, keepdims=True, dtype=np.float64)}
    evaluator = Evaluator((images, labels), num_classes=10, extractors=ink)
    scores = evaluator.metrics(images // 2, labels, ["fd_ink"])
    brightness = ink["ink"](images)
    # One dimension: (m1 - m2)^2 + (s1 - s2)^2.
    other = ink["ink"](images // 2)
    expected = (brightness.mean() - other.mean()) ** 2 + (brightness.std(ddof=1) - other.std(ddof=1)) ** 2
    assert scores == {"fd_ink": pytest.approx(expected)}


def test_mistakes_are_named(evaluator, digits):
    images, labels = digits
    with pytest.raises(UserError, match="did you mean fd_pca"):
        evaluator.metrics(images[:100], None, ["fid_pca"])
    with pytest.raises(UserError, match="at least 33 samples, got 20"):
        evaluator.metrics(images[:20], None, ["fd_pca"])
    with pytest.raises(UserError, match="at least 65 samples"):
        evaluator.metrics(images[:64], None, ["fd_classifier"])
    with pytest.raises(UserError, match="no samples"):
        evaluator.metrics(images[:0], None, ["class_agreement"])
    with pytest.raises(UserError, match="like the real images"):
        evaluator.metrics(np.zeros((100, 16, 16, 1), np.uint8))
    with pytest.raises(UserError, match="at least 33 held-out images, got 10"):
        Evaluator((images, labels), (images[:10], labels[:10]), num_classes=10).metrics(images, None, ["fd_pca"])
