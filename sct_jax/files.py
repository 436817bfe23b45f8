"""Files that are never half-written: written aside in the same folder, then renamed."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sct_jax.errors import UserError


def write(path: str | Path, fill: Callable[[Path], object]) -> Path:
    """Calls ``fill`` with a temporary path of the same ending beside ``path``, then renames it to ``path``.

    Raises:
      UserError: when the folder cannot be made or written; a file that was there before stays.
    """
    path = Path(path)
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fill(aside)
        aside.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
    return path


@contextlib.contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Gives a folder beside ``path`` to fill, which becomes ``path`` at the end, whole or not at all.

    Raises:
      UserError: when ``path`` is there and not an empty folder, or cannot be written.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists already: choose another place, or remove it first")
    aside = path.with_name(f".{os.getpid()}-{path.name}")
    filled = False
    try:
        yield aside
        filled = True
        if path.is_dir():
            path.rmdir()
        aside.rename(path)
    except OSError as error:  # while it is filled, errors of what is read are not ours to name
        if not filled and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file, see :func:`write`."""
    return write(path, lambda aside: aside.write_text(text, encoding="utf-8"))


def write_json(path: str | Path, value: Any, *, allow_nan: bool = True) -> Path:
    """Writes a value as indented JSON, see :func:`write`; a ValueError for a NaN where none is allowed."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=allow_nan) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_writable(path: str | Path) -> None:
    """Raises a UserError for a file that could not be written, before any time is spent on what it shall hold."""
    path = Path(path)
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"cannot write {path}: {parent} is not a folder that can be written")


def cache_folder() -> Path | None:
    """Where what can be made again is kept, ``$XDG_CACHE_HOME/sct_jax`` or ``~/.cache/sct_jax``; None: read-only."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sct_jax"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
