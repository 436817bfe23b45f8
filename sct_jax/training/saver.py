"""Saving the states of one run, and going on from the newest that is whole.

Orbax writes a checkpoint aside and renames it, so a run that is killed leaves whole checkpoints only. What disks and
people do to them later is found by ``files.json`` beside their items, the sizes of all files: a checkpoint that lacks
something is passed over, and set aside once an older one has been restored.
"""

import contextlib
import json
import math
import shutil
import sys
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
from sct_jax.objectives import bootstrap
from sct_jax.schema import DENOISING
from sct_jax.training import checkpoint, loss_scale, mesh
from sct_jax.training.checkpoint import FOLDER, first_line
from sct_jax.training.state import TrainState

# A run that is resumed with another of these would be neither the one nor the other.
IDENTITY = ("seed", "batch_size", "data.", "model.", "objective.", "reference.")
MAY_CHANGE = {
    *("data.path", "data.held_out_split", "data.pipeline", "data.resident_max_mib", "data.workers", "data.prefetch"),
    *("data.patience", "data.timeout", "reference.resident_max_mib", "reference.send_max_mib"),
    *("model.dropout", "model.label_dropout", "model.compute_dtype", "model.gradient_dtype", "model.remat"),
    "objective.difference",
    "objective.lpips",  # its weights are in the checkpoint
}
# Entries of the context that only some precisions have, and how they begin.
OF_PRECISION = {bootstrap.DECISION: lambda config: bootstrap.undecided(), loss_scale.NAME: loss_scale.initial}
PERIODS = ("log", "checkpoint", "sampling", "evaluation")
LIST = "files.json"
TEMPORARY = "*orbax-checkpoint-tmp*"
DAMAGED = "damaged-"  # before the step in the name of a checkpoint that was set aside


