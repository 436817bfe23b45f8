"""How the rows of ``reference.source`` reach the train step: not at all, from the devices, or with each step's item."""

from typing import Any

import jax
import numpy as np

from sct_jax import objectives
from sct_jax.data import make_pipeline, references
from sct_jax.data.reading import Watch
from sct_jax.objectives.references import row_key
from sct_jax.training import mesh, step


def open_feed(made: Any, source: Any, start_step: int = 0, watch: Watch = Watch()) -> "ReferenceFeed":  # noqa: B008
    """The pipeline of ``config.data`` and the references, for this process's rows of the batch.

    ``made`` is an ``assembly.Assembly``.
    """
    config, data = made.config, made.config.data
    rows = None if jax.process_count() == 1 else mesh.local_rows(made.device_mesh, config.batch_size)
    pipeline = make_pipeline(
        source,
        seed=config.seed,
        batch_size=config.batch_size,
        mode=data.pipeline,
        resident_max_mib=data.resident_max_mib,
        workers=data.workers,
        prefetch=data.prefetch,
        start_step=start_step,
        rows=rows,
        watch=watch,
    )
    return ReferenceFeed(config, source, pipeline, made.device_mesh, rows)


class ReferenceFeed:
    """Joins the pipeline's batches with the references of the objective, and puts both on the mesh.

    Attributes:
      pipeline: the batches.
      arrays: what lies on the devices: the pipeline's arrays, and the store where it fits.
    """

    def __init__(self, config: Any, source: Any, pipeline: Any, device_mesh: Any, rows: np.ndarray | None = None):
        """``rows`` are those of the global batch that the pipeline gives this process; None: all."""
        self.pipeline, self._config = pipeline, config
        self._rows = np.arange(config.batch_size) if rows is None else rows
        self._masked = objectives.masks_classes(config)
        self._split = mesh.split_batch(device_mesh, axis=1)
        whole = mesh.replicated(device_mesh)
        self.arrays = {"pipeline": mesh.put(pipeline.arrays, whole), "references": {}}
        self._host: dict[str, np.ndarray] | None = None
        kind = config.reference.source if objectives.uses_references(config) else "batch"
        if kind == "dataset":
            self.arrays["references"] = self._split_data(source, device_mesh)
        elif kind == "bank":
            store = references.make_store(source)
            if store["image"].nbytes > config.reference.resident_max_mib * 2**20:
                self._host = store
            else:
                self.arrays["references"] = mesh.put(store, whole)

    @property
    def on_host(self) -> bool:
        """Whether the store lies in the host's memory and each step's rows are sent: one step a dispatch then."""
        return self._host is not None

    def items(self, at: int, count: int) -> Any:
        """The pipeline's items of the steps from ``at`` on the mesh, with the rows that a store on the host gives."""
        items = self.pipeline.next(at, count)
        if self._host is not None:
            labels = self.pipeline.arrays["label"][items["index"]] if "index" in items else items["label"]
            items = items | {"rows": np.stack([self._drawn(at + k, each) for k, each in enumerate(labels)])}
        if jax.process_count() == 1:
            return jax.device_put(items, self._split)
        size = self._config.batch_size
        return {name: mesh.put_rows(part, self._split, self._rows, size, axis=1) for name, part in items.items()}

    def _drawn(self, at: int, labels: np.ndarray) -> np.ndarray:
        """The rows of the bank for this process's rows of the batch of step ``at``."""
        reference, key = self._config.reference, row_key(step.draw_key(self._config.seed, at))
        return references.host_rows(
            key, self._host, labels, reference.size, self._masked, self._rows, self._config.batch_size
        )

    def fetch(self, arrays: Any, item: Any) -> dict[str, Any]:
        """One step's batch, inside the jitted step."""
        batch = self.pipeline.fetch(arrays["pipeline"], {k: v for k, v in item.items() if k != "rows"})
        rows = {"rows": item["rows"]} if "rows" in item else arrays["references"]
        return batch | {"references": rows}

    def _split_data(self, source: Any, device_mesh: Any) -> dict[str, jax.Array]:
        """All images, flat, and their labels or where their classes begin, split over all devices.

        Of several processes each reads its own part.
        """
        split, spec, devices = mesh.split_batch(device_mesh), source.spec, device_mesh.size
        gathered = references.by_class(spec, self._masked)
        flat = lambda images: images.reshape(len(images), -1)  # noqa: E731
        if jax.process_count() == 1:
            store = references.make_class_store(source, devices) if gathered else references.make_store(source, devices)
            name = "start" if gathered else "label"
            return jax.device_put({"image": flat(store["image"]), name: store[name]}, split)
        rows = -(-spec.num_examples // devices) * devices
        shape = (rows, spec.image_size**2 * spec.channels)
        if gathered:
            parts = references.ClassReader(source, devices)
            images = mesh.put_parts(shape, split, lambda *part: flat(parts.images(*part)))
            return {"image": images, "start": mesh.put_parts((devices, spec.num_classes + 1), split, parts.starts)}
        reader = references.RowReader(source)
        images = mesh.put_parts(shape, split, lambda *part: flat(reader.images(*part)))
        return {"image": images, "label": mesh.put_parts((rows,), split, reader.labels)}
