"""All rows of the query's class, gathered, are all rows under a mask: one device and eight, classes of unequal size."""

import functools

import jax
import numpy as np
import pytest
import score_oracle as oracle

from sct_jax.data import references
from sct_jax.data.spec import ArraySource
from sct_jax.diffusion import score
from sct_jax.training.mesh import make_mesh

COUNTS = (1, 2, 17, 40, 33, 0, 64)  # of the classes; nobody asks for the one without images
CLASSES, NUM = len(COUNTS), sum(COUNTS)
LABELS = np.random.default_rng(1).permutation(np.repeat(np.arange(CLASSES), COUNTS)).astype(np.int32)
gathered = jax.jit(functools.partial(score.class_posterior_mean, block=8), static_argnames=("flip", "block"))


def class_store(images, shards=1, labels=LABELS):
    return references.make_class_store(ArraySource(images, labels, CLASSES), shards)


def make_queries(images):
    chosen = np.concatenate([np.flatnonzero(label == LABELS)[:6] for label in range(CLASSES)])
    x_0 = oracle.unit(images[chosen]).astype(np.float32)
    noise = np.random.default_rng(2).normal(size=x_0.shape).astype(np.float32)
    t = np.resize(oracle.TIMES, len(chosen))
    return x_0, noise, t, LABELS[chosen]


def assert_same(a, b):
    assert oracle.relative(a.estimate, np.asarray(b.estimate, np.float64)) < 1e-5
    np.testing.assert_allclose(a.effective_sample_size, b.effective_sample_size, rtol=2e-5)
    np.testing.assert_allclose(a.entropy, b.entropy, atol=2e-5)
    np.testing.assert_allclose(a.own_distance, b.own_distance, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("block", [1, 8, 100])
def test_gathered_rows_of_the_class_are_masked_rows(flip, block):
    images = oracle.random_images(NUM)
    x_0, noise, t, labels = make_queries(images)
    store = class_store(images)
    found = gathered(x_0, noise, t, labels, store["image"], store["start"][0], flip=flip, block=block)
    masked = score.dataset_posterior_mean(x_0, noise, t, images, labels=labels, image_labels=LABELS, flip=flip)
    assert_same(found, masked)
    alone = labels == 0  # one row, and with flips its mirror image
    np.testing.assert_array_less(np.asarray(found.effective_sample_size)[alone], 2.001 if flip else 1.001)


def test_agrees_with_float64():
    images = oracle.with_near_duplicates(oracle.digits(NUM))[:NUM]
    x_0, noise, t, labels = make_queries(images)
    store = class_store(images)
    found = gathered(x_0, noise, t, labels, store["image"], store["start"][0])
    estimate, size, *_ = oracle.dense(x_0, noise, t, oracle.unit(images), labels[:, None] == LABELS[None])
    assert oracle.relative(found.estimate, estimate) < 1e-5
    np.testing.assert_allclose(found.effective_sample_size, size, rtol=2e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_split_over_eight_devices_it_is_the_same(flip):
    images = oracle.random_images(NUM)  # no multiple of 8: the parts are padded
    x_0, noise, t, labels = make_queries(images)
    mesh, store = make_mesh(2, 4), class_store(images, 8)
    assert len(store["image"]) > NUM
    store["image"] = store["image"].reshape(len(store["image"]), -1)  # flat, as training has them
    found = jax.jit(functools.partial(score.sharded_class_posterior_mean, mesh, flip=flip, block=4))(
        x_0, noise, t, labels, store["image"], store["start"]
    )
    masked = score.dataset_posterior_mean(x_0, noise, t, images, labels=labels, image_labels=LABELS, flip=flip)
    assert_same(found, masked)


def test_a_query_of_a_class_without_images_is_not_a_number():
    images = oracle.random_images(NUM)
    x_0, noise, t, _ = (x[:2] for x in make_queries(images))
    store = class_store(images)
    found = gathered(x_0, noise, t, np.int32([5, 2]), store["image"], store["start"][0])
    assert np.isnan(found.estimate[0]).all()
    assert np.isfinite(found.estimate[1]).all()


def test_shapes_that_do_not_fit_are_refused():
    images = oracle.random_images(NUM)
    x_0, noise, t, labels = make_queries(images)
    store = class_store(images, 2)
    with pytest.raises(ValueError, match="start"):
        score.class_posterior_mean(x_0, noise, t, labels, store["image"], store["start"])
    with pytest.raises(ValueError, match="do not divide over 8 devices"):
        score.sharded_class_posterior_mean(make_mesh(8), x_0, noise, t, labels, store["image"], store["start"])
