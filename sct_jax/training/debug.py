"""Looking at a run while it goes on: a profile of a window of steps, its memory, and checks that cost time."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from sct_jax.errors import UserError


@dataclass(frozen=True)
class Options:
    """How to look at a run.

    Attributes:
      profile: first step and number of steps to trace into ``WORKDIR/profile``, with the memory at their end.
      check_nans: stop at the operation that first makes a NaN (``jax_debug_nans``), one step a dispatch.
    """

    profile: tuple[int, int] | None = None
    check_nans: bool = False


class Trace:
    """Starts and ends the profile at calls of the device; a window covers at least one of them."""

    def __init__(self, options: Options, workdir: Path, say: Callable[[str], None]):
        self._folder, self._say = workdir / "profile", say
        self._window = options.profile
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
        """Ends a trace that is running."""
        if not self._running:
            return
        self._running, self._window = False, None
        with contextlib.suppress(Exception):
            jax.profiler.stop_trace()
            jax.profiler.save_device_memory_profile(str(self._folder / "memory.pprof"))
            self._say(f"profile in {self._folder}: open it with xprof --logdir {self._folder} (pip install xprof)")
