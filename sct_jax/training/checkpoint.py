"""Checkpoints on disk: what lies where, reading their weights, and writing weights that no run trained.

``WORKDIR/checkpoints/STEP/`` holds four items: ``params``, ``ema``, ``training`` (step, optimizer state, context) and
``meta`` (JSON: the config and the data's description). A model is loaded from the first two; a run resumes from all of
them (``training.saver``).
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from sct_jax import config as config_lib
from sct_jax import files
from sct_jax.data import DataSpec
from sct_jax.errors import UserError

FOLDER = "checkpoints"
ITEMS = ("params", "ema", "training", "meta")


class Damaged(UserError):
    """A checkpoint that cannot be read."""


def resolve(path: str | Path) -> Path:
    """The folder of one checkpoint: ``path`` itself, or the newest one of a workdir.

    Raises:
      UserError: when there is none.
    """
    path = Path(path)
    return path if _is_checkpoint(path) else places(path)[-1]


def places(workdir: str | Path) -> list[Path]:
    """The folders of all checkpoints of a workdir, by their steps.

    Raises:
      UserError: when there are none, and for the folder of one checkpoint.
    """
    workdir = Path(workdir)
    if not workdir.exists():
        raise UserError(f"no checkpoint {workdir}: there is no such file or folder")
    if _is_checkpoint(workdir):
        raise UserError(f"{workdir} is one checkpoint: name the workdir that holds it and the others")
    folder = workdir if workdir.name == FOLDER else workdir / FOLDER
    steps = steps_in(folder)
    if not steps:
        raise UserError(f"no checkpoint in {workdir}: it is neither a workdir of a run nor one of its checkpoints/STEP")
    return [folder / str(step) for step in steps]


def steps_in(folder: Path) -> list[int]:
    """The steps of all checkpoints in a folder of them, whole or not, ascending; none where there is no folder."""
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def _is_checkpoint(path: Path) -> bool:
    return (path / "params").is_dir() and (path / "meta").is_dir()


def read_meta(place: Path) -> dict[str, Any]:
    """``{"config": …, "spec": …, "step": …}`` of the checkpoint folder ``place``."""
    meta = _read(place, "meta", ocp.JsonCheckpointHandler(), ocp.args.JsonRestore())
    lacking = {"config", "spec", "step"} - set(meta or ())
    if lacking:
        raise _damaged(place, ValueError(f"its meta lacks {', '.join(sorted(lacking))}"))
    return meta


def spec_in(meta: dict[str, Any]) -> DataSpec:
    """The description of the data in a checkpoint's ``meta``."""
    return DataSpec(**{**meta["spec"], "class_names": tuple(meta["spec"]["class_names"])})


def read_weights(place: Path, profile: str = "") -> tuple[Any, str]:
    """The parameters of an EMA profile (empty: the first of its config; ``"raw"``: the raw ones), and its name.

    A checkpoint without averages (:func:`write_weights`) has raw weights only.

    Raises:
      UserError: for a profile that the checkpoint does not hold, and for a damaged checkpoint.
    """
    profiles = averages_in(read_meta(place))
    profile = profile or [*profiles, "raw"][0]
    if profile == "raw":
        return read_tree(place, "params"), profile
    if profile not in profiles:
        raise UserError(f"{place} has no EMA profile {profile!r}; it has {', '.join([*profiles, 'raw'])}")
    return read_tree(place, "ema", profile), profile


def averages_in(meta: dict[str, Any]) -> list[str]:
    """The EMA profiles that a checkpoint of this ``meta`` holds beside the raw weights."""
    return meta.get("averages", meta["config"]["ema"]["profiles"])


