"""Where a run's numbers go: ``metrics.jsonl``, TensorBoard, Weights & Biases, and the terminal."""

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from sct_jax import files
from sct_jax.errors import UserError
from sct_jax.training.mesh import is_first_process


class MetricWriter:
    """Appends one JSON object a line, and mirrors it to TensorBoard and Weights & Biases when asked.

    Of several processes only the first writes. Lines of steps after ``first``, where a run that was killed had got to
    after its last checkpoint, are dropped: they are written again.
    """

    def __init__(
        self,
        workdir: Path,
        first: int = 0,
        *,
        tensorboard: bool,
        wandb_project: str = "",
        config: dict[str, Any] | None = None,
    ):
        self.board = self.wandb = self.file = None
        if not is_first_process():
            return
        _drop_after(workdir / "metrics.jsonl", first)
        self.file = (workdir / "metrics.jsonl").open("a")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(workdir / "events"), purge_step=first + 1 if first else None)
        if wandb_project:
            try:
                import wandb
            except ImportError:
                raise UserError("config.log.wandb_project needs: pip install wandb") from None
            self.wandb = wandb.init(project=wandb_project, dir=str(workdir), config=config, resume="allow")

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Writes the values of one step; ``kind`` is ``train`` or ``evaluation``."""
        if self.file is None:
            return
        try:
            self.file.write(json.dumps({"kind": kind, "step": step} | values) + "\n")
            self.file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.file.name} at step {step}: {error.strerror}") from error
        suffix = f"_{values['sampling_steps']}step" if "sampling_steps" in values else ""
        scalars = {
            f"{kind}/{name}{suffix}": value
            for name, value in values.items()
            if isinstance(value, (int, float)) and name != "sampling_steps"
        }
        if self.board is not None:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(scalars, step=step)

    def close(self) -> None:
        if self.file is not None:
            with contextlib.suppress(OSError):  # what could not be written was said when it was written
                self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()


def _drop_after(path: Path, first: int) -> None:
    """Leaves out of a JSONL file the lines of later steps, and one that was cut off in the middle."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= first]
    if kept != lines:
        files.write_text(path, "".join(kept))


def is_written(workdir: Path, kind: str, step: int) -> bool:
    """Whether ``metrics.jsonl`` has a line of this kind and step."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return any(_step_of(line) == step and json.loads(line).get("kind") == kind for line in lines)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf


class Progress:
    """A bar on a terminal, plain lines elsewhere: step, loss, images/s and the time left. The first process's only."""

    def __init__(self, total: int, start: int, batch_size: int):
        self.total, self.batch_size, self.start = total, batch_size, start
        self.began = self.last_time = time.perf_counter()
        self.last_step = start
        self.bar = None
        self.silent = not is_first_process()
        if sys.stderr.isatty() and not self.silent:
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def advance(self, step: int) -> None:
        """Moves the bar; cheap, called at every dispatch."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def report(self, step: int, loss: float) -> float:
        """Shows a logged step; returns images/s since the last report."""
        now = time.perf_counter()
        rate = (step - self.last_step) / max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = step, now
        images_per_second = rate * self.batch_size
        if self.bar is not None:
            self.bar.set_postfix_str(f"loss {loss:.4g}, {images_per_second:,.0f} images/s")
        else:
            left = (self.total - step) / max(rate, 1e-9)
            self.say(
                f"step {step:>7,}/{self.total:,}  loss {loss:<10.4g} {images_per_second:>9,.0f} images/s  "
                f"ETA {format_seconds(left)}"
            )
        return images_per_second

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        if self.silent:
            return
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def format_seconds(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    if not math.isfinite(seconds):
        return "?"
    minutes, second = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{second:02}" if hours else f"{minutes}:{second:02}"
