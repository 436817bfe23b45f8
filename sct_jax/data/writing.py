"""A prepared data set, written shard by shard in parallel; killed at any moment, it is gone on with.

Shards go into a hidden folder beside the target, which takes the target's name when all is there. What has been begun
is noted first: an unfinished data set is gone on with only from the same source with the same arguments.
"""

import contextlib
import errno
import io
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from sct_jax import files
from sct_jax.data import shards
from sct_jax.data.reading import start_worker
from sct_jax.data.spec import DataSpec, Source
from sct_jax.data.tfds_source import INFO_FILE
from sct_jax.errors import UserError

DATASET = "images"
PLAN = "plan.json"
REPORT_SECONDS = 10.0


def write(
    sources: dict[str, Source], target: Path, plan: dict[str, Any], *, shard_size: int, workers: int, skip_damaged: bool
) -> None:
    """Writes the splits to ``target``.

    Args:
      sources: by name of split; each with ``part`` and ``fingerprint``.
      target: the folder to make; there may be an empty one.
      plan: everything that decides what is written, as JSON.
      shard_size: images a shard.
      workers: processes.
      skip_damaged: whether to leave out images that cannot be read.

    Raises:
      UserError: what cannot be read or written, or another plan than that of what has been begun.
    """
    aside = target.absolute().with_name(f".{target.name}-incomplete")
    counts = {name: -(-len(source) // shard_size) for name, source in sources.items()}
    if sum(map(len, sources.values())) <= shard_size:  # sooner done than processes have started
        workers = 1
    tasks = _tasks(sources, counts, aside, shard_size, plan["arguments"]["compress"], skip_damaged)
    try:
        with _held(aside):
            _check_plan(aside, plan)
            try:
                finished = _finish_all(tasks, sum(counts.values()), workers)
                _describe(aside, sources, counts, finished, plan)
            except BaseException:
                if not _finished(aside):
                    shutil.rmtree(aside, ignore_errors=True)
                raise
            os.replace(aside, target)  # takes the place of an empty folder
    except BrokenProcessPool as error:
        reason = "a worker process died (out of memory: give fewer workers? a program without a __main__ guard?)"
        raise UserError(f"cannot write {target}: {reason}; {_left(aside, counts)}") from error
    except (OSError, RuntimeError) as error:  # array_record reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot write {target}: {reason}; {_left(aside, counts)}") from error
    shutil.rmtree(target / shards.PROGRESS, ignore_errors=True)
    (target / PLAN).unlink(missing_ok=True)


@contextlib.contextmanager
def _held(aside: Path) -> Iterator[None]:
    """Makes the folder and keeps others from writing it, as long as this process lives."""
    import fcntl

    aside.mkdir(parents=True, exist_ok=True)
    folder = os.open(aside, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # some network file systems cannot lock a folder
            if error.errno == errno.EWOULDBLOCK:
                raise UserError(f"{aside} is being written by another process: wait for it") from error
        yield
    finally:
        os.close(folder)


def _check_plan(aside: Path, plan: dict[str, Any]) -> None:
    """Notes the plan, or compares it with the one noted, and removes what a kill left half-written."""
    noted = aside / PLAN
    before = None
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(noted.read_text(encoding="utf-8"))
    if _finished(aside) and before != plan:
        change = _change(before, plan) if isinstance(before, dict) else f"its {PLAN} cannot be read"
        raise UserError(f"{aside} was begun otherwise ({change}): give what it was begun with, or remove it")
    for left in (*aside.glob(".[0-9]*-*"), *(aside / shards.PROGRESS).glob(".[0-9]*-*")):
        left.unlink(missing_ok=True)
    files.write_text(noted, json.dumps(plan))


def _change(before: dict[str, Any], plan: dict[str, Any]) -> str:
    """Says what differs between two plans."""
    flat = [
        {**plan.get("arguments", {}), **{k: v for k, v in plan.items() if k != "arguments"}} for plan in (before, plan)
    ]
    for name in flat[1]:
        if flat[0].get(name) != flat[1][name]:
            if name == "source":
                return "the source has changed since"
            return f"{name} was {flat[0].get(name)!r}, now {flat[1][name]!r}"
    return "by another version"


def _tasks(
    sources: dict[str, Any], counts: dict[str, int], aside: Path, shard_size: int, compress: bool, skip_damaged: bool
) -> Iterator[shards.Task]:
    for split, source in sources.items():
        for number in range(counts[split]):
            part = source.part(number * shard_size, min((number + 1) * shard_size, len(source)))
            name = shards.shard_name(DATASET, split, number, counts[split])
            yield shards.Task(aside, name, part, bool(source.spec.num_classes), compress, skip_damaged)


def _finish_all(tasks: Iterator[shards.Task], count: int, workers: int) -> dict[str, shards.Shard]:
    """Returns the finished shards by name."""
    report = _Report(count)
    if min(workers, count) <= 1:
        return {shard.file: shard for shard in map(report, map(shards.finish, tasks))}
    before = set(multiprocessing.active_children())
    finished: dict[str, shards.Shard] = {}
    waiting: set[Future[shards.Shard]] = set()
    pool = ProcessPoolExecutor(min(workers, count), multiprocessing.get_context("spawn"), start_worker)
    try:
        for task in tasks:
            waiting.add(pool.submit(shards.finish, task))
            if len(waiting) > 2 * workers:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                finished |= {shard.file: shard for shard in map(report, (each.result() for each in done))}
        for each in waiting:
            shard = report(each.result())
            finished[shard.file] = shard
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return finished


class _Report:
    """Says on stderr how far the work is, now and then."""

    def __init__(self, count: int):
        self.count, self.done, self.images, self.found = count, 0, 0, 0
        self.began = self.last = time.monotonic()

    def __call__(self, shard: shards.Shard) -> shards.Shard:
        """Counts one more."""
        self.done += 1
        self.found += shard.found
        self.images += 0 if shard.found else shard.examples
        now = time.monotonic()
        if self.count > 1 and (now - self.last > REPORT_SECONDS or self.done == self.count):
            self.last, rate = now, self.images / max(now - self.began, 1e-3)
            before = f" ({self.found:,} found finished)" if self.found else ""
            left = (self.count - self.done) * (now - self.began) / max(self.done - self.found, 1) / 60
            end = f", {left:.0f} min left" if self.done < self.count else ""
            print(
                f"{self.done:,}/{self.count:,} shards{before}, {rate:,.0f} images/s{end}", file=sys.stderr, flush=True
            )
        return shard


def _describe(
    aside: Path, sources: dict[str, Source], counts: dict[str, int], finished: dict[str, shards.Shard], plan: dict
) -> None:
    """Writes what tensorflow-datasets needs to know, and the manifest."""
    import tensorflow_datasets as tfds

    by_split = {
        split: [finished[shards.shard_name(DATASET, split, number, count)] for number in range(count)]
        for split, count in counts.items()
    }
    if skipped := sum(len(shard.skipped) for shard in finished.values()):
        print(f"{skipped:,} damaged images left out; {shards.MANIFEST} names them", file=sys.stderr)
    infos = [
        tfds.core.SplitInfo(
            name=split,
            shard_lengths=[shard.examples for shard in part],
            num_bytes=sum(shard.bytes for shard in part),
        )
        for split, part in by_split.items()
    ]
    spec = max((source.spec for source in sources.values()), key=lambda spec: spec.num_classes)
    with contextlib.redirect_stdout(io.StringIO()):
        tfds.folder_dataset.write_metadata(
            data_dir=aside,
            features=_features(spec),
            split_infos=infos,
            version="1.0.0",
            check_data=False,
            description="Square 8-bit images, in the order of their source.",
            disable_shuffling=True,
        )
    in_order = [shard for part in by_split.values() for shard in part]
    shards.write_manifest(aside, plan, in_order, [INFO_FILE, "features.json"])


def _features(spec: DataSpec) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    shape = (spec.image_size, spec.image_size, spec.channels)
    features: dict[str, Any] = {"image": tfds.features.Image(shape=shape, encoding_format="png")}
    if spec.num_classes:
        names = list(spec.class_names) or None
        features["label"] = tfds.features.ClassLabel(names=names, num_classes=None if names else spec.num_classes)
    return features


def _finished(aside: Path) -> int:
    return len(list((aside / shards.PROGRESS).glob("[!.]*.json")))


def _left(aside: Path, counts: dict[str, int]) -> str:
    if finished := _finished(aside):
        return f"{finished} of {sum(counts.values())} shards are finished: the same command goes on with the others"
    return "nothing was left there"
