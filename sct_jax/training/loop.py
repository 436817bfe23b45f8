"""The training loop: thin, because everything that matters is a function of ``(state, batch)``."""

import contextlib
import math
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from clu import parameter_overview

from sct_jax import config as config_lib
from sct_jax import files, models
from sct_jax.data.reading import Watch
from sct_jax.errors import UserError
from sct_jax.objectives.distances import LPIPS
from sct_jax.training import assembly, checkpoint, mesh, step
from sct_jax.training.debug import Options, Trace, locate_nan, memory_explained, overview
from sct_jax.training.lock import WorkdirLock
from sct_jax.training.logs import MetricWriter, Progress, is_written
from sct_jax.training.observer import Observer
from sct_jax.training.reference_choice import settled_before
from sct_jax.training.reference_feed import open_feed
from sct_jax.training.saver import Checkpointer, kept_steps
from sct_jax.training.signals import Interrupted, StopRequest
from sct_jax.training.start import assembled, start_state
from sct_jax.training.state import TrainState
from sct_jax.training.td_watch import TDWatch

CHECKED = ("loss", "grad_norm")  # the metrics that stop a run when they are not finite


def train(config: config_lib.Config, workdir: str | Path, options: Options | None = None) -> TrainState:
    """Trains until ``config.total_steps``, resuming from the workdir when it holds a checkpoint.

    With several processes (``training.distributed``) all call it; the first writes what is not a checkpoint.

    Args:
      config: a validated config.
      workdir: where config, metrics, samples and checkpoints go; made when missing. All processes see the same one.
      options: how to look at the run while it goes on.

    Returns:
      The final state.

    Raises:
      UserError: for anything the user can mend, and when loss or gradients stop being finite.
      Interrupted: after SIGINT or SIGTERM, with the state saved.
      InputStalled: when no data came for ``data.timeout`` seconds.
    """
    with memory_explained():
        return _train(config, Path(workdir), options or Options())


def _train(config: config_lib.Config, workdir: Path, options: Options) -> TrainState:
    made, source = assembled(settled_before(config, workdir))
    checkpoint.writable(workdir)
    lock = WorkdirLock(workdir) if mesh.is_first_process() else None
    try:
        return _train_alone(made, source, workdir, options, lock)
    finally:
        if lock is not None:
            lock.release()


def _train_alone(
    made: assembly.Assembly, source: Any, workdir: Path, options: Options, lock: WorkdirLock | None
) -> TrainState:
    """Trains in a workdir that no other run is in; ``lock`` is the first process's."""
    config = made.config
    saver = Checkpointer(workdir, config, source.spec)
    state = start_state(made, saver)
    first = int(state.step)
    observer = Observer(config, workdir, made.network, source, made.device_mesh)
    if first >= config.total_steps:
        if mesh.is_first_process():
            print(f"{workdir} is already trained to step {first}", file=sys.stderr)
        saver.close()
        _complete(config, workdir, observer, state)
        return state
    observer.check()
    if mesh.is_first_process():
        _describe(workdir, config, state.params)
    run = _Run(made, workdir, state, saver, observer, source, options, lock)
    try:
        return run.until_done(first)
    finally:
        run.close()


def _complete(config: config_lib.Config, workdir: Path, observer: Observer, state: TrainState) -> None:
    """What a kill after the last save kept from a run: its last measurement and pictures."""
    first = int(state.step)
    if config.evaluation.every_steps and not mesh.from_first(is_written(workdir, "evaluation", first)):
        writer = MetricWriter(workdir, first, tensorboard=config.log.tensorboard)
        for values in observer.measure(state):
            writer.write("evaluation", first, values)
        writer.close()
    observer.finish(state, first)


