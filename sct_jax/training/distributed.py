"""Many processes: found in the environment or in flags, started together; ``peers.py`` has how they end together."""

import contextlib
import os
import re
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sct_jax.errors import RESTART, UserError
from sct_jax.training import peers

AUTO = "auto"


class Unreachable(Exception):
    """The processes did not find each other in time; a restart may help."""

    exit_code = RESTART


@dataclass(frozen=True)
class Settings:
    """Where the processes meet, and which of them this is; ``auto`` leaves all of it to JAX.

    ``local_devices`` are the accelerators of the machine that are this process's own (None: all).
    """

    coordinator: str
    num_processes: int = 0
    process_id: int = -1
    local_devices: tuple[int, ...] | None = None


def find(
    environ: Mapping[str, str], coordinator: str = "", num_processes: int = 0, process_id: int = -1
) -> Settings | None:
    """Finds the job that this process is part of, or None where it is alone. The first of these that is there:

    1. the arguments, or ``SCT_COORDINATOR``, ``SCT_NUM_PROCESSES`` and ``SCT_PROCESS_ID`` in their place;
    2. the coordinator ``auto``: JAX asks the machine (a TPU pod without Kubernetes tells nothing in the environment);
    3. SLURM, inside ``srun`` with several tasks; 4. several TPU hosts or slices, as Kubernetes announces them.

    Raises:
      UserError: for numbers that make no job, or some of the three without the others.
    """
    coordinator = coordinator or environ.get("SCT_COORDINATOR", "")
    num_processes = num_processes or _number(environ, "SCT_NUM_PROCESSES", 0)
    process_id = process_id if process_id != -1 else _number(environ, "SCT_PROCESS_ID", -1)
    if coordinator == AUTO:
        return Settings(AUTO)
    if coordinator or num_processes or process_id != -1:
        return _explicit(coordinator, num_processes, process_id)
    if all(f"SLURM_{name}" in environ for name in ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")):
        return _slurm(environ)
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES", "")
    if "," in hosts or _number(environ, "MEGASCALE_NUM_SLICES", 1) > 1:
        return Settings(AUTO)
    return None


def _explicit(coordinator: str, num_processes: int, process_id: int) -> Settings | None:
    given = {"--coordinator": coordinator, "--num-processes": num_processes, "--process-id": process_id != -1}
    missing = [name for name, value in given.items() if not value]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} missing: several processes need --coordinator HOST:PORT, --num-processes N and "
            "--process-id 0 to N-1 (or SCT_COORDINATOR, SCT_NUM_PROCESSES and SCT_PROCESS_ID)"
        )
    if not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[^\s:/]+):[0-9]{1,5}", coordinator) or not 0 < _port(coordinator) < 65536:
        raise UserError(
            f"--coordinator {coordinator}: write HOST:PORT of process 0, such as 10.0.0.1:8476, or {AUTO} on a TPU pod"
        )
    if not 0 <= process_id < num_processes:
        raise UserError(f"--process-id {process_id} of --num-processes {num_processes}: ids go from 0 to N-1")
    return Settings(coordinator, num_processes, process_id) if num_processes > 1 else None


def _slurm(environ: Mapping[str, str]) -> Settings | None:
    """One process a task; where several tasks share a node and see all of its GPUs, each takes one."""
    tasks = _number(environ, "SLURM_NTASKS", 1)
    if tasks == 1:
        return None
    nodes = environ["SLURM_STEP_NODELIST"]
    first = re.match(r"[^,\[]+(?:\[(\w+))?", nodes)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST = {nodes!r} names no node: give --coordinator HOST:PORT")
    host = first.group().replace("[", "")
    port = 61440 + _number(environ, "SLURM_JOB_ID", 0) % 4096  # the same in all tasks, another in another job
    a_node = re.match(r"\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", str(tasks)))
    sharing = a_node is None or int(a_node.group()) > 1
    own = sharing and len(environ.get("CUDA_VISIBLE_DEVICES", "all,of,them").split(",")) > 1
    local = (_number(environ, "SLURM_LOCALID", 0),) if own else None
    return Settings(f"{host}:{port}", tasks, _number(environ, "SLURM_PROCID", 0), local)


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name} = {text!r} is no whole number") from None


def _port(address: str) -> int:
    return int(address.rpartition(":")[2])


