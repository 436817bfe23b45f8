"""Other projects' weights, in and out: names and layouts of their parameters, their files, without their code."""

from sct_jax.interop.imports import import_model, import_to
from sct_jax.interop.read import Imported, read

__all__ = ["Imported", "import_model", "import_to", "read"]
