"""How the rows of ``reference.source`` reach the train step: not at all, from the device, or with each step's item."""

from typing import Any

import jax
import numpy as np

from sct_jax import objectives
from sct_jax.data import references
from sct_jax.objectives.references import row_key
from sct_jax.training import mesh, step


class ReferenceFeed:
    """Joins the pipeline's batches with the references of the objective.

    Attributes:
      arrays: what lies on the device: the pipeline's arrays, and the store where it fits.
    """

    def __init__(self, config: Any, source: Any, pipeline: Any, device_mesh: Any):
        self._pipeline, self._config = pipeline, config
        self._masked = objectives.masks_classes(config)
        whole = mesh.replicated(device_mesh)
        self.arrays = {"pipeline": jax.device_put(pipeline.arrays, whole), "references": {}}
        self._host: dict[str, np.ndarray] | None = None
        kind = config.reference.source if objectives.uses_references(config) else "batch"
        if kind == "dataset":
            store = references.make_store(source, shards=device_mesh.size)
            rows = {name: store[name] for name in ("image", "label")}
            self.arrays["references"] = jax.device_put(rows, mesh.split_batch(device_mesh))
        elif kind == "bank":
            store = references.make_store(source)
            if store["image"].nbytes > config.reference.resident_max_mib * 2**20:
                self._host = store
            else:
                self.arrays["references"] = jax.device_put(store, whole)

    @property
    def on_host(self) -> bool:
        """Whether the store lies in the host's memory and each step's rows are sent: one step a dispatch then."""
        return self._host is not None

    def complete(self, at: int, items: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Adds to the items of the steps from ``at`` the rows that a store in the host's memory gives them."""
        if self._host is None:
            return items
        labels = self._pipeline.arrays["label"][items["index"]] if "index" in items else items["label"]
        rows = [
            references.host_rows(
                row_key(step.draw_key(self._config.seed, at + index)),
                self._host,
                labels_of_step,
                self._config.reference.size,
                self._masked,
            )
            for index, labels_of_step in enumerate(labels)
        ]
        return items | {"rows": np.stack(rows)}

    def fetch(self, arrays: Any, item: Any) -> dict[str, Any]:
        """One step's batch, inside the jitted step."""
        batch = self._pipeline.fetch(arrays["pipeline"], {k: v for k, v in item.items() if k != "rows"})
        rows = {"rows": item["rows"]} if "rows" in item else arrays["references"]
        return batch | {"references": rows}
