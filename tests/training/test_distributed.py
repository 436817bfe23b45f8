"""Several processes: how a job is found, and, with real processes, that it starts, ends together and never hangs."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from sct_jax.errors import UserError
from sct_jax.training.distributed import Settings, find

SLURM = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_NODELIST": "gpu[007,012-014]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
}

# Argument 1: what a process does after ten steps of a collective that all wait in.
JOB = """
import os, signal, sys, time
from sct_jax.errors import UserError
from sct_jax.training import distributed

def complain(error):
    if isinstance(error, UserError):
        print(f"sct-jax: {error}", file=sys.stderr)
        return 2

def steps(deed):
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import NamedSharding, PartitionSpec
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    ones = jax.make_array_from_callback(
        (jax.device_count(),), NamedSharding(mesh, PartitionSpec("data")), lambda index: np.ones(1, np.float32))
    add = jax.jit(lambda total, parts: total + parts.sum())
    total = jnp.float32(0)
    for step in range(20):
        total = add(total, ones)
        float(total)
        if step == 10 and deed in ("kill", "stop") and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGKILL if deed == "kill" else signal.SIGSTOP)
        if step == 10 and deed == "kill 0" and jax.process_index() == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        if step == 10 and deed == "terminate" and jax.process_index() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if step == 10 and deed == "mistake" and jax.process_index() == 1:
            raise UserError("the disk is full")
        if step == 10 and deed == "bug" and jax.process_index() == 0:
            raise KeyError("missing")
    print(jax.process_index(), jax.process_count(), jax.local_device_count(), float(total), flush=True)

with distributed.joined(complain=complain):
    steps(sys.argv[1])
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("sct-jax:")]


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., list[Ended]]:
    """Runs ``JOB`` in several processes of two devices each; what comes back is in their order."""
    script = tmp_path / "job.py"
    script.write_text(JOB)

    def run(deed: str, ids: tuple[int, ...] = (0, 1), **environment: str) -> list[Ended]:
        common = {
            "SCT_COORDINATOR": f"127.0.0.1:{free_port()}",
            "SCT_NUM_PROCESSES": "2",
            "SCT_HEARTBEAT_TIMEOUT": "3",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        }
        files = [((tmp_path / f"out{index}").open("w+"), (tmp_path / f"err{index}").open("w+")) for index in ids]
        processes = [
            subprocess.Popen(
                [sys.executable, str(script), deed],
                env=os.environ | common | {"SCT_PROCESS_ID": str(index)} | environment,
                stdout=out,
                stderr=err,
            )
            for index, (out, err) in zip(ids, files, strict=True)
        ]
        try:
            for process in processes if deed != "stop" else processes[:1]:
                process.wait(timeout=60)
        finally:
            for process in processes:
                process.kill()
        texts = [[file.seek(0) or file.read() for file in pair] for pair in files]
        return [Ended(process.wait(), *text) for process, text in zip(processes, texts, strict=True)]

    return run


def test_alone_where_nothing_says_otherwise():
    assert find({}) is None
    assert find({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}) is None  # a batch script, not srun
    assert find(SLURM | {"SLURM_NTASKS": "1"}) is None
    assert find({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert find({}, "localhost:1234", 1, 0) is None


def test_flags_come_before_variables_and_these_before_slurm():
    variables = {"SCT_COORDINATOR": "a:1", "SCT_NUM_PROCESSES": "3", "SCT_PROCESS_ID": "2"}
    assert find(SLURM | variables) == Settings("a:1", 3, 2)
    assert find(SLURM | variables, "[::1]:7", 4, 0) == Settings("[::1]:7", 4, 0)
    assert find(variables, process_id=0) == Settings("a:1", 3, 0)


def test_slurm_meets_at_the_first_node_of_the_step():
    assert find(SLURM) == Settings("gpu007:61586", 8, 5, (1,))
    for nodes, first in {"a,b": "a", "n[1-3]": "n1", "a[01-3],b7": "a01", "x-1": "x-1", "gpu[07,9]": "gpu07"}.items():
        assert find(SLURM | {"SLURM_STEP_NODELIST": nodes}).coordinator == f"{first}:61586"


def test_tasks_of_a_node_share_its_gpus_unless_slurm_did():
    assert find(SLURM | {"CUDA_VISIBLE_DEVICES": "0,1"}).local_devices == (1,)
    assert find(SLURM | {"CUDA_VISIBLE_DEVICES": "1"}).local_devices is None  # --gpus-per-task=1
    assert find(SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x8)"}).local_devices is None  # one task has all


def test_tpu_pods_are_left_to_jax():
    assert find({"TPU_WORKER_HOSTNAMES": "a,b"}) == Settings("auto")
    assert find({"MEGASCALE_NUM_SLICES": "2", "TPU_WORKER_HOSTNAMES": "a"}) == Settings("auto")
    assert find({}, "auto") == find({"SCT_COORDINATOR": "auto"}) == Settings("auto")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("a:1", 0, -1), "--num-processes and --process-id missing"),
        (("", 2, 1), "--coordinator missing"),
        (("", 0, 0), "--coordinator and --num-processes missing"),
        (("a", 2, 0), "HOST:PORT"),
        (("a:99999", 2, 0), "HOST:PORT"),
        (("http://a:1", 2, 0), "HOST:PORT"),
        (("a:1", 2, 2), "--process-id 2 of --num-processes 2"),
        (("a:1", 2, -3), "--process-id -3"),
        (("a:1", -2, 0), "--num-processes -2"),
    ],
)
def test_flags_that_make_no_job(given: tuple[str, int, int], says: str):
    with pytest.raises(UserError, match=says):
        find({}, *given)


