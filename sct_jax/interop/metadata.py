"""What our own safetensors say of their model: written by export, read back as the untrusted text that it is."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from sct_jax import config as config_lib
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.interop.allowed import quoted
from sct_jax.schema import SCHEMA

ROOMS = ("model", "objective", "sampling")
PLACES = ("teacher", "stage1")  # fields of the objective that say where other models lie
SIGNS = ("names", *ROOMS, "spec")
LONGEST_TEXT, LONGEST_TUPLE, LONGEST_WORD = 1 << 20, 64, 100
_LARGEST = {"image_size": 1 << 14, "channels": 1 << 14, "num_classes": 1 << 20, "num_examples": 1 << 48}


class Description(NamedTuple):
    """A model's config, as far as it matters to others, and the images it makes.

    Attributes:
      rooms: fields of ``config.model``, ``.objective`` and ``.sampling``, by room; their values are still to be
        validated (:func:`sct_jax.config.validate`).
      spec: of its images.
      own_names: whether the weights have our names, not another project's.
    """

    rooms: dict[str, dict[str, Any]]
    spec: DataSpec
    own_names: bool


def describe(config: config_lib.Config, spec: DataSpec) -> dict[str, Any]:
    """The entries of the metadata, in JSON types; where teacher and stage 1 lie is nobody's concern."""
    values = config_lib.to_dict(config)
    rooms = {room: dict(values[room]) for room in ROOMS}
    for name in PLACES:
        rooms["objective"].pop(name)
    return rooms | {"spec": asdict(spec)}


def texts(entries: Mapping[str, Any]) -> dict[str, str]:
    """Entries as safetensors holds them."""
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in entries.items()}


def read(metadata: Mapping[str, str]) -> Description | None:
    """The description in the metadata of a safetensors file; None where export did not write them.

    Raises:
      UserError: for metadata that seem to be ours and hold what export would not write.
    """
    if not all(sign in metadata for sign in SIGNS):
        return None
    rooms = {room: _room(room, _object(room, metadata[room])) for room in ROOMS}
    if str(rooms["objective"].get("transition", "")).startswith("teacher"):
        rooms["objective"]["teacher"] = "unknown"
    if rooms["objective"].get("bootstrap") == "divided":
        rooms["objective"]["stage1"] = "unknown"
    return Description(rooms, _spec(_object("spec", metadata["spec"])), metadata["names"] == "sct_jax")


def _object(entry: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if len(text) <= LONGEST_TEXT else None
    except (ValueError, RecursionError) as error:
        raise UserError(f"the file's metadata {entry!r} are no JSON") from error
    if type(value) is not dict:
        raise UserError(f"the file's metadata {entry!r} are no JSON object of at most {LONGEST_TEXT} characters")
    return value


def _room(room: str, values: dict[str, Any]) -> dict[str, Any]:
    fields = {}
    for name, value in values.items():
        if f"{room}.{name}" not in SCHEMA or (room == "objective" and name in PLACES):
            raise UserError(f"the file's metadata name {quoted(f'{room}.{name}')}, which is no field of a config here")
        parts = value if type(value) is list else [value]
        if len(parts) > LONGEST_TUPLE or not all(_is_scalar(part) for part in parts):
            raise UserError(f"the file's metadata have no value of a config for {room}.{name}")
        fields[name] = tuple(value) if type(value) is list else value
    return fields


def _is_scalar(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 2**63
    return type(value) in (bool, float) or _is_word(value)


def _is_word(value: Any) -> bool:
    return type(value) is str and len(value) <= LONGEST_WORD and value.isprintable()


def _spec(values: dict[str, Any]) -> DataSpec:
    numbers = {name: values.get(name) for name in _LARGEST}
    names, dtype = values.get("class_names", []), values.get("dtype", "uint8")
    right = values.keys() <= {*numbers, "class_names", "dtype"} and dtype in ("uint8", "float32")
    right = right and all(type(n) is int and 0 <= n <= _LARGEST[name] for name, n in numbers.items())
    right = right and type(names) is list and all(map(_is_word, names)) and len(names) in (0, numbers["num_classes"])
    if not right:
        raise UserError("the file's metadata 'spec' describe no images")
    return DataSpec(**numbers, class_names=tuple(names), dtype=dtype)
