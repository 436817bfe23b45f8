"""Shards: the files of a prepared data set, each written whole or not at all and known by its SHA-256."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sct_jax import files
from sct_jax.data import png
from sct_jax.data.spec import Source
from sct_jax.errors import UserError

MANIFEST = "manifest.json"
PROGRESS = "progress"  # folder of the records of finished shards, while the others are written
_OPTIONS = "group_size:1,uncompressed"  # random access, one record at a time


@dataclasses.dataclass(frozen=True)
class Task:
    """What one process needs to write one shard.

    Attributes:
      folder: where shards go.
      file: the shard's name.
      source: its examples.
      labelled: whether they have labels.
      compress: whether to compress the pixels.
      skip_damaged: whether to leave out images that cannot be read.
    """

    folder: Path
    file: str
    source: Source
    labelled: bool
    compress: bool
    skip_damaged: bool


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished shard: its file, examples, bytes, SHA-256, and the complaints about images that were left out."""

    file: str
    examples: int
    bytes: int
    sha256: str
    skipped: tuple[str, ...] = ()
    found: bool = dataclasses.field(default=False, compare=False)  # written by an earlier run

    def as_json(self) -> dict[str, Any]:
        """Returns its line of the manifest."""
        fields = {name: value for name, value in dataclasses.asdict(self).items() if name != "found"}
        return fields | {"skipped": list(self.skipped)}


def shard_name(dataset: str, split: str, number: int, count: int) -> str:
    """Returns the name that tensorflow-datasets gives to shard ``number`` of ``count``."""
    return f"{dataset}-{split}.array_record-{number:05d}-of-{count:05d}"


def finish(task: Task) -> Shard:
    """Writes a shard, unless it is there already and is what it was when it was written.

    Raises:
      UserError: an image is damaged and shall not be skipped, or all are.
      OSError, RuntimeError: the shard cannot be written.
    """
    record = task.folder / PROGRESS / f"{task.file}.json"
    path = task.folder / task.file
    try:
        found = from_json(json.loads(record.read_text(encoding="utf-8")))
        if path.stat().st_size == found.bytes and files.sha256(path) == found.sha256:
            return dataclasses.replace(found, found=True)
    except (OSError, ValueError, TypeError, KeyError):
        pass  # not finished, or damaged since
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        examples, skipped = _write(task, aside)
        if not examples:
            raise UserError(f"no image of {task.file} can be read: {skipped[0]}")
        shard = Shard(task.file, examples, aside.stat().st_size, files.sha256(aside), tuple(skipped))
        record.parent.mkdir(exist_ok=True)
        files.write_text(record, json.dumps(shard.as_json()))
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return shard


def from_json(fields: dict[str, Any]) -> Shard:
    """Reads a line of the manifest."""
    return Shard(**{**fields, "skipped": tuple(fields["skipped"])})


def _write(task: Task, path: Path) -> tuple[int, list[str]]:
    from array_record.python import array_record_module

    skipped: list[str] = []
    writer = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
    try:
        for index in range(len(task.source)):
            try:
                image, label = task.source[index]
            except UserError as error:
                if not task.skip_damaged:
                    raise
                skipped.append(str(error))
                continue
            writer.write(_example(png.encode(image, task.compress), label if task.labelled else None))
    finally:
        writer.close()
    return len(task.source) - len(skipped), skipped


def _example(image: bytes, label: int | None) -> bytes:
    """Returns a ``tf.train.Example``, as tensorflow-datasets stores one."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    example.features.feature["image"].bytes_list.value.append(image)
    if label is not None:
        example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString(deterministic=True)


def write_manifest(folder: Path, plan: dict[str, Any], shards: Sequence[Shard], others: Sequence[str]) -> None:
    """Writes what was made from what: the plan, and size and SHA-256 of every shard and other file."""
    more = {name: files.sha256(folder / name) for name in others}
    manifest = {"plan": plan, "shards": [shard.as_json() for shard in shards], "files": more}
    files.write_json(folder / MANIFEST, manifest)


def verify(folder: str | Path) -> str:
    """Compares a prepared data set with its manifest, byte by byte, and says what it holds.

    Raises:
      UserError: naming the first file that is missing or not what was written, and how many more there are.
    """
    from concurrent.futures import ThreadPoolExecutor

    folder = Path(folder).expanduser()
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        shards = [from_json(fields) for fields in manifest["shards"]]
        expected = {shard.file: shard.sha256 for shard in shards} | manifest["files"]
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {MANIFEST}: it was not written, or not to the end, by prepare") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"cannot read {folder / MANIFEST}: {error}; prepare the data set again") from error

    def complaint(name: str) -> str:
        try:
            return "" if files.sha256(folder / name) == expected[name] else f"{name} is not what was written"
        except OSError as error:
            return f"{name} cannot be read: {error.strerror}"

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        complaints = [line for line in pool.map(complaint, expected) if line]
    if complaints:
        more = f" (and {len(complaints) - 1} more files)" if len(complaints) > 1 else ""
        raise UserError(f"{folder} is damaged: {complaints[0]}{more}; prepare it again or copy them again")
    examples, skipped = sum(shard.examples for shard in shards), sum(len(shard.skipped) for shard in shards)
    without = f", {skipped:,} damaged ones left out" if skipped else ""
    return f"{folder}: {examples:,} images in {len(shards):,} shards{without}, every byte as it was written"