def test_variables_that_are_no_numbers():
    with pytest.raises(UserError, match="SCT_PROCESS_ID = 'one' is no whole number"):
        find({"SCT_COORDINATOR": "a:1", "SCT_NUM_PROCESSES": "2", "SCT_PROCESS_ID": "one"})


def test_two_processes_compute_together_and_end(job: Callable[..., list[Ended]]):
    ended = job("")
    assert [process.status for process in ended] == [0, 0], ended
    assert [process.out.split()[-4:] for process in ended] == [["0", "2", "2", "80.0"], ["1", "2", "2", "80.0"]]


def test_when_one_is_killed_the_other_stops_and_says_so(job: Callable[..., list[Ended]]):
    left, killed = job("kill")
    assert killed.status == -9
    assert left.status == 75
    assert left.complaints == [
        "sct-jax: process 1 of 2 is gone; stopping; restart the job: it resumes from the last checkpoint"
    ]


def test_a_signal_that_nobody_listens_to_ends_its_process(job: Callable[..., list[Ended]]):
    """JAX's own watch for preemption would take SIGTERM and go on as if nothing had been."""
    left, ended = job("terminate")
    assert ended.status == -15
    assert left.status == 75


@pytest.mark.slow
def test_when_one_makes_a_mistake_both_stop_for_good(job: Callable[..., list[Ended]]):
    other, mistaken = job("mistake")
    assert (other.status, mistaken.status) == (2, 2)
    assert mistaken.complaints == ["sct-jax: the disk is full"]
    assert other.complaints == ["sct-jax: process 1 of 2 stopped: the disk is full"]


@pytest.mark.slow
def test_when_the_coordinator_is_killed(job: Callable[..., list[Ended]]):
    killed, left = job("kill 0")
    assert (killed.status, left.status) == (-9, 75)
    assert left.err.splitlines()[-1].startswith("sct-jax: process 0 of 2 is gone; stopping; restart the job")


@pytest.mark.slow
def test_when_one_stands_still(job: Callable[..., list[Ended]]):
    left, _ = job("stop")
    assert left.status == 75
    assert left.complaints[0].startswith("sct-jax: process 1 of 2 is gone")


@pytest.mark.slow
def test_when_the_coordinator_has_a_bug_its_traceback_is_told_once(job: Callable[..., list[Ended]]):
    broken, other = job("bug")
    assert (broken.status, other.status) == (1, 75)
    assert "KeyError: 'missing'" in broken.err
    assert other.complaints == ["sct-jax: process 0 of 2 stopped: KeyError: 'missing'"]
    assert "Traceback" not in other.err


@pytest.mark.slow
def test_a_process_that_no_other_joins_gives_up_with_a_hint(job: Callable[..., list[Ended]]):
    (alone,) = job("", ids=(1,), SCT_START_TIMEOUT="2", SCT_COORDINATOR="127.0.0.1:9")
    assert alone.status == 75
    assert alone.err.splitlines() == [
        "sct-jax: coordinator 127.0.0.1:9 not reached within 2 s: "
        "is process 0 running there, is the port open, are all started, each with its own --process-id?"
    ]


@pytest.mark.slow
def test_a_coordinator_that_no_other_joins_gives_up_with_a_hint(job: Callable[..., list[Ended]]):
    (alone,) = job("", ids=(0,), SCT_START_TIMEOUT="2")
    assert alone.status == 75
    assert len(alone.err.splitlines()) == 1
    assert "not all 2 processes came" in alone.err


@pytest.mark.slow
def test_two_processes_with_one_id(job: Callable[..., list[Ended]]):
    ended = job("", ids=(0, 1, 1), SCT_START_TIMEOUT="5", SCT_NUM_PROCESSES="3")
    assert all(process.status in (2, 75) for process in ended)
    assert all(len(process.complaints) == 1 and "own --process-id" in process.complaints[0] for process in ended)


@pytest.mark.slow
def test_a_port_that_is_taken(job: Callable[..., list[Ended]]):
    with socket.socket(socket.AF_INET6) as listener:
        listener.bind(("::", 0))
        listener.listen()
        port = listener.getsockname()[1]
        (alone,) = job("", ids=(0,), SCT_START_TIMEOUT="5", SCT_COORDINATOR=f"127.0.0.1:{port}")
    assert f"sct_jax.training.distributed.Unreachable: process 0 cannot listen on port {port}" in alone.err
