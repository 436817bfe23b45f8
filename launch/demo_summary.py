"""Prints what launch/demo.sh found: training times and the measured quality. Arguments: the workdirs of the runs."""

import json
import sys
from pathlib import Path


def training_seconds(workdir: Path) -> float:
    """Seconds in the training loop, those of interrupted and resumed calls added up."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    total = last = 0.0
    for line in lines:
        if line["kind"] == "train":
            total += line["seconds"] - (last if line["seconds"] >= last else 0.0)
            last = line["seconds"]
    return total


def main(workdirs: list[Path]) -> None:
    row = "{:<12} {:>5} {:>11}   {:<18} {}".format
    print("\n" + row("", "steps", "evaluations", "class agreement", "Fréchet distance"))
    for workdir in workdirs:
        result = json.loads((workdir / "evaluation.json").read_text(encoding="utf-8"))
        for line in result["results"]:
            cells = [f"{line[name]:.4f} ± {line[name + '_std']:.4f}" for name in ("class_agreement", "fd_pca")]
            print(row(workdir.name, line["sampling_steps"], line["evaluations"], *cells))
    floor = [f"{result['floor'][name]:.4f}" for name in ("class_agreement", "fd_pca")]
    print(row("real digits", "", "", *floor))
    print("Fréchet distance in the 32-dimensional PCA of the pixels; mean ± spread over three seeds\n")
    times = {workdir.name: training_seconds(workdir) for workdir in workdirs}
    shown = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items())
    print(f"Training: {shown}; together {sum(times.values()) / 60:.1f} minutes")


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
