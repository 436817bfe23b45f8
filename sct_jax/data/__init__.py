"""Images and labels: random-access sources, the data order, and the two pipelines that feed training.

Importing this room is light (numpy only): JAX, Grain, tensorflow-datasets, scikit-learn and Pillow are
imported where they are used.
"""

from sct_jax.data.order import batch_indices
from sct_jax.data.pipeline import InputStalled, Pipeline, Watch, make_pipeline
from sct_jax.data.prepare import prepare
from sct_jax.data.shards import verify
from sct_jax.data.sources import list_splits, open_source
from sct_jax.data.spec import DataSpec, Source

__all__ = [
    "DataSpec",
    "InputStalled",
    "Pipeline",
    "Source",
    "Watch",
    "batch_indices",
    "list_splits",
    "make_pipeline",
    "open_source",
    "prepare",
    "verify",
]
