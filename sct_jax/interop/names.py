"""Names and layouts of another project's parameters, as a table that is read in both directions.

A table is a list of :class:`Entry`, one for each parameter of ours: where it lies in our tree, what the original calls
it, how the array changes. Numpy in, numpy out: PyTorch is not needed. PyTorch's convolutions are OIHW, its matrices
[out, in]; ours are HWIO and [in, out].
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sct_jax.errors import UserError
from sct_jax.interop.diagnosis import explain
from sct_jax.trees import Path, leaves

Array = np.ndarray
StateDict = Mapping[str, Array]
# What wrappers put before every name: a preconditioner (NVIDIA), a trainer, data parallelism.
PREFIXES = ("module.", "model.", "net.")
MOST_PREFIXES = 8
LARGEST_STAND_IN = 1 << 24


class Layout(NamedTuple):
    """How an array changes on its way in and on its way out; each undoes the other exactly."""

    to_ours: Callable[[Array], Array]
    to_original: Callable[[Array], Array]

    def then(self, after: "Layout") -> "Layout":
        """This layout first on the way in, `after` second (and the other way round on the way out)."""
        return Layout(
            lambda array: after.to_ours(self.to_ours(array)),
            lambda array: self.to_original(after.to_original(array)),
        )


class Entry(NamedTuple):
    """One parameter: our path in the tree, the original's name, the change of layout."""

    path: Path
    name: str
    layout: Layout


AS_IS = Layout(lambda array: array, lambda array: array)
LINEAR = Layout(np.transpose, np.transpose)
CONV = Layout(lambda w: w.transpose(2, 3, 1, 0), lambda w: w.transpose(3, 2, 0, 1))


def pointwise(spatial: int = 2) -> Layout:
    """A convolution of one tap over `spatial` axes [out, in, 1, …] that is a linear map [in, out] here."""
    ones = (1,) * spatial
    return Layout(lambda w: w.reshape(w.shape[:2]).T, lambda w: w.T.reshape(*w.T.shape, *ones))


def interleaved_qkv() -> Layout:
    """q, k, v innermost (NVIDIA): output channel 3 c + j there, j C + c here, whatever the number of heads."""
    return Layout(
        lambda array: array.reshape(-1, 3, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape),
        lambda array: array.reshape(3, -1, *array.shape[1:]).swapaxes(0, 1).reshape(array.shape),
    )


def import_params(
    entries: Sequence[Entry],
    state_dict: StateDict,
    shapes: Any = None,
    constants: StateDict | None = None,
    strict: bool = True,
) -> tuple[dict, list[str], list[str]]:
    """The original's arrays as our nested dict, float32, with the names it lacks and the names it has too many.

    Args:
      entries: the table.
      state_dict: arrays by the original's names; a prefix that all names share is removed (see PREFIXES).
      shapes: nested dict of our shapes, what the arrays must have; None: not checked.
      constants: buffers of the original that are no parameters; where they are given they must have these values.
      strict: missing and extra names are errors.

    Raises:
      UserError: a name is missing or too many (`strict`), an array has another shape or a constant another value.
    """
    arrays = without_prefix(state_dict)
    constants = constants or {}
    missing = [entry.name for entry in entries if entry.name not in arrays]
    extra = sorted(arrays.keys() - {entry.name for entry in entries} - constants.keys())
    wrong, params = [], {}
    for path, name, layout in entries:
        if name not in arrays:
            continue
        expected = None if shapes is None else tuple(_at(shapes, path))
        value = _converted(layout, np.asarray(arrays[name], np.float32), expected)
        if value is None:
            shape = None if wrong else _original_shape(layout, expected)  # the first one is shown
            wrong.append((name, np.shape(arrays[name]), shape))
        else:
            _put(params, path, value)
    if wrong or (strict and (missing or extra)):
        raise UserError(explain(missing, extra, wrong, list(arrays)))
    for name, value in constants.items():
        if name in arrays and not np.allclose(arrays[name], value, rtol=1e-5, atol=1e-7):
            raise UserError(f"the weights do not fit the config: {name} has other values (model.resample_filter?)")
    return params, missing, extra


def export_state_dict(
    entries: Sequence[Entry], params: Any, constants: StateDict | None = None, prefix: str = ""
) -> dict[str, Array]:
    """Our parameters under the original's names and in its layouts, with its `constants`: its exact state_dict.

    KeyError when the tree lacks a parameter of the table, ValueError when it has one that the table lacks.
    """
    unnamed = {path for path, _ in leaves(params)} - {entry.path for entry in entries}
    if unnamed:
        raise ValueError(f"no name for {'.'.join(min(unnamed))} ({len(unnamed)} parameters are not in the table)")
    arrays = {}
    for path, name, layout in entries:
        value = layout.to_original(np.asarray(_at(params, path), np.float32))
        arrays[prefix + name] = np.array(value, order="C")
    return arrays | {prefix + name: np.asarray(value, np.float32) for name, value in (constants or {}).items()}


def without_prefix(state_dict: StateDict) -> dict[str, Array]:
    """The same arrays without the prefixes (of PREFIXES, one after the other) that all names start with."""
    arrays = dict(state_dict)
    for _ in range(MOST_PREFIXES):
        found = [prefix for prefix in PREFIXES if arrays and all(name.startswith(prefix) for name in arrays)]
        if not found:
            break
        arrays = {name.removeprefix(found[0]): value for name, value in arrays.items()}
    return arrays


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def _put(tree: dict, path: Path, value: Array) -> None:
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = value


def _converted(layout: Layout, array: Array, expected: tuple[int, ...] | None) -> Array | None:
    """The array in our layout; None where that is impossible or not of the `expected` shape."""
    try:
        value = np.array(layout.to_ours(array), order="C")
    except (ValueError, IndexError):
        return None
    return value if expected is None or value.shape == expected else None


def _original_shape(layout: Layout, expected: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The shape that the original's array should have had; None when it is not worth a stand-in of that size."""
    if expected is None or math.prod(expected) > LARGEST_STAND_IN:
        return None
    return layout.to_original(np.broadcast_to(np.float32(0), expected)).shape
