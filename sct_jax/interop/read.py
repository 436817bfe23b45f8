"""Other projects' checkpoints: what kind of file it is, the network in it, and what the file says about it."""

import hashlib
import json
import mmap
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.interop import architecture, metadata, originals, torch_files, unpickle
from sct_jax.interop.allowed import quoted, shown
from sct_jax.interop.architecture import EDM2_NETWORK
from sct_jax.interop.metadata import Description
from sct_jax.interop.modules import Found, class_name, find_network
from sct_jax.interop.originals import Meaning

# Encoders of EDM2's snapshots whose images are no pictures.
LATENT_ENCODERS = ("StabilityVAEEncoder",)
SCRIPT = "TorchScript program"
DAMAGED = "what it holds does not go together: it is damaged or of an unknown variant"


class Imported(NamedTuple):
    """A network read from a file.

    Attributes:
      family: whose names the arrays have: ``edm``, ``edm2``, ``openai`` or, our own, ``sct_jax``.
      model_fields: of ``config.model``.
      spec: image size, channels and classes; no examples.
      state_dict: the arrays by the original's names.
      objective_fields: of ``config.objective``; the method is what trained it, as far as the file tells.
      sampling_fields: of ``config.sampling``.
      source: where it came from: path, size, hash, format, class, remarks.
    """

    family: str
    model_fields: dict[str, Any]
    spec: DataSpec
    state_dict: dict[str, np.ndarray]
    objective_fields: dict[str, Any]
    sampling_fields: dict[str, Any]
    source: dict[str, Any]


def read(path: str | Path, *, method: str = "", image_size: int = 0) -> Imported:
    """Reads a checkpoint of EDM, EDM2, ECT, STF, TCM or OpenAI's consistency models, without running any of it.

    Args:
      path: a pickle (``.pkl``), a PyTorch file (``.pt``, ``.pth``) or safetensors.
      method: what trained it, where the file does not tell or the user knows better.
      image_size: of the network, where the weights do not tell.

    Raises:
      UserError: for what is no such file, is damaged, or is of a kind that is not supported.
    """
    path = Path(path)
    data, kind, content = container(path)
    try:
        if kind == SCRIPT:
            raise UserError("it is a TorchScript program: save the weights with torch.save(model.state_dict(), ...)")
        described = metadata.read(_safetensors_metadata(data)) if kind == "safetensors" else None
        found = find_network(content)
        if found is None:
            raise UserError("there is no network in it: neither a module nor a dict of arrays")
        return _imported(path, data, kind, content, found, described, method, image_size)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except unpickle.DAMAGE as error:
        raise UserError(f"{path}: {DAMAGED}") from error


def container(path: str | Path) -> tuple[memoryview, str, Any]:
    """The bytes of a file, which kind of file it is, and what it holds, as plain data, arrays and descriptions.

    Raises:
      UserError: for what is no such file or is damaged.
    """
    path = Path(path)
    data = _view(path)
    try:
        return data, *_contents(data)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except unpickle.DAMAGE as error:
        raise UserError(f"{path}: {DAMAGED}") from error


def _imported(
    path: Path,
    data: memoryview,
    kind: str,
    content: Any,
    found: Found,
    described: Description | None,
    method: str,
    image_size: int,
) -> Imported:
    arrays = found.state_dict
    for name, value in arrays.items():
        if not np.isfinite(value).all():
            raise UserError(f"the weights {quoted(name)} are not finite: the run behind the file had diverged")
    if described and described.own_names:
        meaning, spec, family, fields = _own(described, arrays, method, image_size), described.spec, "sct_jax", {}
    else:
        network = architecture.infer(arrays, image_size or (described.spec.image_size if described else 0))
        loss = content.get("loss_fn") if type(content) is dict else None
        meaning = originals.describe(found.module, loss, network, method, path.name)
        family, fields = network.family, network.fields
        if family == "edm2":
            arrays = {_edm2_name(name): value for name, value in arrays.items()}
        spec = DataSpec(network.image_size, network.channels, network.num_classes, 0)
        if described:
            meaning, spec = _described(described, meaning, method), _agreed(described.spec, spec)
    latents = class_name(content.get("encoder") if type(content) is dict else None) in LATENT_ENCODERS
    if latents or (spec.channels not in (1, 3) and not described):
        spec = replace(spec, dtype="float32")
        meaning.notes.append("the network makes latents, not pictures: there is no decoder for them here")
    source = {
        "path": str(path),
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        "format": kind,
        "part": found.part,
        "class": class_name(found.module),
        "notes": [*found.notes, *meaning.notes],
    }
    return Imported(family, meaning.model | fields, spec, arrays, meaning.objective, meaning.sampling, source)