def steps_per_dispatch(config: Any, network: models.Network) -> int:
    """Steps in one call of the device: what the config asks for or suits the device, reduced to divide every period.

    Calls end at its multiples: logs, saves and samples fall between them, and a resumed run makes the same calls.
    """
    wanted = config.log.steps_per_dispatch
    if not wanted:
        convolves = network.uses_convolution or config.objective.distance == LPIPS
        wanted = 1 if convolves and jax.default_backend() == "cpu" else 50
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

    def __init__(
        self,
        made: assembly.Assembly,
        workdir: Path,
        state: TrainState,
        saver: Checkpointer,
        observer: Observer,
        source: Any,
        options: Options,
        lock: WorkdirLock | None,
    ):
        config, first = made.config, int(state.step)
        self.lock = lock
        self.config, self.workdir, self.saver, self.observer = config, workdir, saver, observer
        self.state, self.pending, self.window = state, [], []
        self.progress = Progress(config.total_steps, first, config.batch_size)
        self.stop = StopRequest(made.device_mesh, self.progress.say)
        self.kept = frozenset(kept_steps(config))
        self.saved = first or None  # a run that begins has saved nothing
        watch = Watch(config.data.patience, config.data.timeout, self.progress.say, self._poll)
        self.feed = open_feed(made, source, first, watch)
        self.progress.say(overview(made, source.spec, state.params, self.feed.pipeline.mode))
        self.dispatch = step.make_dispatch(made.train_step, self.feed.fetch, donate=not options.check_nans)
        self.train_step, self.check_nans = made.train_step, options.check_nans
        alone = self.feed.on_host or options.check_nans
        self.stride = 1 if alone else steps_per_dispatch(config, made.network)
        self.trace = Trace(options, workdir, first, self.progress.say)
        self.writer = MetricWriter(
            workdir,
            first,
            tensorboard=config.log.tensorboard,
            wandb_project=config.log.wandb_project,
            config=config_lib.to_dict(config),
        )
        self.td_watch = TDWatch(made, source, self.progress.say, self.writer.write)
        self.seconds = time.perf_counter()

    def until_done(self, first: int) -> TrainState:
        config = self.config
        with self.stop:
            done = first
            self.progress.say("compiling the training step; for a large network this takes minutes")
            if self.td_watch.begins(self.state):
                self.state = self.td_watch.look(self.state, done)
            while done < config.total_steps:
                at, done = done, min(done - done % self.stride + self.stride, config.total_steps)
                items = self._items(at, done - at)
                self.trace.before(at, done, self.state)
                before = self.state
                self.state, metrics = self.dispatch(before, self.feed.arrays, items, self.stop.flags)
                if self.check_nans and not all(np.isfinite(metrics[name]).all() for name in CHECKED):
                    item = jax.tree.map(lambda x: x[0], items)
                    locate_nan(self.train_step, before, self.feed.fetch(self.feed.arrays, item))
                self.pending.append((at, metrics))
                if len(self.pending) > 1:  # read one dispatch late: the device never waits for the host
                    self._read(*self.pending.pop(0))
                self.progress.advance(done)
                if self.td_watch.due(at, done):
                    self.state = self.td_watch.look(self.state, done)
                self._after(done)
                if self.stop.arrived:
                    self._leave(done)
            self.saver.wait()
        return self.state

    def _items(self, at: int, count: int) -> Any:
        try:
            return self.feed.items(at, count)
        except Exception:  # Ctrl-C reaches reader processes too, and stops them first
            if not self.stop.arrived:
                raise
            self._leave(at)

    def _poll(self) -> None:
        """Breaks the wait for data off when the run has to stop."""
        if self.stop.arrived:
            raise InterruptedError

    def _leave(self, done: int) -> NoReturn:
        assert self.stop.arrived
        self._save(done)
        self.saver.wait()
        raise Interrupted(self.stop.arrived, done)

    def _after(self, done: int) -> None:
        config, last = self.config, done == self.config.total_steps
        logs = last or done % config.log.every_steps == 0
        saves = last or done % config.checkpoint.every_steps == 0 or done in self.kept
        if self.lock is not None:
            self.lock.check()
        if logs or saves:
            self._flush()  # never log or save a state whose loss was not looked at
        try:
            if logs:
                self._log(done)
        finally:  # what could not be logged is no reason to lose the steps
            if saves:
                self._save(done)
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
        if "flag" in fetched:
            self.stop.hear(fetched.pop("flag"))
        for name in CHECKED:
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
        names = self.window[0] if self.window else {}
        means = {name: float(np.mean(np.concatenate([part[name] for part in self.window]))) for name in names}
        self.window = []
        rate = self.progress.report(done, means["loss"])
        seconds = time.perf_counter() - self.seconds
        self.writer.write("train", done, {"seconds": round(seconds, 3), "images_per_second": round(rate, 1)} | means)

    def _save(self, done: int) -> None:
        self._flush()
        if self.saved != done:
            if not bool(_all_finite(self.state.params)):
                raise UserError(f"parameters at step {done} are not finite: training stopped; {self._last_good()}")
            self.saver.save(self.state)
            self.saved = done

    def close(self) -> None:
        self.trace.close()
        self.progress.close()
        self.writer.close()
        self.feed.pipeline.close()
        if sys.exc_info()[0] is None:
            self.saver.close()
        else:  # a save under way is finished, and its failure must not hide what happened
            with contextlib.suppress(UserError):
                self.saver.close()


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]))


def _describe(workdir: Path, config: config_lib.Config, params: Any) -> None:
    files.write_json(workdir / "config.json", config_lib.to_dict(config))
    overview = parameter_overview.get_parameter_overview(params, include_stats=False)
    files.write_text(workdir / "parameters.txt", overview + "\n")


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _pairs(values: dict[str, str]) -> str:
    return "  ".join(f"{name} {value}" for name, value in values.items())
