"""Reading what a run left in its workdir, with a note for everything that is missing or damaged."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sct_jax.errors import UserError

GRID_NAME = re.compile(r"step_(\d+)_(\d+)step\.png")
TOTAL_PARAMETERS = re.compile(r"Total:\s*([\d,]+)")


@dataclass
class Run:
    """One run. ``train``, ``evaluations`` and ``signals`` are the records of ``metrics.jsonl`` in order of step.

    ``grids`` maps a number of sampling steps to ``(training step, picture)`` in order; ``measured`` maps the name of
    each ``evaluation*.json`` to its content; ``notes`` are sentences about files that are missing or damaged.
    """

    name: str
    config: dict[str, Any]
    train: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    signals: list[dict[str, Any]] = field(default_factory=list)
    grids: dict[int, list[tuple[int, Path]]] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    target_variance: dict[str, Any] | None = None
    parameters: int | None = None
    notes: list[str] = field(default_factory=list)

    def final_scores(self, sampling_steps: int) -> dict[str, Any]:
        """The newest measurement at so many steps: of ``sct-jax evaluate``, else the last of training."""
        for content in reversed(self.measured.values()):
            for row in content["results"]:
                if row.get("sampling_steps") == sampling_steps:
                    return row
        rows = [row for row in self.evaluations if row.get("sampling_steps") == sampling_steps]
        return rows[-1] if rows else {}


def read_runs(workdirs: list[str | Path]) -> list[Run]:
    """The runs in ``workdirs``, named by their folders, or by the paths given where folder names repeat.

    Raises:
      UserError: when a path is not a run's workdir.
    """
    if not workdirs:
        raise UserError("a report needs at least one workdir of a run")
    folders = [Path(workdir) for workdir in workdirs]
    names = [folder.resolve().name for folder in folders]
    unique = len(set(names)) == len(names)
    return [_read_run(folder, name if unique else str(folder)) for folder, name in zip(folders, names, strict=True)]


def _read_run(folder: Path, name: str) -> Run:
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is not the workdir of a run: it has no config.json")
    try:
        config = json.loads((folder / "config.json").read_text())
        if not isinstance(config, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / 'config.json'}: {error}") from error
    run = Run(name, config)
    _read_metrics(folder / "metrics.jsonl", run)
    _read_grids(folder / "samples", run)
    for path in sorted(folder.glob("evaluation*.json"), key=lambda path: (path.stat().st_mtime, path.name)):
        content = _read_json(path, run)
        if content is not None and _is_rows(content.get("results")):
            run.measured[path.name] = content
        elif content is not None:
            run.notes.append(f"{path.name} has no list of results: left out.")
    if not run.measured:
        run.notes.append("No evaluation*.json (sct-jax evaluate --out): numbers are those measured while training.")
    if (folder / "target_variance.json").is_file():
        run.target_variance = _read_target_variance(folder / "target_variance.json", run)
    else:
        run.notes.append("No target_variance.json: no curve of the target's variance.")
    if (folder / "parameters.txt").is_file():
        totals = TOTAL_PARAMETERS.findall((folder / "parameters.txt").read_text(errors="replace"))
        run.parameters = int(totals[-1].replace(",", "")) if totals else None
    return run


def _read_metrics(path: Path, run: Run) -> None:
    """Records by kind; where a resumed run wrote a step twice, the later record counts."""
    if not path.is_file():
        run.notes.append("No metrics.jsonl: no curves.")
        return
    lines = path.read_text(errors="replace").splitlines()
    train, evaluations, signals, damaged = {}, {}, {}, []
    for index, line in enumerate(lines):
        try:
            record = json.loads(line)
            step = int(record["step"])
        except (ValueError, KeyError, TypeError):
            if (
                index < len(lines) - 1 and line.strip()
            ):  # the last line of a run that goes on, or was killed, may be cut
                damaged.append(index + 1)
            continue
        if record.get("kind") == "train":
            train[step] = record
        elif record.get("kind") == "evaluation":
            evaluations[step, record.get("sampling_steps")] = record
        elif record.get("kind") == "td_signal":
            signals[step] = record
    if damaged:
        run.notes.append(f"metrics.jsonl: {len(damaged)} damaged line(s) left out, the first is line {damaged[0]}.")
    run.train = [train[step] for step in sorted(train)]
    run.signals = [signals[step] for step in sorted(signals)]
    run.evaluations = [evaluations[key] for key in sorted(evaluations, key=lambda key: (key[0], key[1] or 0))]


def _read_grids(folder: Path, run: Run) -> None:
    for path in folder.glob("*.png"):
        match = GRID_NAME.fullmatch(path.name)
        if match:
            run.grids.setdefault(int(match[2]), []).append((int(match[1]), path))
    for grids in run.grids.values():
        grids.sort()
    run.grids = dict(sorted(run.grids.items()))
    if not run.grids:
        run.notes.append("No sample grids in samples/.")


def _read_json(path: Path, run: Run) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        run.notes.append(f"{path.name} cannot be read ({error}): left out.")
        return None
    if not isinstance(content, dict):
        run.notes.append(f"{path.name} is not a JSON object: left out.")
        return None
    return content


def _read_target_variance(path: Path, run: Run) -> dict[str, Any] | None:
    content = _read_json(path, run)
    if content is None:
        return None
    try:
        lengths = {len(row) for row in content["trace"]}
        well_formed = len(content["trace"]) == len(content["t"]) and lengths == {len(content["reference_sizes"])}
    except (KeyError, TypeError):
        well_formed = False
    if not well_formed:
        run.notes.append(f"{path.name} is not of the expected form: left out.")
    return content if well_formed else None


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, dict) for row in value)
