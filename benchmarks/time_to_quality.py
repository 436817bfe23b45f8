"""How long until samples are so good: ECT's own PyTorch, ECT here and SCT here, from the same diffusion model.

    python benchmarks/time_to_quality.py --peer ECT --peer-python PYTHON --seeds 0,1 \\
        --out docs/results/time_to_quality_fashion_mnist      # ECT: a checkout of github.com/locuslab/ect

One diffusion model is trained here (configs/fashion_mnist_edm.py, not counted). For each seed three commands then tune
it, one after the other, with the same network, batch, stages, RAdam and average, in float32, without augmentation. The
clock of a run begins with its command and is read where a save is whole: imports, compiling (nothing is compiled
before) and saving count, evaluation does not. Seconds of the processor are those of the whole command.
Each saved average is read, sampled from in one step and measured by this package (PyTorch's through `sct-jax import`).
Runs and measurements of the same settings that are in `--runs` are not made again. Writes OUT.json, OUT.md and OUT.svg.
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from common import made_by, pairs, spread
from svg import stand_alone

from sct_jax import config as config_lib
from sct_jax import files
from sct_jax.data import open_source
from sct_jax.data.arrays import DEBIAN_FASHION_MNIST
from sct_jax.evaluation.provenance import provenance
from sct_jax.evaluation.run import evaluate_checkpoint
from sct_jax.interop import import_to
from sct_jax.report.plots import Series, line_chart

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("ECT in PyTorch", "ECT", "SCT")
METRICS = ("fd_classifier", "fd_pca", "class_agreement")
MODEL = "data.image_size=28 model.channels=32 model.channel_mult=1,2 model.num_blocks=1 model.attention_resolutions=14"
MODEL += " batch_size=32"
EDM = "total_steps=1000 optimizer.lr=1e-3 optimizer.ramp_steps=100 optimizer.decay=cosine ema.profiles=constant:0.99"
QUIET = "sampling.every_steps=0 evaluation.every_steps=0 evaluation.target_queries=0"


def main() -> None:
    args = parse()
    check_settings(args)
    prepare(args)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    for seed in map(int, args.seeds.split(",")):
        for name in METHODS:
            results[name].append(run(args, name, seed))
    for runs in results.values():
        for each in runs:
            each["curve"] = [measure(args, Path(each["folder"]), step, at) for step, at in each["saved"]]
    write(args, results)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of ECT")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has PyTorch and safetensors")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--every", type=int, default=100, help="save after so many steps")
    parser.add_argument("--stage-steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--ema", type=float, default=0.99)
    parser.add_argument("--num", type=int, default=2000, help="samples of each measurement")
    parser.add_argument("--data", default="fashion_mnist", help="the configs' prefix")
    parser.add_argument("--model", nargs="*", default=MODEL.split(), metavar="KEY=VALUE", help="of all runs")
    parser.add_argument("--edm", nargs="*", default=EDM.split(), metavar="KEY=VALUE", help="of the diffusion model")
    parser.add_argument("--cpu-devices", type=int, default=0, metavar="N", help="ours compute on the CPU as N devices")
    parser.add_argument("--runs", type=Path, default=Path("runs/time_to_quality"))
    parser.add_argument("--out", required=True)
    return parser.parse_args()


def check_settings(args: argparse.Namespace) -> None:
    """Writes into ``--runs`` what its results depend on; stops where that is not what they were made with."""
    names = ("steps", "every", "stage_steps", "lr", "ema", "num", "data", "model", "edm", "cpu_devices")
    settings, note = {name: getattr(args, name) for name in names}, args.runs / "settings.json"
    if not note.exists():
        files.write_json(note, settings)
    elif json.loads(note.read_text()) != settings:
        raise SystemExit(f"{note} has other settings than these: use another --runs, or remove {args.runs}")


def prepare(args: argparse.Namespace) -> None:
    """The diffusion model, its weights under ECT's names, and the images as PyTorch has them."""
    sct_jax("train", *config(args, "edm", *args.edm), "--workdir", str(args.runs / "edm"))
    if not weights(args).exists():
        sct_jax(
            "export", "--checkpoint", str(args.runs / "edm"), "--format", "safetensors", "--out", str(weights(args))
        )
    if not images(args).exists():
        pixels, labels = opened(args).read_all()
        pixels = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        files.write(images(args), lambda aside: np.savez(aside, images=pixels, labels=labels))


