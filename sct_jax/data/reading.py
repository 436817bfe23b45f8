"""Reading ahead: threads, or Grain's processes, fill a queue, and the wait for it is watched.

Whoever waits stays in the main thread and wakes several times a second, so that signals get through and a reader that
hangs is reported, and given up in the end, instead of being waited for without a word. Threads are daemons: one that
hangs in a read cannot keep the program from ending.
"""

import collections
import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

from sct_jax.errors import RESTART

POLL_SECONDS = 0.1
_WORKER_NAME = "grain-process-prefetch"
_DEATHS = {
    -signal.SIGKILL: "killed, as when memory runs out",
    -signal.SIGBUS: "/dev/shm is too small; give the container more, or lower data.workers or data.prefetch",
}


class InputStalled(RuntimeError):
    """No data came for ``Watch.timeout`` seconds, or a reader process died. A restart may help: exit status 75."""

    interrupted_exit_code = RESTART


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Watch:
    """What happens while a streamed pipeline waits for data.

    Attributes:
      patience: seconds from one report to the next.
      timeout: seconds after which ``InputStalled`` is raised; 0: never.
      say: told what is waited for, one line.
      poll: called several times a second; may raise to leave (a signal arrived). The batch is not lost: asked again for
        the same step, the pipeline goes on waiting for it.
    """

    patience: float = 60.0
    timeout: float = 1800.0
    say: Callable[[str], None] = _to_stderr
    poll: Callable[[], None] = lambda: None


class ReadAhead:
    """The batches of the steps from ``start_step`` on, ``read(step)`` each, read ahead of ``take``.

    Args:
      read: makes the batch of a step, arrays by name; can be pickled when there are workers.
      start_step: the first step.
      workers: processes that read; 0: threads of this one.
      prefetch: batches read ahead, by each process when there are some.
    """

    def __init__(self, read: Callable[[int], dict[str, Any]], start_step: int, workers: int, prefetch: int):
        self._read, self._start, self._workers, self._prefetch = read, start_step, workers, prefetch
        self._step, self._stopped = start_step, False
        self._ready: queue.Queue[Any] = queue.Queue(1)
        self._iterator: Any = None
        self._others = {child.pid for child in _reader_processes()}
        threading.Thread(target=self._fill, name="sct-jax-input", daemon=True).start()

    def take(self, watch: Watch) -> dict[str, Any]:
        """Returns the batch of the next step.

        Raises:
          InputStalled: it did not come in time, or a process that reads died.
        """
        began = time.monotonic()
        reported = began
        while True:
            try:
                item = self._ready.get(timeout=POLL_SECONDS)
                break
            except queue.Empty:
                watch.poll()
            now = time.monotonic()
            if watch.timeout and now - began >= watch.timeout:
                self.close(kill=True)
                raise InputStalled(
                    f"no data for {now - began:.0f} s: {self._waiting_for()}; a restart goes on from here"
                )
            if now - reported >= watch.patience:
                reported = now
                watch.say(f"no data for {now - began:.0f} s: {self._waiting_for()}")
        if isinstance(item, BaseException):
            self.close(kill=True)
            raise item
        self._step += 1
        return item

    def close(self, kill: bool = False) -> None:
        """Stops threads and processes; ``kill``: without asking them first."""
        self._stopped = True
        with contextlib.suppress(queue.Empty):
            self._ready.get_nowait()
        if kill:
            for child in self._processes():
                child.kill()
        self._close_iterator()

    def _close_iterator(self) -> None:
        if self._iterator is not None:
            with contextlib.suppress(Exception):  # another thread may be using it, or closing it
                self._iterator.close()

    def _fill(self) -> None:
        try:
            if self._workers:
                self._iterator = _in_processes(self._read, self._start, self._workers, self._prefetch)
            else:
                self._iterator = _in_threads(self._read, self._start, max(1, self._prefetch))
            for batch in self._iterator:
                if self._workers:  # out of shared memory, which is given back when the next batch comes
                    batch = {name: array.copy() for name, array in batch.items()}
                self._put(batch)
                if self._stopped:
                    return
        except BaseException as error:
            self._put(self._explained(error))
        finally:
            self._close_iterator()

    def _put(self, item: Any) -> None:
        while not self._stopped:
            with contextlib.suppress(queue.Full):
                self._ready.put(item, timeout=POLL_SECONDS)
                return

    def _explained(self, error: BaseException) -> BaseException:
        """A death among the processes as InputStalled; any other error as it is."""
        if not self._workers or "terminated unexpectedly" not in str(error):
            return error
        code = str(error).partition("exit code ")[2].partition(".")[0]
        hint = _DEATHS.get(int(code)) if code.lstrip("-").isdigit() else None
        reason = f"exit status {code}" + (f": {hint}" if hint else "")
        return InputStalled(f"a reader process died ({reason}) before the data of step {self._step}")

    def _waiting_for(self) -> str:
        what = f"waiting for the images of step {self._step}"
        if not self._workers:
            return f"{what} from {max(1, self._prefetch)} threads (is the file system there?)"
        alive = len(self._processes())
        return f"{what} from {self._workers} reader processes, {alive} of them alive (is the file system there?)"

    def _processes(self) -> list[Any]:
        return [child for child in _reader_processes() if child.pid not in self._others]


def _reader_processes() -> list[Any]:
    return [child for child in multiprocessing.active_children() if child.name.startswith(_WORKER_NAME)]


def _in_threads(read: Callable[[int], dict[str, Any]], start_step: int, count: int) -> Iterator[Any]:
    """Yields the batches from ``start_step`` on, without end; so many daemon threads read one each."""
    tasks: queue.SimpleQueue[tuple[Future[Any], int] | None] = queue.SimpleQueue()

    def work() -> None:
        while (task := tasks.get()) is not None:
            future, step = task
            try:
                future.set_result(read(step))
            except BaseException as error:
                future.set_exception(error)

    for number in range(count):
        threading.Thread(target=work, name=f"sct-jax-input-{number}", daemon=True).start()
    pending: collections.deque[Future[Any]] = collections.deque()
    try:
        for step in itertools.count(start_step):
            pending.append(Future())
            tasks.put((pending[-1], step))
            if len(pending) >= count:
                yield pending.popleft().result()
    finally:
        for _ in range(count):
            tasks.put(None)


def _in_processes(read: Callable[[int], dict[str, Any]], start_step: int, workers: int, prefetch: int) -> Any:
    """Returns Grain's iterator over the batches from ``start_step`` on, without end."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags; ours are not absl's
    batches = grain.MapDataset.range(start_step, 2**62).map(read)
    dataset = batches.to_iter_dataset(grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch))
    return iter(dataset.mp_prefetch(grain.MultiprocessingOptions(workers, max(1, prefetch)), start_worker))


def start_worker(index: int = 0, count: int = 1) -> None:
    """Called first in a worker process: Ctrl-C is its parent's to handle, and it ends when its parent does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # killed: nobody is left to read from this process
