"""Our own names and layouts: of networks that no other project has, and of the weights beside an exported sampler."""

from typing import Any

from sct_jax.interop.names import AS_IS, Array, Entry
from sct_jax.trees import leaves


def entries(model: Any, spec: Any, shapes: Any) -> list[Entry]:
    """The table for any network; shapes: nested dict of the shapes of our parameters."""
    return [Entry(path, ".".join(path), AS_IS) for path, _ in leaves(shapes)]


def constants(model: Any, spec: Any) -> dict[str, Array]:
    """There are none."""
    return {}
