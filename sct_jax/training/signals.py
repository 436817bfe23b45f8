"""SIGINT and SIGTERM ask the loop to save and leave; of several processes all leave after the same step."""

import signal
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from sct_jax.training import mesh


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived and the state is saved, and says the exit status to leave with."""

    def __init__(self, signum: int, saved_step: int):
        super().__init__(
            f"stopped by {signal.Signals(signum).name}; step {saved_step} is saved, the same command resumes"
        )
        self.interrupted_exit_code = 128 + signum


class StopRequest:
    """Notes the first signal; a second one leaves at once. A context: outside of it signals do what they did before.

    Alone a process leaves as soon as it can. Several tell each other inside the train step: ``flags`` goes into it, the
    largest of all comes out with the metrics, and all processes read those of one step at the same place.
    """

    def __init__(self, device_mesh: Any, say: Callable[[str], None]):
        self.signum: int | None = None
        self._mesh, self._say, self._old = device_mesh, say, {}
        self._alone = jax.process_count() == 1
        self._flags: dict[int, jax.Array] = {}
        self._agreed = 0

    @property
    def arrived(self) -> int | None:
        """The signal to leave by now, None while there is none."""
        return self.signum if self._alone else self._agreed or None

    @property
    def flags(self) -> jax.Array | None:
        """What this process tells the others, int32 ``[devices]`` of them all; None where it is alone."""
        if self._alone:
            return None
        value = self.signum or 0
        if value not in self._flags:
            whole = np.full(self._mesh.size, value, np.int32)
            where = mesh.split_batch(self._mesh)
            self._flags[value] = jax.make_array_from_callback(whole.shape, where, lambda index: whole[index])
        return self._flags[value]

    def hear(self, largest: Any) -> None:
        """Takes what came out of a step: the largest flag of all processes."""
        self._agreed = max(self._agreed, int(largest))

    def __enter__(self) -> "StopRequest":
        try:
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._old[signum] = signal.signal(signum, self._note)
        except ValueError:  # not in the main thread: the caller's signals are not ours
            self._old = {}
        return self

    def _note(self, signum: int, frame: Any) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt
        self.signum = signum
        self._say(f"{signal.Signals(signum).name}: saving before leaving")

    def __exit__(self, *_: Any) -> None:
        for signum, handler in self._old.items():
            signal.signal(signum, handler)
