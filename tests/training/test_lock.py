"""A workdir has one run at a time; what a dead one left behind is in nobody's way."""

import json
import os
import subprocess
import sys
import threading

import pytest

from sct_jax.errors import UserError
from sct_jax.training import lock
from sct_jax.training.lock import NAME, WorkdirLock


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "SILENCE", 0.4)


def held_by(workdir, **changes):
    """A lock file as this process would write it, with changes."""
    content = lock._myself() | {"since": "2026-01-01 00:00:00", "beat": 7} | changes
    (workdir / NAME).write_text(json.dumps(content))
    return content


def test_the_second_is_told_who_the_first_is(tmp_path):
    first = WorkdirLock(tmp_path)
    with pytest.raises(UserError, match=rf"in use by another run .*process {os.getpid()}, since 20.*--workdir"):
        WorkdirLock(tmp_path)
    first.release()
    assert not (tmp_path / NAME).exists()
    WorkdirLock(tmp_path).release()


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, capfd):
    program = "import sys, time; from pathlib import Path; from sct_jax.training.lock import WorkdirLock\n"
    program += "WorkdirLock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {process.pid}"):
        WorkdirLock(tmp_path)
    process.kill()
    process.wait()
    taken = WorkdirLock(tmp_path)
    assert "taking over" in capfd.readouterr().err
    taken.release()


def test_a_number_that_another_process_has_now_is_not_the_holder(tmp_path):
    held_by(tmp_path, started="1")  # our own number, of a process that began at another time
    WorkdirLock(tmp_path).release()


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_processes_are_told_apart_by_when_they_began():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    began = lock._start_of(child.pid)
    assert int(lock._start_of(os.getpid())) < int(began) == int(lock._start_of(child.pid))
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but nobody has taken its status: a zombie
    assert lock._start_of(child.pid) is None
    child.wait()
    assert lock._start_of(child.pid) is None


def test_a_host_that_was_lost_does_not_stop_a_restart(tmp_path, quick, capfd):
    held_by(tmp_path, place="elsewhere", host="lost")
    WorkdirLock(tmp_path).release()
    assert "on lost" in capfd.readouterr().err


def test_a_host_that_lives_does(tmp_path, quick):
    content, over = held_by(tmp_path, place="elsewhere", host="alive"), threading.Event()

    def beat():
        number = 8
        while not over.wait(0.05):
            lock.files.write_text(tmp_path / NAME, json.dumps(content | {"beat": number}))
            number += 1

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="on alive"):
            WorkdirLock(tmp_path)
    finally:
        over.set()
        thread.join()


def test_one_that_was_suspended_finds_out_that_it_lost_the_workdir(tmp_path, quick):
    own = WorkdirLock(tmp_path)
    held_by(tmp_path, place="elsewhere", host="later")
    own._thread.join(timeout=5)
    with pytest.raises(UserError, match=r"on later.*this one stops"):
        own.check()
    own.release()
    assert json.loads((tmp_path / NAME).read_text())["host"] == "later"  # it is not ours to remove


def test_a_half_written_lock_is_nobody(tmp_path):
    (tmp_path / NAME).write_text('{"host": ')
    WorkdirLock(tmp_path).release()


def test_a_run_that_is_done_leaves_no_lock(tiny_run):
    assert not (tiny_run / NAME).exists()


def test_two_trains_in_one_workdir(tiny_config, tmp_path, sct_jax_command):
    holder = WorkdirLock(tmp_path)
    failed = sct_jax_command("train", "--config", tiny_config, "--workdir", tmp_path)
    assert "in use by another run" in failed.complaint
    assert not (tmp_path / "checkpoints").exists() or not any((tmp_path / "checkpoints").iterdir())
    holder.release()