def _own(described: Description, arrays: dict[str, np.ndarray], method: str, image_size: int) -> Meaning:
    """What our metadata say of weights by our own names, from which no architecture is inferred."""
    meaning = Meaning(*(described.rooms[room] for room in metadata.ROOMS), [])
    for flag, given, said in (
        ("--method", method, meaning.objective.get("method")),
        ("--image-size", image_size, described.spec.image_size),
    ):
        if given and given != said:
            raise UserError(f"{flag} {given}: the file's metadata say {said}; leave it out")
    # Nothing that a file says makes a network of more parts than the file has.
    largest = max((size for array in arrays.values() for size in array.shape), default=0)
    for name in ("num_blocks", "channels", "channel_mult"):
        value = meaning.model.get(name, 1)
        size = len(value) if name == "channel_mult" and type(value) is tuple else value
        if type(size) is not int or size > (largest if name == "channels" else len(arrays)):
            raise UserError(f"the file's metadata say model.{name} = {value!r}, for which its weights are too few")
    return meaning


def _described(described: Description, otherwise: Meaning, method: str) -> Meaning:
    """What our own metadata say; the weights and the user know better."""
    model, objective, sampling = (described.rooms[room] for room in metadata.ROOMS)
    if method and method != objective.get("method"):
        objective, sampling = otherwise.objective, otherwise.sampling
    return Meaning(model, objective, sampling, [])


def _agreed(described: DataSpec, inferred: DataSpec) -> DataSpec:
    """The images of the metadata; an unconditional network's may have classes."""
    sizes = ("image_size", "channels", *(("num_classes",) if inferred.num_classes else ()))
    for name in sizes:
        there, here = getattr(described, name), getattr(inferred, name)
        if there != here:
            raise UserError(f"the file's metadata say {name} = {there}, but its weights have {here}")
    return described


def _edm2_name(name: str) -> str:
    """The name in EDM2's own preconditioner; TCM has the network directly in its."""
    return name if name.startswith((EDM2_NETWORK, "logvar_")) else EDM2_NETWORK + name


def _view(path: Path) -> memoryview:
    """The bytes of a file, mapped into memory."""
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a checkpoint file (.pkl, .pt, .pth, .safetensors)")
    try:
        with path.open("rb") as file:
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except ValueError as error:
        raise UserError(f"{path} is empty: was it downloaded completely?") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _contents(data: memoryview) -> tuple[str, Any]:
    """The kind of file and what it holds."""
    start = bytes(data[:512])
    if start.startswith(torch_files.ZIP_MAGIC):
        return SCRIPT if torch_files.is_script(data) else "PyTorch file", torch_files.loads(data)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        if torch_files.is_legacy(data):
            return "PyTorch file (before 1.6)", torch_files.loads(data)
        return "pickle", unpickle.loads(data)[0]
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= len(data):
        return "safetensors", _safetensors(data)
    for test, what in _STRANGERS:
        if test(start):
            raise UserError(what)
    raise UserError("not a checkpoint: neither a pickle, nor a PyTorch file, nor safetensors")


def _safetensors_metadata(data: memoryview) -> dict[str, str]:
    """The texts in the header of a safetensors file that was found whole."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(bytes(data[8 : 8 + length])).get("__metadata__") or {}


def _safetensors(data: memoryview) -> dict[str, np.ndarray]:
    import ml_dtypes
    from safetensors import SafetensorError, deserialize

    dtypes = {f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "FIU" for size in (1, 2, 4, 8)}
    dtypes |= {"BF16": ml_dtypes.bfloat16, "BOOL": "?"}
    try:
        return {
            name: np.frombuffer(part["data"], dtypes[part["dtype"]]).reshape(part["shape"])
            for name, part in deserialize(bytes(data))
        }
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"the safetensors file is damaged or cut short ({shown(str(error))})") from error


def is_page(start: bytes) -> bool:
    """Whether a file that begins so is a web page."""
    return re.match(rb"\s*<[a-zA-Z!?]", start) is not None


# Files that are taken for checkpoints, by how they begin.
_STRANGERS: tuple[tuple[Callable[[bytes], bool], str], ...] = (
    (is_page, "a web page, not a checkpoint: the download led to a page (of a login or an error?)"),
    (lambda start: start.startswith(b"version https://git-lfs"), "a Git LFS pointer: fetch the file with git lfs pull"),
    (lambda start: start.startswith(b"\x1f\x8b"), "compressed by gzip: unpack it first"),
    (lambda start: start.startswith(b"\x93NUMPY"), "a numpy array, not a checkpoint"),
    (lambda start: start[8:10] == b'{"', "a safetensors file that is cut short: get it again"),
    (
        # A FlatBuffer: the distance of its root, the program's table of offsets.
        lambda start: start[:1] != b"\0" and start[1:4] == bytes(3) and start[4:8] != bytes(4),
        "not a checkpoint, but perhaps a sampler that sct-jax export wrote: its weights lie beside it as .safetensors",
    ),
    (
        lambda start: b"\x80" < start[:1] < b"\x90" and b"\xa0" <= start[1:2] < b"\xc0",
        "a Flax (msgpack) checkpoint: not supported; the networks of EDM, EDM2, ECT, STF, TCM and CM in PyTorch are",
    ),
)