class Checkpointer:
    """Saves and restores the states of one run in ``workdir``; of several processes each writes its part."""

    def __init__(self, workdir: Path, config: config_lib.Config, spec: DataSpec):
        self.workdir, self._folder, self._config = workdir, (workdir / FOLDER).absolute(), config
        self._failed = False
        self._unlisted: list[int] = []
        self._meta = {"config": config_lib.to_dict(config), "spec": asdict(spec)}
        if mesh.is_first_process():
            for leftover in self._folder.glob(TEMPORARY):  # of a run that was killed while it saved
                shutil.rmtree(leftover, ignore_errors=True)
        policy = _kept(config, _kept_before(self._folder))
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, enable_async_checkpointing=True)
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options, item_names=checkpoint.ITEMS)
        except OSError as error:
            raise UserError(f"cannot write checkpoints into {workdir}: {error.strerror or error}") from error

    def save(self, state: TrainState) -> None:
        """Begins to save; returns once the arrays are copied. A failure shows at the next call or at ``close``."""
        if jax.default_backend() == "cpu":  # host memory is the device's: copy before donation reuses it
            state = _copied(state)
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
        self._list_files()  # of the one before, which is finished now
        self._unlisted.append(step)

    def wait(self) -> None:
        """Waits until everything begun is on disk."""
        self._guard(self._manager.wait_until_finished)
        self._list_files()

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, None where nothing was saved.

        Raises:
          UserError: when there are checkpoints, but none is whole.
        """
        found = -1
        if mesh.is_first_process():
            steps = checkpoint.steps_in(self._folder)
            whole = [step for step in steps if not _lacks(self._folder / str(step))]
            found = max(whole, default=-2 if steps else -1)
        found = mesh.from_first(found)
        if found == -2:
            self._give_up(checkpoint.steps_in(self._folder)[-1])
        return found if found >= 0 else None

    def restore(self, like: TrainState) -> TrainState:
        """The newest state that is whole, with the shapes and shardings of ``like``, however it was split when saved.

        Newer checkpoints that turned out to be damaged are set aside then, saying so.

        Raises:
          UserError: when the checkpoint is of another architecture or run, or none can be read.
        """
        tried = step = self.latest_step()
        if step is None:
            raise ValueError("nothing was saved")
        while step >= 0:
            state = self._restored(step, like)
            if state is not None:
                self._set_aside([newer for newer in checkpoint.steps_in(self._folder) if newer > step])
                self._unlisted.append(step)
                self._list_files()
                return state
            older = [
                found
                for found in checkpoint.steps_in(self._folder)
                if found < step and not _lacks(self._folder / str(found))
            ]
            step = mesh.from_first(max(older, default=-1))
        self._give_up(tried)

    def _restored(self, step: int, like: TrainState) -> TrainState | None:
        """The state of ``step``; None where a process could not read it."""
        place, restored = self._folder / str(step), None
        training = {"step": like.step, "opt_state": like.opt_state, "context": like.context}
        try:
            self.check_config(step)
            checkpoint.check_same_tree(place, "params", like.params)
            training["context"] = _context_there(place, like.context)
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(_abstract(like.params)),
                    ema=ocp.args.StandardRestore(_abstract(like.ema)),
                    training=ocp.args.StandardRestore(_abstract(training)),
                ),
            )
        except checkpoint.Damaged:
            pass
        except UserError:
            raise
        except Exception as error:
            if "RESOURCE_EXHAUSTED" in str(error):
                raise
            if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
                raise UserError(f"cannot read checkpoint {place}: {first_line(error)}") from error
            self._check_same_rules(place, error)
        if not mesh.all_processes(restored is not None):
            return None
        rest = restored["training"]
        context = {name: rest["context"][name] for name in like.context if name in rest["context"]}
        for name in like.context.keys() - context.keys():
            fresh, where = OF_PRECISION[name](self._config), jax.tree.map(lambda x: x.sharding, like.context[name])
            context[name] = mesh.put(fresh, where)
        return TrainState(rest["step"], restored["params"], rest["opt_state"], restored["ema"], context)

    def check_config(self, step: int) -> None:
        """Raises a UserError when the checkpoint was trained with settings that make it another run."""
        before, now = self._settings(self._folder / str(step))
        grows = now["objective.pair"] == "grid" and now["objective.growth"] != "fixed"  # over the run's length
        identity = (*IDENTITY, "total_steps") if grows and now["objective.method"] not in DENOISING else IDENTITY
        for key in (key for key in now if before.get(key, now[key]) != now[key]):
            if key.startswith(identity) and key not in MAY_CHANGE:
                raise UserError(
                    f"{self.workdir} has a run with config.{key} = {before[key]!r}, not {now[key]!r}: use "
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

    def _settings(self, place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """The fields of the config that a checkpoint was saved with, and of this run's."""
        return config_lib.flatten(checkpoint.read_meta(place)["config"]), config_lib.flatten(self._meta["config"])

    def _check_same_rules(self, place: Path, error: Exception) -> None:
        """Raises a UserError when the optimizer or the averages are others than those of the checkpoint."""
        before, now = self._settings(place)
        rules = ("optimizer.name", "optimizer.clip_norm", "ema.profiles")
        changed = [f"config.{key} was {before.get(key)!r}" for key in rules if before.get(key, now[key]) != now[key]]
        if changed:
            raise UserError(
                f"cannot resume from {place}: {', '.join(changed)} ({first_line(error)}); "
                "use another --workdir with --config.init.checkpoint to start from its weights"
            ) from error

    def _set_aside(self, steps: list[int]) -> None:
        """Renames checkpoints that are not whole, so that they are neither read nor in the way."""
        if not mesh.from_first(len(steps)):
            return
        if mesh.is_first_process():
            for step in steps:
                place, aside = self._folder / str(step), self._folder / f"{DAMAGED}{step}"
                reason = _lacks(place) or "cannot be read"
                shutil.rmtree(aside, ignore_errors=True)
                place.rename(aside)
                print(
                    f"checkpoint {place} {reason}: it is now {aside.name}; going back to the one before",
                    file=sys.stderr,
                )
        mesh.from_first(0)  # nobody looks before that is done
        self._manager.reload()

    def _give_up(self, step: int) -> None:
        place = self._folder / str(step)
        raise UserError(
            f"checkpoint {place} is damaged (it {_lacks(place) or 'cannot be read'}), and no other one is whole: "
            "remove it to begin anew, or restore it from a copy"
        )

    def _list_files(self) -> None:
        """Writes the list of files of the checkpoints that are finished, where there is none."""
        steps, self._unlisted = self._unlisted, []
        if not mesh.is_first_process():
            return
        for place in (self._folder / str(step) for step in steps):
            if (place / LIST).exists():
                continue
            sizes = {str(p.relative_to(place)): p.stat().st_size for p in sorted(place.rglob("*")) if p.is_file()}
            if sizes:  # not yet deleted again
                with contextlib.suppress(UserError, OSError):  # a full disk: there is no list, the checkpoint is there
                    files.write_text(place / LIST, json.dumps(sizes) + "\n")

    def _clean(self) -> None:
        """Removes what a failed save left, until the storage threads, which may go on writing it, are still."""
        patience = time.monotonic() + 10
        quiet = 0
        while quiet < 25 and time.monotonic() < patience:
            leftovers = list(self._folder.glob(TEMPORARY))
            for leftover in leftovers:
                shutil.rmtree(leftover, ignore_errors=True)
            quiet = 0 if leftovers else quiet + 1
            time.sleep(0.02)

    def _guard(self, action: Any) -> None:
        try:
            action()
        except Exception as error:
            self._failed, self._unlisted = True, []
            good = checkpoint.steps_in(self._folder)
            self._clean()
            newest = f"the newest good one is step {max(good)}" if good else "there is none yet"
            raise UserError(
                f"saving a checkpoint into {self._folder} failed ({first_line(error)}); {newest}"
            ) from error


