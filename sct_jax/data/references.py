"""The reference rows of the posterior mean: a data set sorted by class, and rows drawn from it for each query.

A store is a dictionary of numpy arrays, which the caller may put on the device:

- ``image`` ``[N + padding, H, W, C]``, uint8 (or float32, taken as it is) and ``label``, int32 ``[N + padding]``;
- ``order``, int32 ``[N]``: the examples sorted by class; ``start``, int32 ``[classes + 1]``: where each class begins in
  it. Padding is in neither.

A class store, for queries that see all rows of their class, holds ``image`` ``[shards * n, H, W, C]``, the parts of the
devices one after another, each sorted by class, and ``start``, int32 ``[shards, classes + 1]``: where each class begins
within a part. Row ``i`` of the data is in part ``i % shards``: data in the order of their classes, or in none, are
spread evenly.
"""

from typing import Any

import numpy as np

from sct_jax.data.spec import DataSpec, Source

Store = dict[str, np.ndarray]
GATHERED_CLASSES = 32  # see by_class
HIDDEN = -2  # as diffusion.score has it: the label of padding, which no query may see


def make_store(source: Source, shards: int = 1) -> Store:
    """Reads a whole source. Zeros labelled ``HIDDEN`` fill it up to a multiple of ``shards``, to be split evenly."""
    images, labels = source.read_all()
    labels = np.asarray(labels, np.int32)
    counts = np.bincount(labels, minlength=max(1, source.spec.num_classes))
    store = {
        "image": images,
        "label": labels,
        "order": np.argsort(labels, kind="stable").astype(np.int32),
        "start": np.concatenate([[0], np.cumsum(counts)]).astype(np.int32),
    }
    padding = -len(images) % shards
    if padding:
        store["image"] = np.concatenate([images, np.zeros((padding, *images.shape[1:]), images.dtype)])
        store["label"] = np.concatenate([labels, np.full(padding, HIDDEN, np.int32)])
    return store


def by_class(spec: DataSpec, same_class: bool) -> bool:
    """Whether all rows of a query's class are gathered (a class store), rather than all rows weighed under a mask.

    Masking costs 10 operations of a matrix unit for each row and pixel of all classes, gathering the reading of a byte
    and about 8 operations of a vector unit for each of one class. By the published peaks of a v5e (197 TFLOP/s, 819
    GB/s) and an H100 (989 TFLOP/s, 3.35 TB/s, 67 TFLOP/s) these are alike at 25 to 45 classes.
    """
    return same_class and spec.num_classes >= GATHERED_CLASSES


