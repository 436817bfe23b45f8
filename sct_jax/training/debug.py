"""Looking at a run: what is about to go, one step on trial, a profile of a window of steps, and small batches."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview

from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.training import assembly, checkpoint, mesh, step
from sct_jax.training.reference_choice import describe
from sct_jax.training.reference_feed import open_feed
from sct_jax.training.start import assembled, first_state

GIB = 2**30


@dataclass(frozen=True)
class Options:
    """How to look at a run.

    Attributes:
      profile: steps after the start to skip, and number of steps to trace then, into ``WORKDIR/profile``, with the
        memory at their end.
      check_nans: one step a dispatch, and where one makes a NaN, again, operation by operation, to find which.
    """

    profile: tuple[int, int] | None = None
    check_nans: bool = False


def locate_nan(train_step: Callable[..., Any], state: Any, batch: dict[str, Any]) -> None:
    """Makes a step once more, operation by operation; the first that gives a NaN raises a FloatingPointError."""
    with jax.disable_jit(), jax.debug_nans(True):
        train_step(state, batch)


class Trace:
    """Starts and ends the profile at calls of the device; a window covers at least one of them."""

    def __init__(self, options: Options, workdir: Path, first: int, say: Callable[[str], None]):
        self._folder, self._say = workdir / "profile", say
        self._window = None if options.profile is None else (first + options.profile[0], options.profile[1])
        self._running = False

    def before(self, at: int, done: int, state: Any) -> None:
        """To be called before the dispatch of the steps from ``at`` to ``done``."""
        if self._window is None:
            return
        first, count = self._window
        if self._running and at >= first + count:
            jax.block_until_ready(state)
            self.close()
        elif not self._running and done > first:
            jax.block_until_ready(state)
            try:
                jax.profiler.start_trace(str(self._folder))
            except Exception as error:
                raise UserError(f"--profile: cannot trace into {self._folder}: {error}") from error
            self._running, self._window = True, (at, count)

    def close(self) -> None:
        """Ends a trace that is running; says so where it never began."""
        if not self._running:
            if self._window is not None:
                self._say(f"--profile: no trace, for the run ended before step {self._window[0]:,}")
                self._window = None
            return
        self._running, self._window = False, None
        name = "memory.pprof" if jax.process_count() == 1 else f"memory_{jax.process_index()}.pprof"
        try:
            jax.profiler.stop_trace()
            jax.profiler.save_device_memory_profile(str(self._folder / name))
        except Exception as error:  # the run goes on without it
            self._say(f"--profile: the trace into {self._folder} failed: {error}")
            return
        self._say(f"profile in {self._folder}: open it with xprof --logdir {self._folder} (pip install xprof)")


def overview(made: assembly.Assembly, spec: DataSpec, params: Any, mode: str) -> str:
    """What is about to run: data, devices, method and network."""
    config, shape = made.config, made.device_mesh.shape
    devices = f"{made.device_mesh.size} x {made.device_mesh.devices.flat[0].device_kind}"
    if jax.process_count() > 1:
        devices += f" of {jax.process_count()} processes"
    split = f", state split over {shape['fsdp']}" if shape["fsdp"] > 1 else ""
    count = int(parameter_overview.count_parameters(params))  # clu counts a scalar as 1.0
    references = describe(config, spec, made.device_mesh)
    return (
        f"data      {spec.num_examples:,} images {spec.image_size}x{spec.image_size}x{spec.channels}, "
        f"{spec.num_classes} classes, {mode}\n"
        f"devices   {devices}, batch {config.batch_size}{split}\n"
        f"method    {config.objective.method}, {config.total_steps:,} steps, "
        f"{config.optimizer.name} {config.optimizer.lr:g}\n"
        f"network   {config.model.name}, {count:,} parameters, {config.model.compute_dtype}"
        + (f"\nreference {references}" if references else "")
    )


def dry_run(config: Any) -> Iterator[str]:
    """Builds everything, compiles the train step, makes one step on the real data, and writes nothing.

    Yields:
      Lines for people: what runs, shapes, memory of one device, seconds, and the step's metrics.

    Raises:
      UserError: for whatever would stop the run at its start.
    """
    made, source = assembled(config)
    state, _ = first_state(made)
    feed = open_feed(made, source)
    try:
        yield overview(made, source.spec, state.params, feed.pipeline.mode)
        items = feed.items(0, 1)
        for name, item in items.items():
            yield f"item      {name} {item.dtype}{list(item.shape)} (steps, batch, ...), {item.sharding.spec}"
        began = time.perf_counter()
        lowered = step.make_dispatch(made.train_step, feed.fetch).lower(state, feed.arrays, items)
        program = lowered.compile()
        yield f"compiled  in {time.perf_counter() - began:.1f} s"
        yield from memory_of(program, state)
        began = time.perf_counter()
        _, metrics = jax.block_until_ready(program(state, feed.arrays, items))
        yield f"one step  in {time.perf_counter() - began:.3f} s, the first one"
        yield "metrics   " + "  ".join(f"{name} {float(value[0]):.4g}" for name, value in sorted(metrics.items()))
    finally:
        feed.pipeline.close()


def memory_of(program: Any, state: Any) -> Iterator[str]:
    """Lines about the memory of one device: the state's parts, and what the compiled step needs."""
    sizes = assembly.state_bytes(state).items()
    yield "memory    a device: " + ", ".join(f"{name} {gib(size)}" for name, size in sizes if size)
    found = program.memory_analysis()
    if found is not None:
        yield (
            f"          step: arguments {gib(found.argument_size_in_bytes)}, "
            f"temporary {gib(found.temp_size_in_bytes)}, program {gib(found.generated_code_size_in_bytes)}"
        )
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit:
        yield f"          there are {gib(limit)}"


def gib(count: float) -> str:
    """A number of bytes in GiB, or MiB where it is small."""
    return f"{count / GIB:.2f} GiB" if count >= GIB / 10 else f"{count / 2**20:.2f} MiB"


def shrink_batch(config: Any, workdir: str | Path) -> Iterator[str]:
    """Makes the batch of a run under ``--debug`` two images a device and micro-batch; a run that goes on keeps its own.

    Yields:
      A line that says so where something changed.
    """
    devices = mesh.make_mesh(config.mesh.data, config.mesh.fsdp).size
    small, before = 2 * devices * config.optimizer.accumulate, config.batch_size
    with contextlib.suppress(UserError):
        meta = checkpoint.read_meta(checkpoint.resolve(workdir))
        small = small if meta["config"]["batch_size"] == small else before
    if small < before:
        config.batch_size = small
        yield f"--debug: config.batch_size = {small}, not {before}; --config.batch_size={before} keeps it"


@contextlib.contextmanager
def memory_explained() -> Iterator[None]:
    """Turns running out of memory on the device into a UserError that says what to do."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"out of memory: {str(error).splitlines()[0][:120]}; halve config.batch_size, set "
            "config.optimizer.accumulate=2 (or 4, ...), split the state with config.mesh.fsdp, or make config.model "
            "smaller"
        ) from error
