"""One run at a time in a workdir: two would mix their checkpoints.

The holder names itself in ``WORKDIR/lock.json`` and beats there: a number in the file goes up every ``BEAT`` seconds.
Who comes later sees whether the holder lives. On the same machine the process tells: a lock whose process is gone is
taken over at once. Elsewhere (another host, another container) the beat does: a lock that does not beat for
``SILENCE`` seconds belongs to a run that was killed or a host that was lost. No clocks are compared, and nothing but
ordinary files is needed, so network file systems will do.
"""

import json
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from sct_jax import files
from sct_jax.errors import UserError

NAME = "lock.json"
BEAT, SILENCE = 5.0, 20.0


class WorkdirLock:
    """Holds a workdir from its making until :meth:`release`.

    Raises:
      UserError: at once where another run is alive in the workdir, saying which.
    """

    def __init__(self, workdir: Path):
        self._path = workdir / NAME
        self._own = _myself() | {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "beat": 0}
        self._taken: dict[str, Any] | None = None
        while not self._create():
            holder = _read(self._path)
            if holder is None or self._is_gone(holder):
                self._take_over(holder)
        if _read(self._path) != self._own:  # two took over what was left at the same moment: one has it
            raise UserError(_busy(workdir, _read(self._path) or {}))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="workdir lock", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises a UserError when another run has taken the workdir: this process was suspended for long, say."""
        if self._taken is not None:
            raise UserError(f"{_busy(self._path.parent, self._taken)}; this one stops")

    def release(self) -> None:
        """Gives the workdir back."""
        self._done.set()
        self._thread.join()
        if _is_same(_read(self._path), self._own):
            self._path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Makes the file, if there is none."""
        made = False
        try:
            descriptor = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            made = True
            with os.fdopen(descriptor, "w") as file:
                json.dump(self._own, file)
        except FileExistsError:
            return False
        except OSError as error:
            if made:
                self._path.unlink(missing_ok=True)
            raise UserError(f"cannot write {self._path}: {error.strerror or error}") from error
        return True

    def _is_gone(self, holder: dict[str, Any]) -> bool:
        """Whether the holder is dead; raises where it is alive."""
        if holder.get("place") == self._own["place"]:
            if _start_of(holder.get("pid", 0)) == holder.get("started"):
                raise UserError(_busy(self._path.parent, holder))
            return True
        print(
            f"{self._path.parent} is locked by a run {_who(holder)}: waiting {SILENCE:.0f} s to see whether it lives",
            file=sys.stderr,
        )
        until = time.monotonic() + SILENCE
        while time.monotonic() < until:
            time.sleep(min(1.0, BEAT / 2))
            now = _read(self._path)
            if now is not None and now != holder:
                raise UserError(_busy(self._path.parent, now))
        return True

    def _take_over(self, holder: dict[str, Any] | None) -> None:
        """Removes the lock of a run that is gone, unless another one took it meanwhile."""
        if holder is not None and _read(self._path) == holder:
            print(f"taking over {self._path.parent} from a run that ended {_who(holder)}", file=sys.stderr)
            self._path.unlink(missing_ok=True)
        elif holder is None:  # half-written by one that died, or being written
            time.sleep(0.2)
            if _read(self._path) is None:
                self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            found = _read(self._path)
            if found is not None and not _is_same(found, self._own):
                self._taken = found
                return
            self._own = self._own | {"beat": self._own["beat"] + 1}
            try:
                files.write_text(self._path, json.dumps(self._own))
            except UserError:  # a full disk: the run itself will say so
                continue


def _myself() -> dict[str, Any]:
    """Who this process is: ``place`` is the same for processes that see each other."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        namespace = boot = ""
    host, pid = socket.gethostname(), os.getpid()
    return {"host": host, "pid": pid, "place": f"{host} {boot} {namespace}", "started": _start_of(pid)}


def _start_of(pid: int) -> str | None:
    """When a process of this machine began, which tells it from a later one of its number; None: it is gone."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return None if state == "Z" else fields[18]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)  # no /proc: macOS
    except ProcessLookupError:
        return None
    except OSError:
        pass
    return None if Path("/proc/self").exists() else "running"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_same(found: dict[str, Any] | None, own: dict[str, Any]) -> bool:
    return found is not None and all(found.get(key) == own[key] for key in ("place", "pid", "started", "since"))


def _who(holder: dict[str, Any]) -> str:
    return f"on {holder.get('host', '?')}, process {holder.get('pid', '?')}, since {holder.get('since', '?')}"


def _busy(workdir: Path, holder: dict[str, Any]) -> str:
    return f"{workdir} is in use by another run ({_who(holder)}): stop it first, or choose another --workdir"
