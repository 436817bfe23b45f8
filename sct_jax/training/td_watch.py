"""Watches the TD signal of a run in low precision, and decides which octaves of ``t`` train on a derivative.

Measured at the first step, where the gap ``t − r`` enters a new stage, and every ``10 × log.every_steps`` steps
(`objectives/td_signal.py`). The decision lies in the state's context, so that a resumed run has it; an octave once
given to the derivative keeps it, for gaps only shrink.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data.spec import unit_range
from sct_jax.objectives import bootstrap, td_signal
from sct_jax.objectives.pairs import grid_points
from sct_jax.schema import DENOISING
from sct_jax.training import assembly, mesh, step
from sct_jax.training.state import TrainState

PERIODS = 10  # of log.every_steps between two measurements


class TDWatch:
    """Measures on the same images throughout; where the difference is float32's own there is nothing to watch."""

    def __init__(self, made: assembly.Assembly, source: Any, say: Callable[[str], None], write: Callable[..., None]):
        """``say`` prints a line; ``write(kind, step, values)`` logs a measurement (``logs.MetricWriter.write``)."""
        config = made.config
        self._config, self._mesh, self._say, self._write = config, made.device_mesh, say, write
        self._form = bootstrap.form(config) if config.objective.method not in DENOISING else "none"
        is_exact = self._form == "evaluated" and config.model.compute_dtype == "float32"
        self.watches = self._form != "none" and config.objective.bootstrap != "ema" and not is_exact
        self._warned = False
        if not self.watches:
            return
        network, whole = made.network, mesh.replicated(made.device_mesh)
        places = np.linspace(0, len(source) - 1, td_signal.IMAGES).astype(int)
        images, labels = zip(*(source[int(place)] for place in places), strict=True)
        self._images = mesh.put(unit_range(np.stack(images)), whole)
        self._labels = mesh.put(np.asarray(labels, np.int32), whole)
        exact = models.build(config_lib.replaced(config, {"model.compute_dtype": "float32"}).model, source.spec).denoise
        self._stage = stages(config)
        measure = td_signal.build(config, network.denoise, network.forward or network.denoise, exact)
        self._measure = jax.jit(measure, out_shardings=whole)

    def begins(self, state: TrainState) -> bool:
        """Whether to measure before the first step of this process: a run that begins, or one not looked at before."""
        if self._form == "mixed":
            return bool(np.any(np.asarray(state.context[bootstrap.DECISION]) == bootstrap.UNDECIDED))
        return self.watches and int(state.step) == 0

    def due(self, before: int, done: int) -> bool:
        """Whether to measure after step ``done``, the last look having been possible after step ``before``."""
        if not self.watches:
            return False
        every = PERIODS * self._config.log.every_steps
        return done // every > before // every or self._stage(done) > self._stage(before)

    def look(self, state: TrainState, done: int) -> TrainState:
        """Measures, logs and decides; the state with the decision."""
        chosen = np.asarray(state.context[bootstrap.DECISION]) if self._form == "mixed" else None
        key = step.room_key(self._config.seed, step.SIGNAL)
        signal = jax.tree.map(np.asarray, self._measure(state.params, self._images, self._labels, key, state.step))
        if self._form == "mixed":
            before, chosen = chosen, (chosen == 1) | signal.better_as_derivative()
            if (chosen != before).any():
                decided = mesh.put(chosen.astype(np.int8), mesh.replicated(self._mesh))
                state = replace(state, context=state.context | {bootstrap.DECISION: decided})
            if (chosen != (before == 1)).any():
                self._say(_decision(done, chosen, signal))
        trained = signal.trained(self._form, chosen)
        self._write("td_signal", done, _record(signal, trained))
        self._warn(done, signal, trained)
        return state

    def _warn(self, done: int, signal: td_signal.Signal, trained: np.ndarray) -> None:
        mean, dtype = signal.mean(trained), self._config.model.compute_dtype
        if mean >= td_signal.LOST or self._warned:
            return
        self._warned = True
        use = "config.model.compute_dtype = 'float32'"
        if self._form == "evaluated":
            use = f"config.objective.difference = 'auto' or {use}"
        elif self._form == "tangent":
            use = "config.objective.difference = 'auto': the gaps t - r are still too large for a derivative"
        self._say(
            f"warning: step {done:,}: td_signal is {mean:.2f} in {dtype}, the TD difference is mostly lost; set {use}"
        )


def stages(config: Any) -> Callable[[int], int]:
    """How often the gap ``t − r`` has shrunk by ``objective.q`` (of grids: halved) after so many steps.

    Without the device, which the loop must not wait for: a grid's are looked up in a table, made once.
    """
    objective = config.objective
    if objective.pair == "grid":
        points = grid_points(objective, config.total_steps, np.arange(config.total_steps + 1))
        table = np.log2(np.broadcast_to(points, config.total_steps + 1) - 1).astype(int)
        return lambda done: int(table[done])
    return lambda done: done // objective.stage_steps if objective.stage_steps else 0


def _record(signal: td_signal.Signal, trained: np.ndarray) -> dict[str, Any]:
    """What is logged: means over training's noise levels, and by octave (its lower end) where training goes there."""
    record = {
        "td_signal": signal.mean(trained),
        "td_signal_evaluated": signal.mean(signal.evaluated),
        "td_signal_tangent": signal.mean(signal.tangent),
    }
    met = [(2.0**power, place) for place, power in enumerate(bootstrap.OCTAVES) if signal.share[place] > 0]
    record |= {f"td_signal_at_{low:g}": float(trained[place]) for low, place in met}
    return {name: round(value, 5) for name, value in record.items()}


def _decision(done: int, chosen: np.ndarray, signal: td_signal.Signal) -> str:
    """Which noise levels train on a derivative, as runs of octaves."""
    edges = ["0", *(f"{2.0**power:g}" for power in bootstrap.OCTAVES[1:])]
    runs = []
    for derived, group in itertools.groupby(range(len(chosen)), key=lambda place: bool(chosen[place])):
        places = [*group]
        if derived:
            first, last = places[0], places[-1]
            runs.append(f"{edges[first]} up" if last + 1 == len(edges) else f"{edges[first]} to {edges[last + 1]}")
    return (
        f"step {done:,}: the TD difference is a derivative at noise levels {', '.join(runs)} "
        f"(td_signal {signal.mean(signal.trained('mixed', chosen)):.3f}, evaluated {signal.mean(signal.evaluated):.3f})"
    )
