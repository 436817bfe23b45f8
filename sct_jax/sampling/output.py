"""Writing samples: an ``.npz``, one grid ``.png``, or a folder of PNGs."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sct_jax import files
from sct_jax.errors import UserError
from sct_jax.sampling.generate import to_uint8

# Endings of files that people may ask for and not get; a folder's name may have any other dot in it.
OTHER_FILES = (
    ".jpg",
    ".jpeg",
    ".gif",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".npy",
    ".pt",
    ".pkl",
    ".zip",
    ".tar",
    ".json",
)


def ending(out: str | Path) -> str:
    """What ``--out`` asks for: ``".npz"``, ``".png"`` (one grid), or ``""`` (a folder of PNGs).

    Capitals do not matter; a slash at the end, or a folder that is there, is a folder whatever its name.

    Raises:
      UserError: for the ending of another kind of file.
    """
    folder = str(out).endswith(("/", os.sep)) or Path(out).is_dir()
    suffix = Path(out).suffix.lower()
    if folder or suffix not in (".npz", ".png", *OTHER_FILES):
        return ""
    if suffix in OTHER_FILES:
        raise UserError(f"--out {out}: end it in .npz, .png (one grid) or nothing (a folder of PNGs)")
    return suffix


def check_target(out: str | Path) -> None:
    """Raises a UserError for an ``--out`` that could not be written, before any time is spent on sampling."""
    kind, out = ending(out), Path(out)
    if not kind and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder; name a new one")
    files.check_writable(out if kind else out / "000000.png")


def write_images(out: str | Path, images: np.ndarray, labels: Sequence[int] | None) -> Path:
    """Writes images ``[N, H, W, C]`` by the ending of ``out``; ``labels`` are used in turn. Returns ``out``.

    An ``.npz`` holds ``images`` as they are (uint8 or float32) and, for a conditional model, ``labels`` (int32
    ``[N]``). In pictures [-1, 1] of float images is black to white; a ``.png`` of points (``1x1x2``) is a scatter plot.
    """
    kind, out = ending(out), Path(out)
    if kind == ".png":
        from sct_jax.report.grids import save_samples

        return save_samples(images, out)
    if kind == ".npz":
        arrays = {"images": images}
        if labels is not None:
            arrays["labels"] = np.resize(np.asarray(labels, np.int32), len(images))
        return files.write(out, lambda aside: _save_arrays(aside, arrays))
    if images.shape[-1] not in (1, 3):
        raise UserError(f"--out {out}: these samples are no pictures; end it in .npz or .png (a scatter plot)")
    return _write_folder(out, images if images.dtype == np.uint8 else to_uint8(images))


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # given a name, numpy adds .npz to one that ends in .NPZ
        np.savez_compressed(file, **arrays)


def _write_folder(out: Path, images: np.ndarray) -> Path:
    from PIL import Image

    try:
        with files.new_folder(out) as aside:
            aside.mkdir(parents=True)
            for index, image in enumerate(images):
                Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(aside / f"{index:06d}.png")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}") from error
    return out
