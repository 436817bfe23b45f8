"""Model cards: where weights came from, as ``model_card.json`` beside them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from sct_jax import config as config_lib
from sct_jax import files, trees
from sct_jax.evaluation.provenance import provenance

FILE = "model_card.json"


def make(source: dict[str, Any] | None, config: config_lib.Config, params: Any = None) -> dict[str, Any]:
    """A card.

    Args:
      source: what the weights were made from: a file (path, sha256, format), a run (path, sha256 of its weights, its
        card), or None: from scratch.
      config: that describes the weights.
      params: the weights, whose hash is noted; None: they are still to be trained.
    """
    facts = provenance(**(source or {}))
    described = {key: facts.pop(key) for key in source or ()}
    card = {
        "source": described or None,
        "config": config_lib.to_dict(config),
        "created": facts.pop("date"),
        "versions": facts.pop("versions"),
    }
    if params is not None:
        card["weights_sha256"] = hash_weights(params)
    return card | {"made_by": facts}


def hash_weights(params: Any) -> str:
    """sha256 over names, dtypes, shapes and values of all arrays: the same however they are stored."""
    digest = hashlib.sha256()
    for name, value in sorted(trees.flat(params).items()):
        array = np.asarray(value)
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def write(workdir: str | Path, card: dict[str, Any]) -> Path:
    """Writes the card into a workdir."""
    return files.write_json(Path(workdir) / FILE, card, allow_nan=False)


def read(workdir: str | Path) -> dict[str, Any] | None:
    """The card of a workdir; None where there is none that can be read."""
    try:
        return json.loads((Path(workdir) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
