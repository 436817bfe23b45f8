"""A clone in miniature: the real launch scripts over an environment in which what they call is stubbed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Runs Python, but installs nothing.
PYTHON = f"""#!/usr/bin/env bash
[[ ${{2:-}} != pip ]] || {{ echo "$@" >>"$(dirname "$0")/pip.log"; exit 0; }}
exec {sys.executable} "$@"
"""

# Ends the n-th call with the n-th of the numbers in statuses, and the calls after these with 0.
SCT_JAX = """#!/usr/bin/env bash
here=$(dirname "$0")
echo "$@" >>"$here/calls"
status=$(sed -n "$(wc -l <"$here/calls")p" "$here/statuses" 2>/dev/null)
exit "${status:-0}"
"""

# A shell cannot trap what was ignored when it started, as in the background of a script, or under nohup.
HEED_SIGNALS = ("env", "--default-signal=INT,HUP,TERM")


class Clone:
    """The folder of the clone, ``bin`` in front of PATH, and what was called."""

    def __init__(self, root: Path):
        self.root, self.bin = root, root / "bin"
        self.environment = os.environ | {"PATH": f"{self.bin}:{os.environ['PATH']}", "SCT_RESTART_PAUSE": "0"}

    def stub(self, name: str, text: str, folder: Path | None = None) -> None:
        path = (folder or self.bin) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*HEED_SIGNALS, "bash", str(self.root / "launch" / script), *arguments],
            cwd=self.root,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        process = self.start(script, *arguments, **environment)
        out, err = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def script_statuses(self, *statuses: int) -> None:
        (self.root / ".venv/bin/statuses").write_text("".join(f"{status}\n" for status in statuses))

    @property
    def calls(self) -> list[str]:
        path = self.root / ".venv/bin/calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    root = tmp_path / "a clone"
    shutil.copytree(ROOT / "launch", root / "launch")
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    made = Clone(root)
    made.stub("python", PYTHON, root / ".venv/bin")
    made.stub("sct-jax", SCT_JAX, root / ".venv/bin")
    return made