def write_weights(
    workdir: str | Path,
    params: Any,
    config: config_lib.Config,
    spec: DataSpec,
    step: int = 0,
    averages: dict[str, Any] | None = None,
) -> Path:
    """Writes weights that no run of this workdir trained, as an ordinary workdir that ``sct_jax.load`` reads.

    Args:
      params: the raw weights, a nested dict of arrays.
      averages: a tree like ``params`` for each EMA profile; None: there are none, and the raw weights are loaded.

    Returns:
      The folder of the checkpoint.

    Raises:
      UserError: when the workdir holds checkpoints already, or cannot be written.
    """
    workdir = Path(workdir)
    check_vacant(workdir)
    writable(workdir)
    place = (workdir / FOLDER).absolute() / str(step)
    meta = {"config": config_lib.to_dict(config), "spec": asdict(spec), "step": step, "averages": [*(averages or ())]}
    items = {"params": ocp.args.StandardSave(params), "meta": ocp.args.JsonSave(meta)}
    if averages:
        items["ema"] = ocp.args.StandardSave(averages)
    try:
        ocp.Checkpointer(ocp.CompositeCheckpointHandler()).save(place, args=ocp.args.Composite(**items))
    except Exception as error:
        raise UserError(f"saving weights into {workdir} failed ({first_line(error)})") from error
    files.write_json(workdir / "config.json", meta["config"])
    return place


def check_vacant(workdir: str | Path) -> None:
    """Raises a UserError when weights could not be written into ``workdir``, for it holds checkpoints or is a file."""
    workdir = Path(workdir)
    files.check_writable(workdir / "config.json")
    folder = workdir / FOLDER
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{workdir} holds checkpoints already: choose another folder for these weights")


def check_weights(weights: Any, expected: Any, origin: str) -> None:
    """Raises a UserError that names the first difference unless two parameter trees have the same names and shapes."""
    found, wanted = _shapes(weights), _shapes(expected)
    missing, extra = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    changed = sorted(key for key in wanted.keys() & found.keys() if wanted[key] != found[key])
    if changed:
        difference = f"{changed[0]} has shape {found[changed[0]]} there and {wanted[changed[0]]} here"
    elif missing or extra:
        difference = f"it lacks {missing[0]}" if missing else f"it has {extra[0]}, which this network has not"
    else:
        return
    count = len(missing) + len(extra) + len(changed)
    raise UserError(
        f"{origin} is of another architecture ({count} differences: {difference}); compare its config.model with yours"
    )


def check_same_tree(place: Path, item: str, like: Any) -> None:
    """Raises a UserError unless an item of a checkpoint has the names and shapes of ``like``; Damaged where unread."""
    check_weights(item_tree(place, item), like, str(place))


def item_tree(place: Path, item: str) -> Any:
    """The names, shapes and types of an item's arrays, a nested dict; Damaged where they cannot be read."""
    try:
        metadata = ocp.StandardCheckpointHandler().metadata((place / item).absolute())
        return getattr(metadata, "tree", metadata)
    except Exception as error:
        raise _damaged(place, error) from error


def read_tree(place: Path, item: str, part: str = "") -> Any:
    """The arrays of an item, on the first device however split; of one entry only, where ``part`` names it."""
    tree = item_tree(place, item)
    try:
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            {part: tree[part]} if part else tree,
        )
    except Exception as error:
        raise _damaged(place, error) from error
    options = {"restore_args": ocp.checkpoint_utils.construct_restore_args(like), "partial_restore": bool(part)}
    restored = _read(place, item, ocp.PyTreeCheckpointHandler(), ocp.args.PyTreeRestore(like, **options))
    return restored[part] if part else restored


def _read(place: Path, item: str, handler: Any, arguments: Any) -> Any:
    try:
        return ocp.Checkpointer(handler).restore((place / item).absolute(), args=arguments)
    except Exception as error:
        raise _damaged(place, error) from error


def _damaged(place: Path, error: Exception) -> Damaged:
    older = [step for step in steps_in(place.parent) if str(step) != place.name]
    hint = f"; an older one is {place.parent / str(older[-1])}" if older else ""
    return Damaged(f"checkpoint {place} is damaged ({first_line(error)}){hint}")


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(getattr(k, "key", k)) for k in path): tuple(leaf.shape) for path, leaf in leaves}


def first_line(error: Exception) -> str:
    """What a storage library's report comes down to."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    for message in (
        "No space left on device",
        "File too large",
        "Permission denied",
        "Read-only file system",
    ):
        if message in text:  # deep inside a storage library's report
            return message
    return text.splitlines()[0][:200] if text else type(error).__name__


def writable(workdir: Path) -> None:
    """Makes the workdir, or raises a UserError when it cannot be written."""
    try:
        (workdir / FOLDER).mkdir(parents=True, exist_ok=True)
        probe = workdir / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process, on another machine, may have the same number
    except OSError as error:
        raise UserError(f"cannot write into workdir {workdir}: {error.strerror}") from error
