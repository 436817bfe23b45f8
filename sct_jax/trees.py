"""Nested dicts of arrays as flat ones, whose names are the paths joined by dots, and back."""

from collections.abc import Iterator, Mapping
from typing import Any

Path = tuple[str, ...]


def leaves(tree: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """(path, leaf) of a nested dict, in its order; a leaf is whatever is not a dict (an array, a shape)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def flat(tree: Any) -> dict[str, Any]:
    """``{"blocks.0.first.weight": ...}``."""
    return {".".join(path): leaf for path, leaf in leaves(tree)}


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The tree whose :func:`flat` this is."""
    tree: dict[str, Any] = {}
    for name, value in arrays.items():
        *path, leaf = name.split(".")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[leaf] = value
    return tree
