"""ECT against SCT at equal steps, over several training seeds: mean and spread of quality at 1 and 2 steps.

    python benchmarks/ect_vs_sct.py --data digits --seeds 0,1,2 --out docs/results/ect_vs_sct_digits

For each seed one diffusion model is trained (configs/DATA_edm.py), and from it one model with each tuning config.
Everything resumes: a run that is there already is not trained again. Writes OUT.json and OUT.md. Overrides such as
``--all model.channels=512`` go to every config, ``--edm``, ``--tune`` ones to the diffusion or the tuned models, and
``--variant sct+norm:objective.normalize_stage=True`` adds a variant of a method.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import made_by, pairs

from sct_jax import config as config_lib
from sct_jax import files
from sct_jax.evaluation.provenance import provenance
from sct_jax.evaluation.run import evaluate_checkpoint
from sct_jax.training.loop import train

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("fd_pca", "fd_classifier", "class_agreement")


def run_one(name: str, data: str, overrides: dict[str, str], workdir: Path) -> float:
    """Trains one config unless it is trained; returns the seconds of training that its log shows."""
    config = config_lib.load_config(ROOT / "configs" / f"{data}_{name}.py", overrides)
    train(config, workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return max(row.get("seconds", 0.0) for row in rows)


def measure(workdir: Path, steps: list[int], num: int | None) -> dict[str, Any]:
    """The evaluation of a run over three sampling seeds, kept beside it."""
    path = workdir / "evaluation.json"
    if path.exists():
        return json.loads(path.read_text())
    result = evaluate_checkpoint(workdir, steps=steps, num=num, seeds=(0, 1, 2), metrics=METRICS)
    files.write_json(path, result)
    return result


def table(rows: dict[str, list[dict[str, Any]]], seconds: dict[str, list[float]]) -> str:
    """Markdown: method and steps against metrics, mean ± sample standard deviation over training seeds."""
    lines = [
        "| method | steps | " + " | ".join(METRICS) + " | training, s |",
        "|---|---|" + "---|" * (len(METRICS) + 1),
    ]
    for method, results in rows.items():
        for index, first in enumerate(results[0]["results"]):
            cells = []
            for metric in METRICS:
                values = [result["results"][index][metric] for result in results]
                spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
                cells.append(f"{np.mean(values):.3f}{spread}")
            cost = f"{np.mean(seconds[method]):.0f}"
            lines.append(f"| {method} | {first['sampling_steps']} | {' | '.join(cells)} | {cost} |")
    floor = next(iter(rows.values()))[0]["floor"]
    lines.append("| real against real | | " + " | ".join(f"{floor.get(m, float('nan')):.3f}" for m in METRICS) + " | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", help="the configs' prefix: digits, fashion_mnist, cifar10")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--runs", default="runs/ect_vs_sct")
    parser.add_argument("--num", type=int, help="samples for each sampling seed")
    parser.add_argument("--all", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--edm", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--tune", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--variant", nargs="*", default=[], metavar="METHOD+NAME:KEY=VALUE,KEY=VALUE")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    variants = {"ect": {}, "sct": {}}
    for text in args.variant:
        name, _, settings = text.partition(":")
        variants[name] = pairs(settings.split(","))
    rows: dict[str, list[dict[str, Any]]] = {"edm": [], **{name: [] for name in variants}}
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    began = time.time()
    for seed in map(int, args.seeds.split(",")):
        shared = pairs(args.all) | {"seed": str(seed)}
        folder = Path(args.runs) / args.data / f"seed{seed}"
        seconds["edm"].append(run_one("edm", args.data, shared | pairs(args.edm), folder / "edm"))
        rows["edm"].append(measure(folder / "edm", [18, 1], args.num))
        for name, settings in variants.items():
            tuned = shared | pairs(args.tune) | settings | {"init.checkpoint": str(folder / "edm")}
            seconds[name].append(run_one(name.split("+")[0], args.data, tuned, folder / name))
            rows[name].append(measure(folder / name, [1, 2], args.num))
        print(f"seed {seed} done after {time.time() - began:.0f} s\n{table(rows, seconds)}", flush=True)
    facts = provenance(
        seeds=args.seeds, overrides={"all": args.all, "edm": args.edm, "tune": args.tune, "variant": args.variant}
    )
    result = {"results": rows, "training_seconds": seconds, "provenance": facts}
    files.write_json(f"{args.out}.json", result)
    text = f"{table(rows, seconds)}\n\n{made_by(facts)}.\n"
    files.write_text(f"{args.out}.md", text)
    print(text)


if __name__ == "__main__":
    main()
