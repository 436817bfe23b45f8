"""Batches for training: resident on the device, or streamed by threads or Grain's processes. All give the same batches.

The training loop puts ``pipeline.arrays`` on the device once, hands ``pipeline.next(step, num_steps)`` to
each dispatch, and calls ``pipeline.fetch`` inside the jitted step to turn one step's item into a batch.

Of several processes each reads only its own rows of the global batch; the batch is the same for any number of them.
"""

import dataclasses
import functools
from typing import Any, Protocol

import numpy as np

from sct_jax.data.order import batch_indices
from sct_jax.data.reading import InputStalled, ReadAhead, Watch
from sct_jax.data.spec import DataSpec, Source
from sct_jax.errors import UserError

MODES = ("auto", "resident", "streamed")
Batch = dict[str, Any]


class Pipeline(Protocol):
    """A data set in the order of training.

    Attributes:
      spec: what the data is.
      mode: ``resident`` or ``streamed``.
      arrays: what the loop keeps on the device; empty for a streamed pipeline.
    """

    spec: DataSpec
    mode: str
    arrays: dict[str, np.ndarray]

    def next(self, step: int, num_steps: int) -> dict[str, np.ndarray]:
        """Returns the items of steps ``step ... step + num_steps - 1``, stacked along a leading axis.

        The second axis is that of this process's rows of the batch.
        """
        ...

    def fetch(self, arrays: Batch, item: Batch) -> Batch:
        """Turns one step's item into ``image``, ``[B, H, W, C]`` of ``spec.dtype``, and ``label``, int32 ``[B]``."""
        ...

    def close(self) -> None:
        """Stops threads and worker processes; a closed pipeline starts again when it is asked for more."""
        ...


class ResidentPipeline:
    """The whole data set as arrays; an item is ``{"index": int32 [K, rows]}`` and fetching gathers."""

    mode = "resident"

    def __init__(self, source: Source, order: "RowOrder"):
        self.spec = source.spec
        self._order = order
        images, labels = source.read_all()
        self.arrays = {"image": images, "label": labels}

    def next(self, step: int, num_steps: int) -> dict[str, np.ndarray]:
        order = [self._order(each) for each in range(step, step + num_steps)]
        return {"index": np.stack(order).astype(np.int32)}

    def fetch(self, arrays: Batch, item: Batch) -> Batch:
        import jax.numpy as jnp

        return {name: jnp.take(array, item["index"], axis=0, mode="clip") for name, array in arrays.items()}

    def close(self) -> None:
        pass


class StreamedPipeline:
    """Batches read ahead of their step; an item is the batches themselves."""

    mode = "streamed"

    def __init__(self, source: Source, order: "RowOrder", workers: int, prefetch: int, start_step: int, watch: Watch):
        self.spec = source.spec
        self.arrays: dict[str, np.ndarray] = {}
        self._start = functools.partial(ReadAhead, BatchReader(source, order), workers=workers, prefetch=prefetch)
        self._watch = watch
        self._step, self._taken = start_step, []
        self._ahead: ReadAhead | None = self._start(start_step)

    def next(self, step: int, num_steps: int) -> dict[str, np.ndarray]:
        if self._ahead is None or step != self._step:
            self.close()
            self._step, self._ahead = step, self._start(step)
        while len(self._taken) < num_steps:  # what was taken stays when the wait is broken off by the watch's poll
            try:
                batch = self._ahead.take(self._watch)
            except InputStalled:
                self.close()
                raise
            if "error" in batch:
                self.close()
                raise UserError(batch["error"].tobytes().decode())
            self._taken.append(batch)
        batches, self._taken = self._taken[:num_steps], self._taken[num_steps:]
        self._step += num_steps
        if num_steps == 1:
            return {name: array[None] for name, array in batches[0].items()}
        return {name: np.stack([batch[name] for batch in batches]) for name in ("image", "label")}

    def fetch(self, arrays: Batch, item: Batch) -> Batch:
        return {"image": item["image"], "label": item["label"]}

    def close(self) -> None:
        self._taken = []
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


@dataclasses.dataclass(frozen=True)
class RowOrder:
    """The examples of a step, int64 ``[len(rows)]``: those rows of the global batch (all when ``rows`` is None)."""

    seed: int
    batch_size: int
    num_examples: int
    rows: np.ndarray | None

    def __call__(self, step: int) -> np.ndarray:
        indices = batch_indices(self.seed, int(step), self.batch_size, self.num_examples)
        return indices if self.rows is None else indices[self.rows]


class BatchReader:
    """Reads the rows of a step. A UserError comes back as bytes under ``error``: so it crosses processes."""

    def __init__(self, source: Source, order: RowOrder):
        self._source, self._order = source, order

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        try:
            examples = [self._source[int(index)] for index in self._order(step)]
        except UserError as error:
            return {"error": np.frombuffer(str(error).encode(), np.uint8)}
        images, labels = zip(*examples, strict=True)
        return {"image": np.stack(images), "label": np.array(labels, np.int32)}


def make_pipeline(
    source: Source,
    *,
    seed: int,
    batch_size: int,
    mode: str = "auto",
    resident_max_mib: float = 2048,
    workers: int = 0,
    prefetch: int = 2,
    start_step: int = 0,
    rows: np.ndarray | None = None,
    watch: Watch = Watch(),  # noqa: B008 - it cannot be changed
) -> Pipeline:
    """Makes the pipeline that feeds training.

    Args:
      source: the data.
      seed: together with the step, decides every batch (see ``batch_indices``).
      batch_size: the global batch size.
      mode: ``resident``, ``streamed``, or ``auto``: resident if the images take at most ``resident_max_mib``.
      resident_max_mib: MiB of images, as they are stored, that ``auto`` will keep on the device.
      workers: streamed only: processes that read; 0 reads in threads of this one. With workers the program
        needs the usual ``if __name__ == "__main__"`` guard.
      prefetch: streamed only: batches read ahead (in each process), each by its own thread; 0 for none.
      start_step: streamed only: the first step that will be asked for.
      rows: int ``[R]``, the rows of the global batch that this process needs (those of its devices, ascending); items
        hold these only, and no others are read. None: all.
      watch: streamed only: what happens while ``next`` waits: reports, the end of patience, and a way out. ``next``
        raises InputStalled when the data does not come, or a process that reads it died.
    """
    if mode not in MODES:
        raise UserError(f"unknown data mode {mode!r}: choose one of {', '.join(MODES)}")
    if batch_size < 1 or workers < 0 or prefetch < 0 or start_step < 0:
        raise ValueError(f"out of range: {batch_size=}, {workers=}, {prefetch=}, {start_step=}")
    spec = source.spec
    order = RowOrder(seed, batch_size, spec.num_examples, _checked_rows(rows, batch_size))
    if is_resident(spec, mode, resident_max_mib):
        return ResidentPipeline(source, order)
    return StreamedPipeline(source, order, workers, prefetch, start_step, watch)


def is_resident(spec: DataSpec, mode: str, resident_max_mib: float) -> bool:
    """Whether training keeps a data set on the device; see ``make_pipeline``."""
    return mode == "resident" or (mode == "auto" and spec.image_bytes <= resident_max_mib * 2**20)


def _checked_rows(rows: np.ndarray | None, batch_size: int) -> np.ndarray | None:
    if rows is None:
        return None
    rows = np.asarray(rows)
    if rows.ndim != 1 or not rows.size or rows[0] < 0 or rows[-1] >= batch_size or (np.diff(rows) <= 0).any():
        raise ValueError(f"rows must be a list of some of 0 ... {batch_size - 1}, ascending, each once: {rows}")
    return rows
