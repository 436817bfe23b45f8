"""Stable Consistency Tuning and the consistency-model family in JAX.

``load`` and ``Model`` are the Python interface; they are imported on first use, so ``import sct_jax`` costs nothing.
"""

from typing import TYPE_CHECKING, Any

from sct_jax.version import __version__

if TYPE_CHECKING:
    from sct_jax.model import Model, load

__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in ("load", "Model"):
        from sct_jax import model

        return getattr(model, name)
    raise AttributeError(f"module 'sct_jax' has no attribute {name!r}")