def make_class_store(source: Source, shards: int = 1) -> Store:
    """Reads a whole source into a class store."""
    images, labels = source.read_all()
    labels, most = np.asarray(labels, np.int32), -(-len(images) // shards)
    store = {
        "image": np.zeros((shards * most, *images.shape[1:]), images.dtype),
        "start": np.zeros((shards, source.spec.num_classes + 1), np.int32),
    }
    for shard in range(shards):
        chosen = np.arange(shard, len(images), shards)
        order, store["start"][shard] = _sorted(labels[chosen], source.spec.num_classes)
        store["image"][shard * most : shard * most + len(chosen)] = images[chosen[order]]
    return store


def _sorted(labels: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """What sorts labels, and where each class begins then."""
    counts = np.bincount(labels, minlength=classes)
    return np.argsort(labels, kind="stable"), np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def draw_rows(key: Any, store: Any, labels: Any, size: int, same_class: bool) -> Any:
    """Draws ``size`` rows for each query, independent and uniform over its class or (``same_class`` off) over all.

    Pure JAX, with the same result on every device and under ``jit``.

    Args:
      key: a JAX random key.
      store: ``order`` and ``start`` of a store.
      labels: the queries' classes, int ``[B]``.

    Returns:
      Indices into ``image``, int32 ``[B, size]``.

    Raises:
      ValueError: for a label without examples, unless it is traced.
    """
    import jax
    import jax.numpy as jnp

    order, start = jnp.asarray(store["order"]), jnp.asarray(store["start"])
    labels = jnp.asarray(labels)
    if same_class:
        _check_labels(labels, start)
        low, high = start[labels], start[labels + 1]
    else:
        low, high = jnp.zeros_like(labels), jnp.full_like(labels, len(order))
    place = jax.random.randint(key, (len(labels), size), low[:, None], high[:, None])
    return order[place]


def host_rows(
    key: Any,
    store: Store,
    labels: np.ndarray,
    size: int,
    same_class: bool,
    rows: np.ndarray | None = None,
    batch_size: int = 0,
) -> np.ndarray:
    """The images of :func:`draw_rows`, ``[B, size, H, W, C]``, gathered in the host's memory.

    With ``rows`` the ``labels`` are only those of these rows of a batch of ``batch_size``, and so are the images: what
    is drawn for a row does not depend on who asks for it.
    """
    import jax

    if rows is not None:
        of_all = np.full(batch_size, labels[0], np.int32)
        of_all[rows] = labels
        labels = of_all
    try:
        host = jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # the CPU was left out of JAX_PLATFORMS: any device draws the same
        host = jax.local_devices()[0]
    with jax.default_device(host):
        index = np.asarray(draw_rows(jax.device_put(key, host), store, labels, size, same_class))
    return store["image"][index if rows is None else index[rows]]


class ClassReader:
    """Reads the parts of a class store one by one, as :func:`make_class_store` makes them."""

    def __init__(self, source: Source, shards: int):
        self._source, self._shards = source, shards
        self._start: dict[int, np.ndarray] = {}

    def images(self, start: int, stop: int) -> np.ndarray:
        """``[stop − start, H, W, C]``, exactly one part; where its classes begin is kept."""
        spec, shard = self._source.spec, start // (stop - start)
        chosen = range(shard, len(self._source), self._shards)
        images = np.zeros((stop - start, spec.image_size, spec.image_size, spec.channels), spec.dtype)
        labels = np.zeros(len(chosen), np.int32)
        for place, row in enumerate(chosen):
            images[place], labels[place] = self._source[row]
        order, self._start[shard] = _sorted(labels, spec.num_classes)
        images[: len(chosen)] = images[order]
        return images

    def starts(self, start: int, stop: int) -> np.ndarray:
        """int32 ``[stop − start, classes + 1]``, of parts whose images were read."""
        return np.stack([self._start[shard] for shard in range(start, stop)])


class RowReader:
    """Reads ranges of a source's examples; past its end are zeros labelled ``HIDDEN``."""

    def __init__(self, source: Source):
        self._source = source
        self._labels: dict[tuple[int, int], np.ndarray] = {}

    def images(self, start: int, stop: int) -> np.ndarray:
        """``[stop − start, H, W, C]``; the labels that come with them are kept."""
        spec = self._source.spec
        images = np.zeros((stop - start, spec.image_size, spec.image_size, spec.channels), spec.dtype)
        labels = np.full(stop - start, HIDDEN, np.int32)
        for row in range(start, min(stop, len(self._source))):
            images[row - start], labels[row - start] = self._source[row]
        self._labels[start, stop] = labels
        return images

    def labels(self, start: int, stop: int) -> np.ndarray:
        """int32 ``[stop − start]``, of a range whose images were read."""
        return self._labels[start, stop]


def _check_labels(labels: Any, start: Any) -> None:
    import jax

    if isinstance(labels, jax.core.Tracer) or isinstance(start, jax.core.Tracer):
        return
    labels, counts = np.asarray(labels), np.diff(np.asarray(start))
    known = (labels >= 0) & (labels < len(counts))
    lacking = labels[~known | (counts[np.clip(labels, 0, len(counts) - 1)] == 0)]
    if lacking.size:
        raise ValueError(f"there are no examples of the classes {np.unique(lacking).tolist()}")
