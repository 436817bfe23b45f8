"""Checkpoints: asynchronous, atomic (Orbax writes aside, then renames), with the config and the data's description.

``WORKDIR/checkpoints/STEP/`` holds four items: ``params``, ``ema``, ``training`` (step, optimizer state, context) and
``meta`` (JSON). A model is loaded from the first two; a run resumes from all of them.
"""

import contextlib
import json
import math
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from sct_jax import config as config_lib
from sct_jax import files
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.schema import DENOISING
from sct_jax.training.state import TrainState

FOLDER = "checkpoints"
# A run that is resumed with another of these would be neither the one nor the other.
IDENTITY = ("seed", "batch_size", "data.", "model.", "objective.", "reference.")
MAY_CHANGE = {
    *("data.path", "data.held_out_split", "data.pipeline", "data.resident_max_mib", "data.workers", "data.prefetch"),
    *("model.dropout", "model.label_dropout", "model.compute_dtype"),
}
PERIODS = ("log", "checkpoint", "sampling", "evaluation")
ITEMS = ("params", "ema", "training", "meta")


class Checkpointer:
    """Saves and restores the states of one run in ``workdir``."""

    def __init__(self, workdir: Path, config: config_lib.Config, spec: DataSpec):
        self.workdir, self._folder = workdir, (workdir / FOLDER).absolute()
        self._failed = False
        self._meta = {"config": config_lib.to_dict(config), "spec": asdict(spec)}
        policy = _kept(config, _kept_before(self._folder))
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, enable_async_checkpointing=True)
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=ITEMS)
        except OSError as error:
            raise UserError(f"cannot write checkpoints into {workdir}: {error.strerror or error}") from error

    def save(self, state: TrainState) -> None:
        """Begins to save; returns once the arrays are copied. A failure shows at the next call or at ``close``."""
        if jax.default_backend() == "cpu":  # host memory is the device's: copy before donation reuses it
            state = jax.tree.map(jnp.array, state)
        step = int(state.step)
        training = {"step": state.step, "opt_state": state.opt_state, "context": state.context}
        self._guard(
            lambda: self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    ema=ocp.args.StandardSave(state.ema),
                    training=ocp.args.StandardSave(training),
                    meta=ocp.args.JsonSave(self._meta | {"step": step}),
                ),
            )
        )

    def wait(self) -> None:
        """Waits until everything begun is on disk."""
        self._guard(self._manager.wait_until_finished)

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def restore(self, like: TrainState) -> TrainState:
        """The newest state, with the shapes and shardings of ``like``.

        Raises:
          UserError: when the checkpoint is of another architecture or cannot be read.
        """
        step = self._manager.latest_step()
        assert step is not None
        place = self._folder / str(step)
        _check_same_tree(place, "params", like.params)
        training = {"step": like.step, "opt_state": like.opt_state, "context": like.context}
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(_abstract(like.params)),
                    ema=ocp.args.StandardRestore(_abstract(like.ema)),
                    training=ocp.args.StandardRestore(_abstract(training)),
                ),
            )
        except Exception as error:
            raise UserError(
                f"cannot resume from {place}: {_first_line(error)}; was the optimizer or ema.profiles changed? "
                "Use another --workdir with --config.init.checkpoint to start from its weights"
            ) from error
        rest = restored["training"]
        return TrainState(rest["step"], restored["params"], rest["opt_state"], restored["ema"], rest["context"])

    def check_config(self) -> None:
        """Raises a UserError when the newest checkpoint was trained with settings that make it another run."""
        step = self._manager.latest_step()
        before = config_lib.flatten(read_meta(self._folder / str(step))["config"])
        now = config_lib.flatten(self._meta["config"])
        grows = now["objective.pair"] == "grid" and now["objective.growth"] != "fixed"  # over the run's length
        identity = (*IDENTITY, "total_steps") if grows and now["objective.method"] not in DENOISING else IDENTITY
        for key in (key for key in now if before.get(key, now[key]) != now[key]):
            if key.startswith(identity) and key not in MAY_CHANGE:
                raise UserError(
                    f"{self._folder.parent.name} has a run with config.{key} = {before[key]!r}, not {now[key]!r}: use "
                    "another --workdir (with --config.init.checkpoint to start from its weights), or that value"
                )

    def close(self) -> None:
        """Waits for the last save and releases the folder; what a failed one left goes, however late it was written."""
        try:
            self.wait()
        finally:
            with contextlib.suppress(Exception):  # what failed was said by wait
                self._manager.close()
            if self._failed:
                self._clean()

    def _clean(self) -> None:
        """Removes what a failed save left, until the storage threads, which may go on writing it, are still."""
        patience = time.monotonic() + 10
        quiet = 0
        while quiet < 25 and time.monotonic() < patience:
            leftovers = list(self._folder.glob("*orbax-checkpoint-tmp*"))
            for leftover in leftovers:
                shutil.rmtree(leftover, ignore_errors=True)
            quiet = 0 if leftovers else quiet + 1
            time.sleep(0.02)

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            self._failed = True
            good = [int(p.name) for p in self._folder.iterdir() if p.name.isdigit()] if self._folder.is_dir() else []
            self._clean()
            newest = f"the newest good one is step {max(good)}" if good else "there is none yet"
            raise UserError(
                f"saving a checkpoint into {self._folder} failed ({_first_line(error)}); {newest}"
            ) from error


