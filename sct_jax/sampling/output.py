"""Writing samples: an ``.npz``, one grid ``.png``, or a folder of PNGs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sct_jax import files
from sct_jax.errors import UserError
from sct_jax.sampling.generate import to_uint8


def check_target(out: str | Path) -> None:
    """Raises a UserError for an ``--out`` that could not be written, before any time is spent on sampling."""
    out = Path(out)
    if out.suffix not in ("", ".npz", ".png"):
        raise UserError(f"--out {out}: end it in .npz, .png (one grid) or nothing (a folder of PNGs)")
    if not out.suffix and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} exists and is not an empty folder; name a new one")
    if out.suffix:
        files.check_writable(out)
    else:
        files.check_writable(out / "000000.png")


def write_images(out: str | Path, images: np.ndarray, labels: Sequence[int] | None) -> Path:
    """Writes images ``[N, H, W, C]`` by the ending of ``out``; ``labels`` are used in turn. Returns ``out``.

    An ``.npz`` holds ``images`` as they are (uint8 or float32) and, for a conditional model, ``labels`` (int32
    ``[N]``). In pictures [-1, 1] of float images is black to white; a ``.png`` of points (``1x1x2``) is a scatter plot.
    """
    out = Path(out)
    if out.suffix == ".png":
        from sct_jax.report.grids import save_samples

        return save_samples(images, out)
    if out.suffix == ".npz":
        arrays = {"images": images}
        if labels is not None:
            arrays["labels"] = np.resize(np.asarray(labels, np.int32), len(images))
        return files.write(out, lambda aside: np.savez_compressed(aside, **arrays))
    if images.shape[-1] not in (1, 3):
        raise UserError(f"--out {out}: these samples are no pictures; end it in .npz or .png (a scatter plot)")
    return _write_folder(out, images if images.dtype == np.uint8 else to_uint8(images))


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
