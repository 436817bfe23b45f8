"""Whether the arrays of a file are those that a network of known shapes has."""

from collections.abc import Mapping

import numpy as np

from sct_jax.errors import UserError
from sct_jax.interop.diagnosis import list_names, list_shapes


def check(arrays: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises a UserError, one line, unless ``arrays`` are just those ``wanted``, in name and shape, and finite."""
    missing = [name for name in wanted if name not in arrays]
    extra = sorted(arrays.keys() - wanted.keys())
    shared = [name for name in wanted if name in arrays]
    wrong = [(name, arrays[name].shape, wanted[name]) for name in shared if arrays[name].shape != wanted[name]]
    found = [list_names("missing", missing), list_names("too many", extra), list_shapes(wrong)]
    if any(found):
        raise UserError(f"the weights are incomplete or another network's: {', '.join(filter(None, found))}")
    for name in shared:
        if not np.isfinite(arrays[name]).all():
            raise UserError(f"the weights {name} are not finite: the file is damaged")
