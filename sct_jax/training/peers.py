"""One of several processes among its peers: they end together when one of them stops or dies.

JAX waits in its collectives for all processes. So one that fails says so in the key-value store of the coordinator
(process 0) before it leaves, and every process watches for such a notice; process 0 also watches for peers that fell
silent. A job ends within a bounded time, each process with one line and an exit status.
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from sct_jax.errors import RESTART

_SECONDS_TO_READ = 5.0  # how long process 0 waits for the others to have read why it leaves
_FROM_PEERS = re.compile(
    "gloo|nccl|unavailable|deadline_exceeded|aborted|cancelled|connection|socket|barrier|coordination|distributed", re.I
)

_COLLECTIVE = re.compile("gloo|nccl", re.I)


class Group:
    """This process among its peers, after ``jax.distributed.initialize``."""

    def __init__(self, patience: float):
        import jax
        from jax._src import distributed  # the client of the key-value store has no public name

        self.index, self.count, self.patience = jax.process_index(), jax.process_count(), patience
        self.client: Any = distributed.global_state.client
        self.address = distributed.global_state.coordinator_address or ""
        self.ending, self.done = threading.Lock(), threading.Event()
        self.heard = {str(index): ("", time.monotonic()) for index in range(self.count)}
        self.notice: tuple[str, int] | None = None
        self.aborts = Aborts(self._explain_abort)
        self.thread = threading.Thread(target=self._watch, name="peers", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Waits until all processes are done, however long, and takes leave of them."""
        import jax

        self.client.wait_at_barrier("sct_jax/done", timeout_in_ms=7 * 24 * 3600 * 1000)
        self.done.set()
        self.thread.join()
        jax.distributed.shutdown()
        self.aborts.restore()

    def fail(self, error: BaseException, complain: Callable[[BaseException], int | None]) -> NoReturn:
        """Ends this process after an exception and tells the others; after one that came from a peer, says which."""
        if _from_peers(error):
            time.sleep(self.patience + 2 * _SECONDS_TO_READ)  # the watch ends this process when it knows who is gone
            self._leave(self._gone("another process"), RESTART)
        self._take_end()
        status = complain(error)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if status is None:
            traceback.print_exception(error)
            reason, status = f"{type(error).__name__}: {reason}", 1
        self._tell(f"process {self.index} of {self.count} stopped: {reason}", 2 if status == 2 else RESTART)
        _exit(status)

    def _watch(self) -> None:
        """Says that this process is alive; reads notices; process 0 also listens for who has fallen silent."""
        period = min(1.0, self.patience / 5)
        beat, answered = 0, time.monotonic()
        while not self.done.wait(period):
            beat += 1
            try:
                self.client.key_value_set(f"sct_jax/alive/{self.index}", str(beat), allow_overwrite=True)
                self.notice = self._read_notice()
                silent = self._silent() if self.index == 0 and self.notice is None else []
            except Exception:  # the coordinator does not answer; JAX aborts where the connection is closed
                if time.monotonic() - answered < self.patience or self.done.is_set():
                    continue
                self._leave(self._gone(f"process 0 of {self.count}"), RESTART)
            answered = time.monotonic()
            if self.notice is not None:
                time.sleep(2 * period)  # the same mistake may be found here, and is then better told by its finder
                self._leave(*self.notice)
            if silent:
                self._leave(self._gone(f"process {', '.join(silent)} of {self.count}"), RESTART, silent)

    def _silent(self) -> list[str]:
        """The ids of processes not heard for too long, by the clock of this one."""
        now = time.monotonic()
        for key, beat in self.client.key_value_dir_get("sct_jax/alive"):
            index = key.rpartition("/")[2]
            if self.heard[index][0] != beat:
                self.heard[index] = (beat, now)
        late = [index for index, (_, when) in self.heard.items() if now - when > self.patience and index != "0"]
        return sorted(late, key=int)

    def _read_notice(self) -> tuple[str, int] | None:
        found = self.client.key_value_dir_get("sct_jax/end")
        return tuple(json.loads(found[0][1])) if found else None

    def _tell(self, line: str, status: int, silent: Iterable[str] = ()) -> None:
        """Leaves the first notice for the others; process 0 stays until all are gone: the store goes with it."""
        with contextlib.suppress(Exception):
            self.client.key_value_set("sct_jax/end/notice", json.dumps([line, status]))
        with contextlib.suppress(Exception):
            for index in (self.index, *silent):
                self.client.key_value_set(f"sct_jax/gone/{index}", "")
            until = time.monotonic() + _SECONDS_TO_READ
            while self.index == 0 and time.monotonic() < until:
                if len(self.client.key_value_dir_get("sct_jax/gone")) == self.count:
                    return
                time.sleep(0.1)

    def _leave(self, line: str, status: int, silent: Iterable[str] = ()) -> NoReturn:
        self._take_end()
        print(f"sct-jax: {line}", file=sys.stderr)
        self._tell(line, status, silent)
        _exit(status)

    def _take_end(self) -> None:
        """One thread tells why this process ends; the others wait until it has."""
        if not self.ending.acquire(blocking=False):
            time.sleep(10 * _SECONDS_TO_READ)

    def _gone(self, who: str) -> str:
        return f"{who} is gone; stopping; restart the job: it resumes from the last checkpoint"

    def _explain_abort(self) -> tuple[str, int]:
        self._take_end()
        if self.notice is not None:
            return self.notice
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=2).close()
        except OSError:
            return self._gone(f"process 0 of {self.count}"), RESTART
        return f"JAX gave up (see above); {self._gone('most likely a process')}", RESTART


def _from_peers(error: BaseException | None) -> bool:
    """Whether an exception, or one that it came from, is that of a collective whose peer left."""
    import jax

    while error is not None:
        if isinstance(error, jax.errors.JaxRuntimeError) and _FROM_PEERS.search(str(error)):
            return True
        if isinstance(error, ValueError) and _COLLECTIVE.search(str(error)):  # where the result is read
            return True
        error = error.__cause__ or error.__context__
    return False


def _exit(status: int) -> NoReturn:
    """At once: JAX would wait at exit for processes that are stuck in a collective."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Aborts:
    """What JAX's C++ does when it gives up is ``abort()``: here it becomes one line and an exit status.

    A Python signal handler would run too late, in the main thread, which waits in a collective. ``abort`` is called by
    a thread like any other function, so this one may run Python.
    """

    def __init__(self, explain: Callable[[], tuple[str, int]]):
        def handle(signum: int) -> None:
            line, status = explain()
            os.write(2, f"sct-jax: {line}\n".encode())
            os._exit(status)

        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(handle)
        self._signal = ctypes.CDLL(None).signal
        self._signal.argtypes, self._signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
        self._before = self._signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

    def restore(self) -> None:
        self._signal(signal.SIGABRT, self._before)