def kept_steps(config: config_lib.Config) -> tuple[int, ...]:
    """The steps whose checkpoints ``checkpoint.keep_fractions`` keeps for good, ascending.

    Each is the fraction of ``total_steps`` rounded to the nearest multiple of what all periods of the config have in
    common, for calls of the device end there; at least the first of these. The fraction 1 is the last step of the run.

    Raises:
      UserError: when two fractions would share a checkpoint, or one below 1 would be the end of the run.
    """
    every, total = math.gcd(*(config[room].every_steps for room in PERIODS)), config.total_steps
    fractions = sorted(config.checkpoint.keep_fractions)
    nearest = [max(1, math.floor(fraction * total / every + 0.5)) * every for fraction in fractions]
    steps = [total if fraction == 1 else step for step, fraction in zip(nearest, fractions, strict=True)]
    early = [step for step, fraction in zip(steps, fractions, strict=True) if fraction < 1]
    if len(set(steps)) < len(set(fractions)) or max(early, default=0) >= total:
        raise UserError(
            f"config.checkpoint.keep_fractions = {tuple(fractions)} of {total} steps fall on steps {steps}, for the "
            f"periods of the config have {every} steps in common: make checkpoint.every_steps and the others smaller"
        )
    return tuple(sorted(set(steps)))


def _kept_before(folder: Path) -> set[int]:
    """The steps that the configs of the checkpoints there, runs of another length perhaps, keep for good."""
    kept = set()
    for place in folder.glob("*"):
        if place.name.isdigit() and (place / "meta").is_dir():
            with contextlib.suppress(UserError, KeyError):  # a damaged or an old one is dealt with where it is read
                kept |= set(kept_steps(config_lib.Config(read_meta(place)["config"])))
    return kept


def _kept(config: config_lib.Config, before: set[int]) -> policies.PreservationPolicy:
    keep = config.checkpoint
    kept = [policies.LatestN(keep.keep), policies.CustomSteps(sorted({*kept_steps(config), *before}))]
    if keep.keep_every_steps:
        kept.append(policies.EveryNSteps(keep.keep_every_steps))
    return policies.AnyPreservationPolicy(kept)


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
    steps = sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []
    if not steps:
        raise UserError(f"no checkpoint in {workdir}: it is neither a workdir of a run nor one of its checkpoints/STEP")
    return [folder / str(step) for step in steps]


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
        return _read_tree(place, "params"), profile
    if profile not in profiles:
        raise UserError(f"{place} has no EMA profile {profile!r}; it has {', '.join([*profiles, 'raw'])}")
    return _read_tree(place, "ema", profile), profile


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
        raise UserError(f"saving weights into {workdir} failed ({_first_line(error)})") from error
    files.write_text(workdir / "config.json", json.dumps(meta["config"], indent=2) + "\n")
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


def _check_same_tree(place: Path, item: str, like: Any) -> None:
    try:
        metadata = ocp.StandardCheckpointHandler().metadata(place / item)
        tree = getattr(metadata, "tree", metadata)
    except Exception as error:
        raise _damaged(place, error) from error
    check_weights(tree, like, str(place))


def _read_tree(place: Path, item: str, part: str = "") -> Any:
    """The arrays of an item on the first device; of one entry only, where ``part`` names it."""
    try:
        metadata = ocp.StandardCheckpointHandler().metadata((place / item).absolute())
        tree = getattr(metadata, "tree", metadata)
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


def _damaged(place: Path, error: Exception) -> UserError:
    older = sorted(int(p.name) for p in place.parent.iterdir() if p.name.isdigit() and p.name != place.name)
    hint = f"; an older one is {place.parent / str(older[-1])}" if older else ""
    return UserError(f"checkpoint {place} is damaged ({_first_line(error)}){hint}")


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(str(getattr(k, "key", k)) for k in path): tuple(leaf.shape) for path, leaf in leaves}


def _first_line(error: Exception) -> str:
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
        probe.unlink()
    except OSError as error:
        raise UserError(f"cannot write into workdir {workdir}: {error.strerror}") from error
