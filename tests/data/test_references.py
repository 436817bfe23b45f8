"""The store of reference rows, and the rows drawn from it: uniform over the class, the same on device and host."""

import subprocess
import sys

import jax
import numpy as np
import pytest
from data_makers import random_images

from sct_jax.data import open_source, references
from sct_jax.data.spec import ArraySource, DataSpec
from sct_jax.diffusion import score

LABELS = np.array([2, 0, 2, 1, 2, 0, 2, 2, 1, 2])
QUERIES = np.arange(60, dtype=np.int32) % 3
jitted = jax.jit(references.draw_rows, static_argnames=("size", "same_class"))


def draw(seed, store, same_class, queries=QUERIES, size=100):
    part = {name: store[name] for name in ("order", "start")}
    return np.asarray(jitted(jax.random.key(seed), part, queries, size, same_class))


def make_source(labels=LABELS, num_classes=3):
    return ArraySource(random_images(len(labels)), labels, num_classes)


def test_the_order_sorts_by_class_and_start_says_where_each_begins():
    store = references.make_store(make_source())
    np.testing.assert_array_equal(store["label"], LABELS)
    np.testing.assert_array_equal(store["image"], random_images(10))
    assert store["start"].tolist() == [0, 2, 4, 10]
    for label in range(3):
        rows = store["order"][store["start"][label] : store["start"][label + 1]]
        np.testing.assert_array_equal(rows, np.flatnonzero(label == LABELS))
    assert {name: array.dtype.name for name, array in store.items()} == {
        "image": "uint8",
        "label": "int32",
        "order": "int32",
        "start": "int32",
    }


@pytest.mark.parametrize("shards", [1, 3, 4, 16])
def test_a_class_store_deals_every_row_to_one_part_sorted_by_class(shards):
    source = make_source()
    store, reader = references.make_class_store(source, shards), references.ClassReader(source, shards)
    most = len(store["image"]) // shards
    assert most == -(-10 // shards)
    dealt = []
    for shard in range(shards):
        part, start = store["image"][shard * most : (shard + 1) * most], store["start"][shard]
        for label in range(3):
            rows = [row for row in range(shard, 10, shards) if LABELS[row] == label]
            np.testing.assert_array_equal(part[start[label] : start[label + 1]], random_images(10)[rows])
            dealt += rows
        np.testing.assert_array_equal(reader.images(shard * most, (shard + 1) * most), part)
    assert sorted(dealt) == list(range(10))
    np.testing.assert_array_equal(reader.starts(0, shards), store["start"])


def test_rows_are_gathered_by_class_where_classes_are_many_and_seen_alone():
    few, many = (DataSpec(8, 1, classes, 100) for classes in (10, 100))
    assert [references.by_class(spec, same) for spec in (few, many) for same in (True, False)] == [
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize(("shards", "padded"), [(1, 10), (5, 10), (4, 12), (8, 16), (16, 16)])
def test_padding_is_hidden_and_never_drawn(shards, padded):
    store = references.make_store(make_source(), shards)
    assert len(store["image"]) == len(store["label"]) == padded
    assert (store["label"][10:] == score.HIDDEN).all()
    assert len(store["order"]) == store["start"][-1] == 10
    for same_class in (False, True):
        assert draw(0, store, same_class).max() == 9


def test_a_source_without_labels_is_one_class():
    store = references.make_store(make_source(np.zeros(10, int), num_classes=0))
    assert store["start"].tolist() == [0, 10]
    one, all_of_them = (draw(0, store, same_class, np.zeros(60, np.int32)) for same_class in (True, False))
    np.testing.assert_array_equal(one, all_of_them)
    assert len(np.unique(one)) == 10


def test_a_class_without_examples_takes_no_place_and_asking_for_it_is_an_error():
    store = references.make_store(make_source(np.array([0, 2, 2]), num_classes=4))
    assert store["start"].tolist() == [0, 1, 1, 3, 3]
    for label in (1, 3, -1, 4):
        with pytest.raises(ValueError, match=rf"no examples of the classes \[{label}\]"):
            references.draw_rows(jax.random.key(0), store, np.array([0, label]), 2, True)


def test_rows_are_of_the_querys_class_and_uniform_over_it():
    drawn = draw(1, references.make_store(make_source()), True)
    assert drawn.dtype == np.int32
    assert drawn.shape == (60, 100)
    np.testing.assert_array_equal(LABELS[drawn], np.broadcast_to(QUERIES[:, None], drawn.shape))
    for label in range(3):
        counts = np.bincount(drawn[label == QUERIES].ravel(), minlength=10)[label == LABELS]
        expected = 20 * 100 / len(counts)
        assert ((counts - expected) ** 2 / expected).sum() < 30  # chi-square, at most 5 degrees of freedom


def test_without_the_class_rows_are_uniform_over_all():
    drawn = draw(2, references.make_store(make_source()), False)
    counts = np.bincount(drawn.ravel(), minlength=10)
    assert ((counts - 600) ** 2 / 600).sum() < 40  # 9 degrees of freedom


def test_draws_are_independent_between_queries_and_between_keys():
    store, queries = references.make_store(make_source()), np.full(60, 2, np.int32)
    first, again, other = (draw(seed, store, True, queries) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    rows = np.concatenate([first, other])
    agree = (rows[:, None] == rows[None]).mean(-1)[np.triu_indices(120, 1)]
    assert agree.max() < 0.45  # one in six by chance
    assert abs(agree.mean() - 1 / 6) < 0.01


@pytest.mark.parametrize("same_class", [False, True])
def test_host_rows_are_the_rows_that_the_device_draws(same_class):
    store = references.make_store(open_source("digits"))
    queries = store["label"][:60]
    rows = references.host_rows(jax.random.key(3), store, queries, 100, same_class)
    assert rows.dtype == np.uint8
    assert rows.shape == (60, 100, 8, 8, 1)
    np.testing.assert_array_equal(rows, store["image"][draw(3, store, same_class, queries)])


def test_float_images_stay_floats_and_are_padded_with_zeros():
    class Floats:
        spec = make_source().spec

        def read_all(self):
            return random_images(10).astype(np.float32) / 100, LABELS

    store = references.make_store(Floats(), shards=4)
    assert store["image"].dtype == np.float32
    np.testing.assert_array_equal(store["image"][:10], random_images(10).astype(np.float32) / 100)
    assert not store["image"][10:].any()


def test_the_draws_are_pinned():
    """A run that resumes under another version must draw the same rows: these numbers may never change."""
    store = references.make_store(make_source())
    assert draw(0, store, True)[:3, :6].tolist() == [[5, 1, 1, 5, 5, 5], [3, 3, 8, 8, 8, 3], [0, 9, 6, 9, 4, 0]]
    assert draw(0, store, False)[:2, :6].tolist() == [[9, 1, 3, 8, 5, 6], [4, 4, 2, 8, 6, 1]]


def test_what_pads_the_store_is_what_the_posterior_mean_hides():
    assert references.HIDDEN == score.HIDDEN


def test_importing_it_does_not_import_jax():
    code = "import sys, sct_jax.data.references; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
