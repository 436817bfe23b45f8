"""Our own names and layouts: of networks that no other project has, and of the weights beside an exported sampler.

A parameter's name is its path in our tree, joined by dots.
"""

from typing import Any

import numpy as np

from sct_jax import trees
from sct_jax.interop.names import AS_IS, Array, Entry


def entries(model: Any, spec: Any, shapes: Any) -> list[Entry]:
    """The table for any network; shapes: nested dict of the shapes of our parameters."""
    return [Entry(path, ".".join(path), AS_IS) for path, _ in trees.leaves(shapes)]


def constants(model: Any, spec: Any) -> dict[str, Array]:
    """There are none."""
    return {}


def state_dict(params: Any) -> dict[str, Array]:
    """``{"blocks.0.first.weight": ...}``."""
    return {name: np.asarray(leaf) for name, leaf in trees.flat(params).items()}
