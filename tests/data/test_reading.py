"""Input that hangs or dies: it is said, it is given up, and until then signals get through."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from data_makers import random_images

from sct_jax.data import InputStalled, Watch, batch_indices, make_pipeline
from sct_jax.data.spec import ArraySource

IMAGES = random_images(8, 4)


class HangingSource(ArraySource):
    """Reads images only while its event is set."""

    def __init__(self):
        super().__init__(IMAGES, np.arange(8), 8)
        self.works = threading.Event()

    def __getitem__(self, index):
        self.works.wait()
        return super().__getitem__(index)


@pytest.fixture
def hanging():
    source = HangingSource()
    yield source
    source.works.set()


def streamed(source, watch, **arguments):
    return make_pipeline(source, seed=3, batch_size=4, mode="streamed", watch=watch, **arguments)


def test_a_wait_is_reported_again_and_again_then_given_up(hanging):
    said = []
    pipeline = streamed(hanging, Watch(0.3, 1.0, said.append), start_step=5, prefetch=2)
    began = time.monotonic()
    with pytest.raises(InputStalled, match="no data for 1 s: waiting for the images of step 5 from 2 threads") as stall:
        pipeline.next(5, 1)
    assert 1.0 <= time.monotonic() - began < 10
    assert stall.value.interrupted_exit_code == 75
    assert 1 <= len(said) <= 3
    assert all("waiting for the images of step 5" in line for line in said)


def test_no_timeout_means_that_it_is_waited_for(hanging):
    threading.Timer(0.8, hanging.works.set).start()
    pipeline = streamed(hanging, Watch(patience=60, timeout=0))
    np.testing.assert_array_equal(pipeline.next(0, 1)["label"][0], batch_indices(3, 0, 4, 8))
    pipeline.close()


def test_a_signal_gets_through_and_loses_no_batch(hanging):
    """The handler only notes the signal, as the training loop's does; poll then leaves, and training can go on."""
    noted = []
    old = signal.signal(signal.SIGUSR1, lambda signum, frame: noted.append(signum))

    def poll():
        if noted:
            raise InterruptedError

    pipeline = streamed(hanging, Watch(poll=poll))
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        began = time.monotonic()
        with pytest.raises(InterruptedError):
            pipeline.next(0, 3)
        assert time.monotonic() - began < 10
    finally:
        signal.signal(signal.SIGUSR1, old)
    noted.clear()
    hanging.works.set()
    order = [batch_indices(3, step, 4, 8) for step in range(5)]
    np.testing.assert_array_equal(pipeline.next(0, 3)["label"], order[:3])
    np.testing.assert_array_equal(pipeline.next(3, 2)["label"], order[3:])
    pipeline.close()


def test_what_is_no_user_mistake_is_raised_as_it_is():
    class Broken(ArraySource):
        def __getitem__(self, index):
            raise ZeroDivisionError("a bug")

    pipeline = streamed(Broken(IMAGES, np.arange(8), 8), Watch())
    with pytest.raises(ZeroDivisionError, match="a bug"):
        pipeline.next(0, 1)
    pipeline.close()


PROGRAM = """
import multiprocessing, os, signal, sys, threading, time
import numpy as np
from sct_jax.cli import main
from sct_jax.data import InputStalled, Watch, make_pipeline
from sct_jax.data.spec import ArraySource

class Source(ArraySource):
    def __getitem__(self, index):
        if {hangs}:
            time.sleep(600)
        return super().__getitem__(index)

def run():
    source = Source(np.zeros((8, 4, 4, 3), np.uint8), np.arange(8), 8)
    pipeline = make_pipeline(
        source, seed=0, batch_size=4, mode="streamed", workers={workers}, prefetch=1, watch=Watch(1, {timeout})
    )
    pipeline.next(0, 1)
    children = [child.pid for child in multiprocessing.active_children()]
    print(*children, flush=True)
    if {kills}:
        os.kill(children[0], signal.SIGKILL)
    for step in range(1, 10**9):
        pipeline.next(step, 1)

if __name__ == "__main__":
    try:
        run()
    except InputStalled as stall:
        print(stall, file=sys.stderr)
        sys.exit(stall.interrupted_exit_code)
"""


def start(tmp_path, hangs="False", workers=0, timeout=60, kills=False):
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM.format(hangs=hangs, workers=workers, timeout=timeout, kills=kills)))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, str(program)], text=True, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_a_program_whose_readers_hang_ends_with_status_75(tmp_path, workers):
    program = start(tmp_path, hangs="True", workers=workers, timeout=15 if workers else 2)
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 75
    lines = errors.splitlines()
    assert lines[-1].startswith("no data for ")
    assert lines[-1].endswith("a restart goes on from here")
    assert any("of them alive" in line for line in lines) == bool(workers)


@pytest.mark.slow
def test_a_reader_process_that_dies_is_found(tmp_path):
    began = time.monotonic()
    program = start(tmp_path, workers=2, timeout=100, kills=True)
    _, errors = program.communicate(timeout=120)
    assert program.returncode == 75
    assert "a reader process died (exit status -9: killed, as when memory runs out) before the data of step" in errors
    assert time.monotonic() - began < 90, "found, not waited for until the timeout"


@pytest.mark.slow
def test_reader_processes_end_when_their_parent_is_killed(tmp_path):
    program = start(tmp_path, workers=2)
    children = [int(pid) for pid in program.stdout.readline().split()]
    assert len(children) == 2
    program.kill()
    program.communicate(timeout=60)
    deadline = time.monotonic() + 20
    while any(_runs(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(_runs(child) for child in children)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