def data_of(args: argparse.Namespace) -> Any:
    return config_lib.load_config(ROOT / "configs" / f"{args.data}_edm.py", pairs(args.model)).data


def opened(args: argparse.Namespace) -> Any:
    data = data_of(args)
    return open_source(data.source, data.path, split=data.split, image_size=data.image_size)


def weights(args: argparse.Namespace) -> Path:
    return args.runs / "edm.safetensors"


def images(args: argparse.Namespace) -> Path:
    return args.runs / "images.npz"


def config(args: argparse.Namespace, method: str, *overrides: str) -> list[str]:
    chosen = pairs([*args.model, *QUIET.split(), *overrides])
    return ["--config", str(ROOT / "configs" / f"{args.data}_{method}.py")] + [
        f"--config.{key}={value}" for key, value in chosen.items()
    ]


def sct_jax(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "sct_jax", *command], cwd=ROOT, check=True)


def run(args: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """Runs a method unless it has been; the seconds at which it saved each step, and of the processor in all."""
    folder = args.runs / f"seed{seed}" / name.lower().replace(" ", "_")
    note = folder.with_suffix(".json")
    if note.exists():
        return json.loads(note.read_text())
    if folder.exists():
        raise SystemExit(f"{folder} is of a run that did not end: remove it")
    used, load = children_seconds(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as cache:  # of compiled programs
        began = time.time()
        subprocess.run(command(args, name, seed, folder), check=True, env=os.environ | {"XDG_CACHE_HOME": cache})
    saved = sorted((int(path.stem), whole_at(path) - began) for path in kept(folder))
    versions = folder / "versions.json"
    result = {
        "folder": str(folder),
        "seconds": saved[-1][1],
        "processor_seconds": children_seconds() - used,
        "load_before": load,
        "saved": saved,
        "versions": json.loads(versions.read_text()) if versions.exists() else None,
    }
    print(f"{name}, seed {seed}: {result['seconds']:.0f} s", flush=True)
    files.write_json(note, result)
    return result


def children_seconds() -> float:
    """Of the processor, of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def whole_at(path: Path) -> float:
    """When a checkpoint was saved whole: later something is noted in our folder of it."""
    return (path / "commit_success.txt" if path.is_dir() else path).stat().st_mtime


def command(args: argparse.Namespace, name: str, seed: int, folder: Path) -> list[str]:
    """The command of a method, which saves into ``folder``."""
    numbers = {"batch": pairs(args.model)["batch_size"], "steps": args.steps, "every": args.every, "seed": seed}
    numbers |= {"stage-steps": args.stage_steps, "lr": args.lr, "ema": args.ema, "q": 2}
    if name == METHODS[0]:
        program = str(ROOT / "benchmarks" / "peer_ect_train.py")
        given = ["--peer", str(args.peer), "--weights", str(weights(args)), "--data", str(images(args))]
        given += [part for key, value in numbers.items() for part in (f"--{key}", str(value))]
        return [args.peer_python, program, *given, "--out", str(folder)]
    tuned = f"total_steps={args.steps} seed={seed} objective.stage_steps={args.stage_steps} optimizer.name=radam "
    tuned += f"optimizer.lr={args.lr} optimizer.b2=0.999 optimizer.clip_norm=0 ema.profiles=constant:{args.ema} "
    tuned += f"checkpoint.every_steps={args.every} checkpoint.keep_every_steps={args.every} "
    tuned += f"init.checkpoint={(args.runs / 'edm').absolute()}"
    given = [*config(args, name.lower(), *tuned.split()), "--workdir", str(folder.absolute())]
    given += ["--cpu-devices", str(args.cpu_devices)] if args.cpu_devices else []
    return [sys.executable, "-m", "sct_jax", "train", *given]


def kept(folder: Path) -> list[Path]:
    ours = folder / "checkpoints"
    return [path for path in (ours.iterdir() if ours.is_dir() else folder.glob("*.pt")) if path.stem.isdigit()]


def measure(args: argparse.Namespace, folder: Path, step: int, at: float) -> dict[str, Any]:
    """Quality of one-step samples of what was saved after ``step``, ``at`` seconds after the command began."""
    note = folder.parent / "measured" / f"{folder.name}-{step}.json"
    if not note.exists():
        made = folder / "checkpoints" / str(step)
        if not made.is_dir():
            made = folder / f"imported-{step}"
            if not made.exists():
                import_to(folder / f"{step}.pt", made, method="ect", image_size=opened(args).spec.image_size)
        data = data_of(args)
        path = data.path or (DEBIAN_FASHION_MNIST if data.source == "idx" else data.source)
        found = evaluate_checkpoint(made, steps=[1], num=args.num, metrics=METRICS, data_path=path)
        files.write_json(note, {key: found["results"][0][key] for key in METRICS} | {"floor": found["floor"]})
    return {"step": step, "seconds": at} | json.loads(note.read_text())


def reached(curve: list[dict[str, Any]], metric: str, level: float) -> float:
    """Seconds at which a curve that begins above ``level`` is at it, between two points linear in time and log."""
    for before, row in pairwise(curve):
        if row[metric] <= level:
            part = math.log(before[metric] / level) / math.log(before[metric] / row[metric])
            return before["seconds"] + part * (row["seconds"] - before["seconds"])
    raise ValueError(f"{metric} is never {level}")


def levels(results: dict[str, list[dict[str, Any]]], metric: str) -> list[float]:
    """Up to five values that every run passes: under the best first measurement, down to the worst of the best."""
    curves = [[row[metric] for row in each["curve"]] for runs in results.values() for each in runs]
    low, high = max(map(min, curves)), min(curve[0] for curve in curves)
    found = {float(f"{low * (high / low) ** (index / 5):.2g}") for index in range(5)}
    return sorted((level for level in found if low <= level < high), reverse=True)


def write(args: argparse.Namespace, results: dict[str, list[dict[str, Any]]]) -> None:
    """The table of seconds to each level and of the end, the curves, and everything as JSON."""
    steps = results[METHODS[0]][0]["saved"][-1][0]
    lines = [f"| seconds until | {' | '.join(METHODS)} | PyTorch / ECT here | PyTorch / SCT here |"]
    lines.append("|---|" + "---:|" * 5)
    for metric in METRICS[:2]:
        for level in levels(results, metric):
            row = [[reached(each["curve"], metric, level) for each in results[name]] for name in METHODS]
            cells = [spread(values) for values in row]
            ratios = [f"{np.mean(row[0]) / np.mean(values):.2f}" for values in row[1:]]
            lines.append(f"| {metric} {level:g} | {' | '.join(cells + ratios)} |")
    ends = [f"| after {steps:,} steps | {' | '.join(METHODS)} |", "|---|" + "---:|" * 3]
    for metric in METRICS:
        cells = [spread([each["curve"][-1][metric] for each in results[name]]) for name in METHODS]
        ends.append(f"| {metric} | {' | '.join(cells)} |")
    for key in ("seconds", "processor_seconds"):
        cells = [spread([each[key] for each in results[name]]) for name in METHODS]
        ends.append(f"| {key.replace('_', ' ')} | {' | '.join(cells)} |")
    series = []
    for colour, (name, runs) in enumerate(results.items()):
        for dash, each in enumerate(runs):
            x, y = zip(*((row["seconds"], row[METRICS[0]]) for row in each["curve"]), strict=True)
            label = f"{name}, run {dash + 1}" if len(runs) > 1 else name
            series.append(Series(label, x, y, colour=colour, dash=dash, markers=True))
    chart = line_chart(series, "seconds since the command began", METRICS[0], log_y=True)
    facts = provenance(peer="locuslab/ect", cpu_cores=os.cpu_count())
    facts["huge_pages"] = "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", "")
    files.write_json(f"{args.out}.json", {"results": results, "provenance": facts})
    files.write_text(f"{args.out}.svg", stand_alone(chart, series))
    text = [*lines, "", *ends, "", f"{made_by(facts)}."]
    text += ["", f"![{METRICS[0]} against seconds]({Path(args.out).name}.svg)"]
    print(files.write_text(f"{args.out}.md", "\n".join(text) + "\n"))


if __name__ == "__main__":
    main()