@contextlib.contextmanager
def joined(
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = -1,
    timeout: int = 0,
    complain: Callable[[BaseException], int | None] = lambda error: None,
) -> Iterator[None]:
    """Runs its body as one of several processes, where ``find`` finds some; alone, it does nothing.

    A body that ends well, or as all agreed after a signal (``interrupted_exit_code`` above 128), waits for the others.
    After any other exception the process leaves at once and the others follow; so do all when one of them dies: nothing
    after the ``with`` statement runs then.

    Args:
      timeout: seconds in which all processes must have come (0: ``SCT_START_TIMEOUT``, or 300).
      complain: tells the user of an exception and gives the exit status; None: a traceback and status 1.

    Raises:
      UserError, Unreachable: as ``start``.
    """
    group = start(coordinator, num_processes, process_id, timeout)
    if group is None:
        yield
        return
    try:
        try:
            yield
        except Exception as error:
            if not _agreed(error):
                raise
            group.close()
            raise
        group.close()
    except BaseException as error:
        if _agreed(error):
            raise
        group.fail(error, complain)


def _agreed(error: BaseException) -> bool:
    return getattr(error, "interrupted_exit_code", 0) > 128


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1, timeout: int = 0) -> peers.Group | None:
    """Starts ``jax.distributed`` where ``find`` finds several processes; before anything else touches JAX's devices.

    The environment's ``SCT_HEARTBEAT_TIMEOUT`` (60) is how many seconds a process may be silent.

    Raises:
      UserError: for settings that make no job, and for two processes with one id.
      Unreachable: when not all processes came in time.
    """
    settings = find(os.environ, coordinator, num_processes, process_id)
    if settings is None:
        return None
    timeout = timeout or _number(os.environ, "SCT_START_TIMEOUT", 300)
    patience = _number(os.environ, "SCT_HEARTBEAT_TIMEOUT", 60)
    if patience < 2:
        raise UserError(f"SCT_HEARTBEAT_TIMEOUT = {patience}: give at least 2 seconds")
    if settings.process_id == 0:
        _check_free(_port(settings.coordinator))
    with _Connecting(settings, timeout):
        _initialize(settings, timeout, patience)
    return peers.Group(patience)


def _initialize(settings: Settings, timeout: int, patience: int) -> None:
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM for itself and say nothing, until the loop listens: a process has to end on it, or to save.
    jax.config.update("jax_enable_preemption_service", False)
    # JAX's own watch comes second: it aborts the process.
    options: dict[str, Any] = {"initialization_timeout": timeout, "heartbeat_timeout_seconds": patience + 40}
    if settings.coordinator != AUTO:
        options |= {
            "coordinator_address": settings.coordinator,
            "num_processes": settings.num_processes,
            "process_id": settings.process_id,
            "local_device_ids": settings.local_devices,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(**options)
    except ValueError as error:
        raise UserError(
            f"no cluster was found here ({error}): give --coordinator HOST:PORT, --num-processes and --process-id"
        ) from error
    except RuntimeError as error:
        advice = "do all processes run, and can they reach process 0?"
        raise Unreachable(f"the processes could not meet ({str(error).splitlines()[0]}): {advice}") from error


def _check_free(port: int) -> None:
    """Tries the port before JAX does, which may crash where it is taken."""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", port), family=family, dualstack_ipv6=family == socket.AF_INET6).close()
    except OSError as error:
        raise Unreachable(f"process 0 cannot listen on port {port} ({error.strerror}): is another job here?") from error


class _Connecting:
    """While the processes find each other: what C++ writes is held back, and its aborts become one line with a hint."""

    def __init__(self, settings: Settings, timeout: int):
        self.settings, self.timeout = settings, timeout

    def __enter__(self) -> None:
        sys.stderr.flush()
        self.held, self.stderr = tempfile.TemporaryFile(), os.dup(2)
        os.dup2(self.held.fileno(), 2)
        self.aborts = peers.Aborts(self._explain)

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.aborts.restore()
        text = self._release()
        if kind is None:
            os.write(2, text)

    def _release(self) -> bytes:
        os.dup2(self.stderr, 2)
        os.close(self.stderr)
        self.held.seek(0)
        return self.held.read()

    def _explain(self) -> tuple[str, int]:
        text, at = self._release(), self.settings
        if b"ALREADY_EXISTS" in text or b"different incarnation" in text:
            return f"two processes have the id {at.process_id}: each needs its own --process-id", 2
        if b"DEADLINE_EXCEEDED" not in text:
            os.write(2, text)
        if at.process_id == 0:
            late = f"not all {at.num_processes} processes came to {at.coordinator} within {self.timeout} s"
            return f"{late}: start them all with these, each with its own --process-id", RESTART
        advice = "is process 0 running there, is the port open, are all started, each with its own --process-id?"
        return f"coordinator {at.coordinator} not reached within {self.timeout} s: {advice}", RESTART