@jax.jit
def _copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def _lacks(place: Path) -> str:
    """What is wrong with a checkpoint's files, as the end of a sentence about it; empty where nothing is."""
    for item in checkpoint.ITEMS:
        if not (place / item).is_dir():
            return f"lacks its {item}"
    try:
        sizes = json.loads((place / LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return ""  # the run was killed after the checkpoint was finished and before it was listed
    except (OSError, ValueError):
        return f"has a damaged {LIST}"
    for name, size in sizes.items():
        path = place / name
        if not path.is_file():
            return f"lacks the file {name}"
        if path.stat().st_size != size:
            return f"has {path.stat().st_size} bytes in {name}, not {size}"
    return ""


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
                kept |= set(kept_steps(config_lib.Config(checkpoint.read_meta(place)["config"])))
    return kept


def _kept(config: config_lib.Config, before: set[int]) -> policies.PreservationPolicy:
    keep = config.checkpoint
    kept = [policies.LatestN(keep.keep), policies.CustomSteps(sorted({*kept_steps(config), *before}))]
    if keep.keep_every_steps:
        kept.append(policies.EveryNSteps(keep.keep_every_steps))
    return policies.AnyPreservationPolicy(kept)


def _context_there(place: Path, context: dict[str, Any]) -> dict[str, Any]:
    """``context`` with the entries that go with a precision where the checkpoint holds them, without where it does not.

    A run may go on in another precision than it was saved in.
    """
    saved = checkpoint.item_tree(place, "training").get("context") or {}
    there = {name: leaf for name, leaf in context.items() if name in saved or name not in OF_PRECISION}
    extra = {name: saved[name] for name in OF_PRECISION if name in saved and name not in context}
    return there | jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), extra)


def _abstract(tree: Any) -> Any:
    return jax.tree.map(ocp.utils.to_shape_dtype_struct, tree)
