"""What a reader needs to trust or repeat a number: the code, the versions, the device, the date and the command."""

import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import jax

from sct_jax.version import __version__

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")


def provenance(**extra: Any) -> dict[str, Any]:
    """Facts about this process, in plain JSON types, with ``extra`` (sample count, seeds, checkpoint, ...) added.

    Paths stay as the user wrote them when they are relative. An absolute one would name this machine: it is
    written relative to the current folder when inside it, else as ``…/`` and its last part.
    """
    devices = jax.devices()
    facts = {
        "commit": _commit(),
        "versions": _versions(),
        "device": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *_without_machine_paths(sys.argv[1:])],
    }
    return facts | _without_machine_paths(extra)


def _commit() -> dict[str, Any] | None:
    """Commit of the checkout this package lies in and whether tracked files differ from it; None outside a checkout."""
    here = Path(__file__).resolve()
    # Asked of this very file: an installed package inside somebody else's repository is no checkout.
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is None:
        return None
    commit = _git(here.parent, "rev-parse", "HEAD")
    changes = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None else {"hash": commit, "dirty": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "sct_jax": __version__}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "unknown"
    return versions


def _without_machine_paths(value: Any) -> Any:
    """``value`` with every absolute path in it, alone or after ``=``, shortened."""
    if isinstance(value, dict):
        return {key: _without_machine_paths(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_machine_paths(item) for item in value]
    if isinstance(value, PurePath):
        return _without_machine_paths(str(value))
    if isinstance(value, str):
        flag, equals, path = value.rpartition("=")
        return flag + equals + _shortened(path)
    return value


def _shortened(path: str) -> str:
    path = str(Path(path).expanduser()) if path.startswith("~") else path
    if PureWindowsPath(path).drive:
        return f"…/{PureWindowsPath(path).name}"
    if not PurePath(path).is_absolute():
        return path
    try:
        return str(PurePath(path).relative_to(Path.cwd()))
    except ValueError:
        return f"…/{PurePath(path).name}"
