"""Statistics of real images in a feature space, as files: our own, and those that other projects publish.

Ours is an ``.npz`` with ``mu`` and ``sigma``, which the originals can read too, ``mu_s`` and ``sigma_s`` of spatial
features (the names of ADM's evaluator), each image's ``features`` where they were kept, and a card. Of other files
EDM's, pytorch-fid's, clean-fid's and ADM's ``.npz`` are read, which say nothing about the images, and EDM2's ``.pkl``,
by :mod:`sct_jax.interop.unpickle`, which runs nothing.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sct_jax import files
from sct_jax.errors import UserError
from sct_jax.evaluation.accumulate import check_finite
from sct_jax.features import FeatureSpace
from sct_jax.interop import unpickle
from sct_jax.interop.allowed import shown
from sct_jax.interop.read import is_page

FORMAT = "sct-jax reference 1"
EDM2_NAMES = {"inception": "fid", "dinov2": "fd_dinov2"}
ASYMMETRY = 1e-5  # of a covariance, relative to its largest entry: float32 has been summed in some files
DAMAGED = "it is damaged or cut short: was it downloaded or copied completely?"


class OtherSpace(UserError):
    """A file has statistics, but of another feature space."""


class HasMoments(Protocol):
    """A mean and a covariance; an :class:`sct_jax.evaluation.accumulate.Accumulator` has them too."""

    @property
    def mean(self) -> np.ndarray:
        """``[F]``."""

    @property
    def cov(self) -> np.ndarray:
        """``[F, F]``."""


class Moments(NamedTuple):
    """Float64 mean ``[F]`` and covariance ``[F, F]``."""

    mean: np.ndarray
    cov: np.ndarray


@dataclass(frozen=True, eq=False)
class Reference:
    """What samples are compared with.

    Attributes:
      space: name of the feature space.
      version: of the network and of how images are prepared for it; empty: the file does not tell.
      resolution: of the images; 0: the file does not tell.
      channels: of the images; 0: the file does not tell.
      num: of images; None: the file does not tell.
      mean: float64 ``[F]``.
      cov: float64 ``[F, F]``, unbiased.
      features: of each image, float16 or float32 ``[num, F]``; None: not kept.
      spatial: moments of Inception's spatial features, for sFID; None: not taken.
      card: where it came from, in plain JSON types.
      sha256: of the file; empty: not read from one.
    """

    space: str
    version: str
    resolution: int
    channels: int
    num: int | None
    mean: np.ndarray
    cov: np.ndarray
    features: np.ndarray | None = None
    spatial: HasMoments | None = None
    card: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""


def save_reference(path: str | Path, reference: Reference, *, half: bool = False) -> Path:
    """Writes an ``.npz``; ``half``: the features as float16, which take half the space.

    Raises:
      UserError: for another ending, a place that cannot be written, and statistics that are not finite.
    """
    path = Path(path)
    check_ending(path)
    card = {
        "format": FORMAT,
        "space": reference.space,
        "version": reference.version,
        "resolution": reference.resolution,
        "channels": reference.channels,
        "num": reference.num,
        "made": reference.card,
    }
    arrays: dict[str, Any] = {"card": np.array(json.dumps(card)), "mu": reference.mean, "sigma": reference.cov}
    if reference.spatial is not None:
        arrays |= {"mu_s": reference.spatial.mean, "sigma_s": reference.spatial.cov}
    if reference.features is not None:
        with np.errstate(over="ignore"):
            features = np.asarray(reference.features, np.float16 if half else None)
        arrays["features"] = features if features.dtype == np.float16 else features.astype(np.float32, copy=False)
    _checked(arrays, len(reference.mean), reference.space)
    return files.write(path, lambda aside: np.savez(aside, **arrays))


def check_ending(path: Path) -> None:
    """Raises a UserError for the name of a file that statistics are not written to."""
    if path.suffix != ".npz":
        raise UserError(f"reference statistics are written as .npz, not as {path.name}")


def load_reference(
    path: str | Path, space: FeatureSpace, *, resolution: int | None = None, channels: int | None = None
) -> Reference:
    """Reads statistics of a feature space, made here or elsewhere.

    Args:
      path: an ``.npz`` or ``.pkl``.
      space: what samples will be seen with.
      resolution: of the samples; None: any.
      channels: of the samples; None: any.

    Raises:
      OtherSpace: for statistics of another feature space.
      UserError: for a file that is missing, damaged or no such statistics; for another version of the space, another
        resolution or other channels, where the file tells; for numbers that are not finite.
    """
    path = Path(path)
    try:
        arrays, sha256 = _arrays(path, space.name)
        found = _checked(arrays, space.dims, space.name)
        card = _card(arrays, path)
        _check_card(card, space, resolution, channels)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error
    features, num = found.get("features"), card.get("num")
    if features is not None and len(features) != num:
        raise UserError(f"{path}: it has features of {len(features)} images, but its card speaks of {num}: {DAMAGED}")
    return Reference(
        space=space.name,
        version=card.get("version", ""),
        resolution=card.get("resolution", 0),
        channels=card.get("channels", 0),
        num=num,
        mean=found["mu"],
        cov=found["sigma"],
        features=features,
        spatial=Moments(found["mu_s"], found["sigma_s"]) if "mu_s" in found else None,
        card=card.get("made", {}),
        sha256=sha256,
    )


def _arrays(path: Path, space: str) -> tuple[Mapping[str, Any], str]:
    """What the file holds of a feature space, and its hash."""
    if path.is_dir():
        raise UserError("it is a folder: give a file of reference statistics (.npz or .pkl)")
    try:
        sha256 = files.sha256(path)
        with path.open("rb") as file:
            start = file.read(512)
            if start.startswith(b"PK\x03\x04"):
                return _from_npz(path), sha256
            if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
                file.seek(0)
                return _from_pickle(file.read(), space), sha256
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}") from error
    if not start:
        raise UserError(f"it is empty: {DAMAGED}")
    raise UserError("no reference statistics, which are .npz or .pkl" + " (a web page?)" * is_page(start))


def _from_npz(path: Path) -> dict[str, np.ndarray]:
    names = ("card", "mu", "sigma", "mu_s", "sigma_s", "features")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in names if name in archive}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, NotImplementedError, MemoryError) as error:
        raise UserError(DAMAGED) from error


def _from_pickle(data: bytes, space: str) -> dict[str, Any]:
    content, _ = unpickle.loads(data)
    name = EDM2_NAMES.get(space, space)
    if type(content) is not dict or not all(type(part) is dict for part in content.values()):
        raise UserError("no reference statistics: EDM2's are a dict of {'mu', 'sigma'} by metric")
    if name not in content:
        others = ", ".join(shown(str(key)) for key in list(content)[:8])
        raise OtherSpace(f"it has no statistics of {space} features ({name}), only of {others or 'nothing'}")
    return {key: content[name].get(key) for key in ("mu", "sigma")}


def _checked(arrays: Mapping[str, Any], dims: int, space: str) -> dict[str, np.ndarray]:
    """The arrays, moments in float64, once their shapes and values are found to be right."""
    found = {}
    for mean_name, cov_name in (("mu", "sigma"), ("mu_s", "sigma_s")):
        mean, cov = (_numbers(arrays.get(name)) for name in (mean_name, cov_name))
        if mean is None and cov is None and mean_name == "mu_s":
            continue
        if mean is None or cov is None or mean.ndim != 1 or cov.shape != 2 * mean.shape:
            raise UserError(f"no reference statistics: {mean_name} [F] and {cov_name} [F, F] are not in it")
        if mean_name == "mu" and len(mean) != dims:
            raise OtherSpace(f"statistics of {len(mean)} features, where {space} has {dims}: of another feature space")
        found[mean_name], found[cov_name] = _finite_moments(mean, cov)
    features = _numbers(arrays.get("features"))
    if features is not None:
        if features.ndim != 2 or features.shape[1] != dims:
            raise UserError(f"its features have shape {features.shape}, not [images, {dims}]: {DAMAGED}")
        check_finite(features, "images")
        found["features"] = features
    return found


def _numbers(value: Any) -> np.ndarray | None:
    return value if isinstance(value, np.ndarray) and value.dtype.kind == "f" else None


def _finite_moments(mean: np.ndarray, cov: np.ndarray) -> Moments:
    mean, cov = np.array(mean, np.float64), np.array(cov, np.float64)
    bad = int((~np.isfinite(mean) | ~np.isfinite(cov).all(axis=0)).sum())
    if bad:
        raise UserError(f"the statistics of {bad} of {len(mean)} features are not finite: make them anew")
    largest = np.abs(cov).max(initial=0)
    if np.abs(cov - cov.T).max(initial=0) > ASYMMETRY * largest or cov.diagonal().min(initial=0) < -ASYMMETRY * largest:
        raise UserError(f"its sigma is no covariance: {DAMAGED}")
    return Moments(mean, cov)


def _card(arrays: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Our own card, or of another's file its name alone."""
    if "card" not in arrays:
        return {"made": {"file": path.name}}
    try:
        card = json.loads(str(arrays["card"]))
        known = card["format"] == FORMAT
        for name, kind in (("space", str), ("version", str), ("resolution", int), ("channels", int), ("made", dict)):
            if not isinstance(card[name], kind):
                raise TypeError(name)
        if not isinstance(card["num"], int | None):
            raise TypeError("num")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"its card cannot be read: {DAMAGED}") from error
    if not known:
        raise UserError(f"its format {shown(str(card['format']))} is not {FORMAT!r}: it was made by another version")
    return card


def _check_card(card: Mapping[str, Any], space: FeatureSpace, resolution: int | None, channels: int | None) -> None:
    """Raises a UserError where the card says that it is of other images, or of another network."""
    again = "make one with sct-jax evaluate reference"
    if card.get("space", space.name) != space.name:
        raise OtherSpace(f"statistics of {shown(card['space'])} features, not of {space.name}: {again}")
    if card.get("version", "") not in ("", space.version):
        raise UserError(f"statistics of {shown(card['version'])}, but samples are seen by {space.version}: {again}")
    for name, asked, unit in (("resolution", resolution, "pixels"), ("channels", channels, "channels")):
        there = card.get(name, 0)
        if asked and there and there != asked:
            raise UserError(f"statistics of images of {there} {unit}, but the samples have {asked}: {again}")
