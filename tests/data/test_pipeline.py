"""The two pipelines: the same batches, from any step, and errors that reach the caller."""

import jax
import numpy as np
import pytest
from data_makers import random_images, write_class_folder

from sct_jax.data import batch_indices, make_pipeline, open_source, prepare
from sct_jax.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("pipeline") / "images"
    write_class_folder(root, random_images(10, 6))
    return root


class WitnessedSource:
    """Notes which images are read one by one."""

    def __init__(self, source):
        self.source, self.spec, self.read_all, self.reads = source, source.spec, source.read_all, []

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.source[index]


def batches(pipeline, start_step, counts):
    """Fetches, inside jit, the batches of consecutive dispatches of the given numbers of steps."""
    fetch = jax.jit(pipeline.fetch)
    arrays, found = jax.device_put(pipeline.arrays), []
    for count in counts:
        items = pipeline.next(start_step, count)
        found += [fetch(arrays, {name: item[each] for name, item in items.items()}) for each in range(count)]
        start_step += count
    return found


def assert_batches_are(found, source, seed, steps, batch_size):
    images, labels = source.read_all()
    for step, batch in zip(steps, found, strict=True):
        index = batch_indices(seed, step, batch_size, len(source))
        np.testing.assert_array_equal(batch["image"], images[index])
        np.testing.assert_array_equal(batch["label"], labels[index])
        assert (batch["image"].dtype, batch["label"].dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_both_modes_give_the_batches_of_the_order(folder, mode, prefetch):
    """Batches of 4 out of 10: the third one spans two epochs."""
    source = open_source("folder", folder)
    pipeline = make_pipeline(source, seed=5, batch_size=4, mode=mode, prefetch=prefetch)
    assert pipeline.mode == mode
    assert pipeline.spec == source.spec
    assert_batches_are(batches(pipeline, 0, [1, 3, 2, 1]), source, 5, range(7), 4)
    pipeline.close()


@pytest.mark.parametrize("mode", ["resident", "streamed"])
def test_resuming_and_repositioning(folder, mode):
    source = open_source("folder", folder)
    pipeline = make_pipeline(source, seed=1, batch_size=7, mode=mode, start_step=11)
    assert_batches_are(batches(pipeline, 11, [2, 1]), source, 1, range(11, 14), 7)
    assert_batches_are(batches(pipeline, 3, [2]), source, 1, range(3, 5), 7)
    pipeline.close()
    assert_batches_are(batches(pipeline, 5, [1]), source, 1, [5], 7)
    pipeline.close()


def test_a_batch_may_exceed_the_data(folder):
    source = open_source("folder", folder)
    pipeline = make_pipeline(source, seed=1, batch_size=25, mode="streamed")
    assert_batches_are(batches(pipeline, 0, [2]), source, 1, range(2), 25)
    pipeline.close()


def test_the_streamed_pipeline_reads_a_prepared_data_set(folder, tmp_path):
    out = prepare(folder, tmp_path / "out")
    pipeline = make_pipeline(open_source("tfds", out), seed=2, batch_size=4, mode="streamed")
    assert_batches_are(batches(pipeline, 0, [4]), open_source("folder", folder), 2, range(4), 4)
    pipeline.close()


def test_item_shapes_are_those_promised(folder):
    source = open_source("folder", folder)
    resident = make_pipeline(source, seed=0, batch_size=4, mode="resident")
    items = resident.next(0, 3)
    assert {name: (item.shape, str(item.dtype)) for name, item in items.items()} == {"index": ((3, 4), "int32")}
    streamed = make_pipeline(source, seed=0, batch_size=4, mode="streamed")
    items = streamed.next(0, 3)
    assert items["image"].shape == (3, 4, 6, 6, 3)
    assert items["label"].shape == (3, 4)
    assert streamed.arrays == {}
    streamed.close()


@pytest.mark.parametrize("mode", ["resident", "streamed"])
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_the_parts_of_several_processes_are_the_whole_batch(folder, mode, processes):
    """Process p has the rows p, p + n, ...: no process reads another's, together they are the order's batch."""
    source = open_source("folder", folder)
    whole = [np.full(6, -1), np.zeros((6, 6, 6, 3), np.uint8)]
    for process in range(processes):
        witness, rows = WitnessedSource(source), np.arange(6)[process::processes]
        pipeline = make_pipeline(witness, seed=9, batch_size=6, mode=mode, prefetch=0, start_step=4, rows=rows)
        items = pipeline.next(4, 1)
        assert {item.shape[:2] for item in items.values()} == {(1, len(rows))}
        if mode == "streamed":
            assert witness.reads[: len(rows)] == batch_indices(9, 4, 6, 10)[rows].tolist()
        batch = pipeline.fetch(pipeline.arrays, {name: item[0] for name, item in items.items()})
        whole[0][rows], whole[1][rows] = batch["label"], batch["image"]
        pipeline.close()
    images, labels = source.read_all()
    index = batch_indices(9, 4, 6, 10)
    np.testing.assert_array_equal(whole[0], labels[index])
    np.testing.assert_array_equal(whole[1], images[index])


@pytest.mark.parametrize("rows", [[], [2, 1], [1, 1], [-1, 0], [3, 4], [[0, 1]]])
def test_rows_outside_the_batch_are_refused(folder, rows):
    with pytest.raises(ValueError, match=r"rows must be a list of some of 0 \.\.\. 3"):
        make_pipeline(open_source("folder", folder), seed=0, batch_size=4, rows=np.array(rows, np.int64))


def test_auto_looks_at_the_size(folder):
    source = open_source("folder", folder)
    mebibytes = 10 * 6 * 6 * 3 / 2**20
    choose = lambda limit: make_pipeline(source, seed=0, batch_size=2, resident_max_mib=limit)  # noqa: E731
    assert choose(mebibytes * 1.01).mode == "resident"
    assert choose(mebibytes * 0.99).mode == "streamed"


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_image_surfaces_by_name(tmp_path, workers):
    write_class_folder(tmp_path, random_images(10, 16))
    source = open_source("folder", tmp_path)
    bad = tmp_path / "bee" / "0004.png"
    bad.write_bytes(bad.read_bytes()[:-100])
    pipeline = make_pipeline(source, seed=0, batch_size=2, mode="streamed", workers=workers)
    index = sorted(str(path) for path in tmp_path.rglob("*.png")).index(str(bad))
    step = next(step for step in range(5) if index in batch_indices(0, step, 2, 10))
    assert len(batches(pipeline, 0, [1] * step)) == step
    for _ in range(2):  # asking again fails again
        with pytest.raises(UserError, match=r"cannot read image .*bee/0004\.png"):
            pipeline.next(step, 1)
    assert len(batches(pipeline, (step + 1) % 5, [1])) == 1  # and other steps can still be read
    pipeline.close()
    with pytest.raises(UserError, match=r"cannot read image .*bee/0004\.png"):
        make_pipeline(source, seed=0, batch_size=2, mode="resident")


def test_unknown_modes_and_impossible_sizes_are_refused(folder):
    source = open_source("folder", folder)
    with pytest.raises(UserError, match="choose one of auto, resident, streamed"):
        make_pipeline(source, seed=0, batch_size=4, mode="stream")
    with pytest.raises(ValueError, match="batch_size=0"):
        make_pipeline(source, seed=0, batch_size=0)


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(folder):
    source = open_source("folder", folder)
    pipeline = make_pipeline(source, seed=5, batch_size=4, mode="streamed", workers=2, start_step=2)
    assert_batches_are(batches(pipeline, 2, [1, 3]), source, 5, range(2, 6), 4)
    assert_batches_are(batches(pipeline, 1, [2]), source, 5, range(1, 3), 4)
    pipeline.close()
