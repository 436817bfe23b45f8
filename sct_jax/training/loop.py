"""The training loop: thin, because everything that matters is a function of ``(state, batch)``."""

import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from sct_jax import cards, files, models, objectives
from sct_jax import config as config_lib
from sct_jax.data import DataSpec, make_pipeline, open_source
from sct_jax.errors import UserError
from sct_jax.interop import weights as weights_lib
from sct_jax.schema import DENOISING
from sct_jax.training import checkpoint, mesh, step
from sct_jax.training.logs import MetricWriter, Progress
from sct_jax.training.observer import Observer
from sct_jax.training.reference_feed import ReferenceFeed
from sct_jax.training.state import TrainState


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the state is saved, and says the exit status to leave with."""

    def __init__(self, signum: int, saved_step: int):
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; step {saved_step} is saved, the same command resumes"
        )
        self.interrupted_exit_code = 128 + signum


def train(config: config_lib.Config, workdir: str | Path) -> TrainState:
    """Trains until ``config.total_steps``, resuming from the workdir when it holds a checkpoint.

    Args:
      config: a validated config.
      workdir: where config, metrics, samples and checkpoints go; made when missing.

    Returns:
      The final state.

    Raises:
      UserError: for anything the user can mend, and when loss or gradients stop being finite.
      Interrupted: after SIGINT or SIGTERM, with the state saved.
    """
    workdir = Path(workdir)
    device_mesh = mesh.make_mesh(config.mesh.data)
    mesh.check_divides(device_mesh, config.batch_size, config.optimizer.accumulate)
    checkpoint.kept_steps(config)  # refuses fractions too close, before anything is written
    data = config.data
    source = open_source(data.source, data.path, split=data.split, image_size=data.image_size)
    network = models.build(config.model, source.spec)
    teacher = load_teacher(config, source.spec)
    objective = objectives.build(config, network.denoise, teacher, device_mesh, network.uncertainty)
    checkpoint.writable(workdir)
    saver = checkpoint.Checkpointer(workdir, config, source.spec)
    state = start_state(config, network, objective, device_mesh, saver)
    first = int(state.step)
    observer = Observer(config, workdir, network, source, device_mesh)
    if first >= config.total_steps:
        print(f"{workdir} is already trained to step {first}", file=sys.stderr)
        saver.close()
        observer.finish(state, first)
        return state
    observer.check()
    _describe(workdir, config, state.params)
    pipeline = make_pipeline(
        source,
        seed=config.seed,
        batch_size=config.batch_size,
        mode=data.pipeline,
        resident_max_mib=data.resident_max_mib,
        workers=data.workers,
        prefetch=data.prefetch,
        start_step=first,
    )
    print_overview(config, source.spec, state, device_mesh, pipeline.mode)
    store = ReferenceFeed(config, source, pipeline, device_mesh)
    run = _Run(config, workdir, state, saver, pipeline, store, device_mesh)
    train_step = step.make_train_step(config, objective, device_mesh, network.project)
    run.dispatch = step.make_dispatch(train_step, store.fetch)
    run.observer = observer
    try:
        return run.until_done(first, 1 if store.on_host else steps_per_dispatch(config, network))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"out of memory: {str(error).splitlines()[0][:120]}; halve config.batch_size, set "
            "config.optimizer.accumulate=2 (or 4, ...), or make config.model smaller"
        ) from error
    finally:
        run.close()


def load_teacher(config: Any, spec: DataSpec) -> objectives.Teacher | None:
    """The diffusion model of ``objective.teacher`` where the transition asks for one.

    Raises:
      UserError: when there is none, it is no diffusion model, or its images or labels are others.
    """
    if not config.objective.transition.startswith("teacher"):
        return None
    teacher = weights_lib.load(config.objective.teacher)
    model, method, name = teacher.config.model, teacher.config.objective.method, config.objective.teacher
    if method not in DENOISING:
        raise UserError(f"config.objective.teacher = {name} is no diffusion model: it was trained by {method!r}")
    if model.conditional and not config.model.conditional:
        raise UserError(f"config.objective.teacher = {name} is class-conditional: set config.model.conditional = True")
    shape = lambda spec: (spec.image_size, spec.channels, spec.num_classes if model.conditional else 0)  # noqa: E731
    if shape(teacher.spec) != shape(spec):
        raise UserError(
            f"config.objective.teacher = {name} was trained on other data: image size, channels and classes are "
            f"{shape(teacher.spec)} there and {shape(spec)} here"
        )
    return objectives.Teacher(models.build(model, spec).denoise, teacher.params)


def start_state(
    config: Any, network: models.Network, objective: objectives.Objective, device_mesh: Any, saver: Any
) -> TrainState:
    """The state to go on from. Precedence: the workdir's newest checkpoint, ``init.checkpoint``, random weights.

    Where a run begins its model card is written: it says what the run began with.
    """
    key = step.room_key(config.seed, step.INIT)
    whole = mesh.replicated(device_mesh)
    fresh = jax.jit(lambda: step.initial_state(config, network.init(key), network.project), out_shardings=whole)

    def with_context(state: TrainState) -> TrainState:  # not in the jitted function: a teacher is no constant of it
        return replace(state, context=jax.device_put(objective.start(state.params), whole))

    if saver.latest_step() is not None:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
            jax.eval_shape(lambda: with_context(fresh())),
        )
        state = saver.restore(like)
        saver.check_config()
        print(f"resuming from step {int(state.step)}", file=sys.stderr)
        return state
    if not config.init.checkpoint:
        cards.write(saver.workdir, cards.make(None, config))
        return with_context(fresh())
    found = weights_lib.load(config.init.checkpoint, config.init.ema)
    weights = weights_lib.start_from(found, jax.eval_shape(network.init, key), config.model)
    cards.write(saver.workdir, cards.make(weights_lib.source(found), config))
    print(f"starting from {found.origin} ({found.profile})", file=sys.stderr)
    if config.model.boundary != found.config.model.boundary:
        edge = f"from {found.config.model.boundary!r} to {config.model.boundary!r}"
        print(f"model.boundary goes {edge}: the denoiser becomes the identity at another noise level", file=sys.stderr)
    initial = jax.jit(lambda weights: step.initial_state(config, weights, network.project), out_shardings=whole)
    return with_context(initial(jax.device_put(weights, whole)))


def steps_per_dispatch(config: Any, network: models.Network) -> int:
    """Steps in one call of the device: what the config asks for or suits the device, reduced to divide every period.

    Calls end at its multiples: logs, saves and samples fall between them, and a resumed run makes the same calls.
    """
    wanted = config.log.steps_per_dispatch
    if not wanted:
        wanted = 1 if network.uses_convolution and jax.default_backend() == "cpu" else 50
    periods = (
        config.log.every_steps,
        config.checkpoint.every_steps,
        config.sampling.every_steps,
        config.evaluation.every_steps,
    )
    common = math.gcd(*periods)
    return max(divisor for divisor in range(1, min(wanted, common) + 1) if common % divisor == 0)


class _Run:
    """What the loop holds on to. ``state`` is always the newest; ``pending`` are metrics the host has not read yet."""

    dispatch: Callable[..., Any]
    observer: Observer

    def __init__(
        self,
        config: Any,
        workdir: Path,
        state: TrainState,
        saver: checkpoint.Checkpointer,
        pipeline: Any,
        store: ReferenceFeed,
        device_mesh: Any,
    ):
        self.config, self.workdir, self.saver, self.pipeline = config, workdir, saver, pipeline
        self.state, self.pending, self.window = state, [], []
        self.arrays, self.kept = store.arrays, frozenset(checkpoint.kept_steps(config))
        self.complete = store.complete
        self.item_sharding = mesh.split_batch(device_mesh, axis=1)
        self.writer = MetricWriter(
            workdir,
            tensorboard=config.log.tensorboard,
            wandb_project=config.log.wandb_project,
            config=config_lib.to_dict(config),
        )
        self.progress = Progress(config.total_steps, int(state.step), config.batch_size)
        self.seconds = time.perf_counter()
        self.signal: int | None = None
        self.saved = int(state.step) if saver.latest_step() is not None else None

    def until_done(self, first: int, stride: int) -> TrainState:
        config = self.config
        with _Signals(self):
            done = first
            self.progress.say("compiling the training step; for a large network this takes minutes")
            while done < config.total_steps:
                at, done = done, min(done - done % stride + stride, config.total_steps)
                items = self._items(at, done - at)
                self.state, metrics = self.dispatch(self.state, self.arrays, items)
                self.pending.append((at, metrics))
                if len(self.pending) > 1:  # read one dispatch late: the device never waits for the host
                    self._read(*self.pending.pop(0))
                self.progress.advance(done)
                self._after(done)
                if self.signal is not None:
                    self._leave(done)
            self.saver.wait()
        return self.state

    def _items(self, at: int, count: int) -> Any:
        try:
            return jax.device_put(self.complete(at, self.pipeline.next(at, count)), self.item_sharding)
        except Exception:
            if self.signal is None:
                raise
            self._leave(at)  # Ctrl-C reaches reader processes too, and stops them first

    def _leave(self, done: int) -> NoReturn:
        assert self.signal is not None
        self._save(done)
        self.saver.wait()
        raise Interrupted(self.signal, done)

    def _after(self, done: int) -> None:
        config, last = self.config, done == self.config.total_steps
        if last or done % config.checkpoint.every_steps == 0 or done in self.kept:
            self._save(done)
        if last or done % config.log.every_steps == 0:
            self._log(done)
        began = time.perf_counter()
        if last or _due(done, config.sampling.every_steps):
            self.observer.draw_grids(self.state, done)
        if _due(done, config.evaluation.every_steps) or (last and config.evaluation.every_steps):
            for values in self.observer.measure(self.state):
                self.writer.write("evaluation", done, values)
                shown = {k: f"{v:.4g}" for k, v in values.items() if isinstance(v, float)}
                self.progress.say(f"step {done:,} {values['sampling_steps']}-step: {_pairs(shown)}")
        if last:
            self.observer.finish(self.state, done)
        self.progress.last_time += time.perf_counter() - began  # images/s are those of training

    def _read(self, at: int, metrics: dict[str, jax.Array]) -> None:
        """Fetches the metrics of the steps from ``at``, and stops the run at the first that is not finite."""
        fetched = {name: np.asarray(values) for name, values in metrics.items()}
        for name in ("loss", "grad_norm"):
            bad = np.flatnonzero(~np.isfinite(fetched[name]))
            if bad.size:
                self.saver.wait()
                where = f"{name} is {fetched[name][bad[0]]} at step {at + int(bad[0])}"
                advice = "try a smaller optimizer.lr or optimizer.clip_norm=1"
                raise UserError(f"{where}: training stopped; {self._last_good()}; {advice}")
        self.window.append(fetched)

    def _last_good(self) -> str:
        return "nothing was saved yet" if self.saved is None else f"the last good checkpoint is step {self.saved}"

    def _flush(self) -> None:
        while self.pending:
            self._read(*self.pending.pop(0))

    def _log(self, done: int) -> None:
        self._flush()
        names = self.window[0] if self.window else {}
        means = {name: float(np.mean(np.concatenate([part[name] for part in self.window]))) for name in names}
        self.window = []
        rate = self.progress.report(done, means["loss"])
        seconds = time.perf_counter() - self.seconds
        self.writer.write("train", done, {"seconds": round(seconds, 3), "images_per_second": round(rate, 1)} | means)

    def _save(self, done: int) -> None:
        self._flush()  # never save a state whose loss was not looked at
        if self.saved != done:
            if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(self.state.params)):
                raise UserError(f"parameters at step {done} are not finite: training stopped; {self._last_good()}")
            self.saver.save(self.state)
            self.saved = done

    def close(self) -> None:
        self.progress.close()
        self.writer.close()
        self.pipeline.close()
        if sys.exc_info()[0] is None:
            self.saver.close()
        else:  # a save under way is finished, and its failure must not hide what happened
            with contextlib.suppress(UserError):
                self.saver.close()


class _Signals:
    """SIGINT and SIGTERM ask the loop to save and leave; a second SIGINT leaves at once."""

    def __init__(self, run: _Run):
        self.run, self.old = run, {}

    def __enter__(self) -> None:
        try:
            for signum in (signal.SIGINT, signal.SIGTERM):
                self.old[signum] = signal.signal(signum, self._note)
        except ValueError:  # not in the main thread: the caller's signals are not ours
            self.old = {}

    def _note(self, signum: int, frame: Any) -> None:
        if self.run.signal is not None:
            raise KeyboardInterrupt
        self.run.signal = signum
        self.run.progress.say(f"{signal.Signals(signum).name}: saving before leaving")

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self.old.items():
            signal.signal(signum, handler)


def print_overview(config: Any, spec: DataSpec, state: TrainState, device_mesh: Any, mode: str) -> None:
    """What is about to run: data, devices, method and network."""
    devices = f"{device_mesh.size} x {device_mesh.devices.flat[0].device_kind}"
    count = int(parameter_overview.count_parameters(state.params))  # clu counts a scalar as 1.0
    print(
        f"data      {spec.num_examples:,} images {spec.image_size}x{spec.image_size}x{spec.channels}, "
        f"{spec.num_classes} classes, {mode}\n"
        f"devices   {devices}, batch {config.batch_size}\n"
        f"method    {config.objective.method}, {config.total_steps:,} steps, "
        f"{config.optimizer.name} {config.optimizer.lr:g}\n"
        f"network   {config.model.name}, {count:,} parameters, {config.model.compute_dtype}",
        file=sys.stderr,
    )


def _describe(workdir: Path, config: config_lib.Config, params: Any) -> None:
    files.write_text(workdir / "config.json", json.dumps(config_lib.to_dict(config), indent=2) + "\n")
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    files.write_text(workdir / "parameters.txt", overview + "\n")


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _pairs(values: dict[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in values.items())
