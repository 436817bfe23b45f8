"""What the runs of the paper would take on TPU slices: a plan each, the table of all, and weak scaling to 256 chips.

    python benchmarks/plan_table.py --out docs/results/plan            # all plans below; an hour or two on two cores
    python benchmarks/plan_table.py --only cifar10 --out docs/results/plan
    python benchmarks/plan_table.py --limit 0 --out docs/results/plan  # the table of what was planned already

Each plan is ``sct-jax plan`` in a process of its own and is kept as one JSON in ``--keep``: what is there is not
planned again. It writes OUT.json with all plans and OUT.md with the tables. Nothing of it was measured on a TPU.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sct_jax import files

ROOT = Path(__file__).resolve().parent.parent


class Planned(NamedTuple):
    """One plan: what the table calls it, the config and its overrides, the slice."""

    title: str
    config: str
    topology: str
    overrides: dict[str, str]

    @property
    def name(self) -> str:
        options = "_".join(f"{key.rsplit('.', 1)[-1]}-{value}" for key, value in self.overrides.items())
        return "_".join(filter(None, (self.config, self.topology.replace(":", "_"), options)))


# What the first plans were made with; the configs have come to other references since, docs/results/reference_plan.md.
BATCH, BANK = {"reference.source": "batch"}, {"reference.source": "bank", "reference.size": "256"}
EVALUATED = {"objective.difference": "evaluated"}
BFLOAT16 = {"model.compute_dtype": "bfloat16"}
MEDIUM = BFLOAT16 | {"model.channels": "256"}  # EDM2-M
CIFAR10, DIGITS = "CIFAR-10 SCT, DDPM++", "digits SCT, MLP"
SMALL, LARGER = "ImageNet-64 SCT, EDM2-S", "ImageNet-64 SCT, EDM2-M"
PLANS = (
    Planned(CIFAR10, "cifar10_sct", "v5e:2x4", BFLOAT16 | BATCH | EVALUATED),
    Planned(CIFAR10, "cifar10_sct", "v5e:2x4", BFLOAT16 | BATCH),
    Planned(SMALL, "imagenet64_sct", "v5e:4x4", BFLOAT16 | BANK | EVALUATED),
    Planned(CIFAR10, "cifar10_sct", "v5e:2x4", BATCH),
    Planned(SMALL, "imagenet64_sct", "v6e:2x4", BFLOAT16 | BANK | EVALUATED),
    Planned(SMALL, "imagenet64_sct", "v5p:2x2x1", BFLOAT16 | BANK | EVALUATED),
    Planned(CIFAR10, "cifar10_sct", "v6e:2x2", BFLOAT16 | BATCH | EVALUATED),
    Planned(SMALL, "imagenet64_sct", "v4:2x2x2", BFLOAT16 | BANK | EVALUATED),
    Planned(LARGER, "imagenet64_sct", "v6e:2x4", MEDIUM | BANK | EVALUATED),
    Planned(LARGER, "imagenet64_sct", "v5e:4x4", MEDIUM | BANK | EVALUATED),
    Planned(LARGER, "imagenet64_sct", "v5e:4x4", MEDIUM | BANK | EVALUATED | {"mesh.fsdp": "16"}),
    Planned(LARGER, "imagenet64_sct", "v5p:2x2x2", MEDIUM | BANK | EVALUATED),
    Planned(SMALL, "imagenet64_sct", "v5e:16x16", BFLOAT16 | BANK | EVALUATED | {"batch_size": "2048"}),
    *(Planned(DIGITS, "digits_sct", name, {}) for name in ("v5e:2x4", "v5p:2x2x1", "v6e:2x4", "v4:2x2x2")),
    Planned(DIGITS, "digits_sct", "v5e:2x4", {"mesh.fsdp": "4", "mesh.data": "2", "mesh.fsdp_min_size": "1024"}),
)

Row = Callable[[dict[str, Any]], str]
COLUMNS: dict[str, Row] = {
    "run": lambda p: p["title"],
    "slice": lambda p: p["topology"] + (f", fsdp {p['mesh']['fsdp']}" if p["mesh"]["fsdp"] > 1 else ""),
    "batch": lambda p: str(p["batch_size"]),
    "computes in": lambda p: p["compute_dtype"],
    "difference": lambda p: (p.get("difference") or {}).get("planned") or "evaluated",
    "peak of a chip, GiB": lambda p: _scaled(p["memory"]["peak"], 2**30, ".1f") + ("" if p["fits"] else " (too much)"),
    "operations a step, T": lambda p: _scaled(sum(p["operations"]["step"].values()), 1e12, ".1f"),
    "through HBM a chip, GB": lambda p: _scaled(p["hbm_bytes"]["chip"], 1e9, ".1f"),
    "sent by a chip, MB": lambda p: _scaled(sum(c["sent_by_chip"] for c in p["collectives"]), 1e6, ".0f"),
    "compute, ms": lambda p: _scaled(p["floor"]["compute"], 1e-3, ".1f"),
    "HBM, ms": lambda p: _scaled(p["floor"]["memory"], 1e-3, ".1f"),
    "links, ms": lambda p: _scaled(p["floor"]["interconnect"], 1e-3, ".1f"),
    "images/s at most": lambda p: f"{p['run']['at_floor']['images_per_second']:,.0f}",
    "hours at least": lambda p: f"{p['run']['at_floor']['hours']:.1f}",
    "hours at 40 %": lambda p: f"{p['run']['at_efficiency']['hours']:.1f}",
    "chip-hours at 40 %": lambda p: f"{p['run']['at_efficiency']['chip_hours']:.0f}",
    "planned in, min": lambda p: _scaled(sum(p["seconds_here"].values()), 60, ".1f"),
}
CHIPS = (8, 32, 64, 128, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="plan only those whose name has this in it")
    parser.add_argument("--limit", type=int, default=len(PLANS), help="plan at most so many; 0: only write the table")
    parser.add_argument("--keep", default="runs/plan", help="folder for one JSON a plan")
    parser.add_argument("--out", default="docs/results/plan", help="of .json and .md")
    args = parser.parse_args()
    keep, left = Path(args.keep), args.limit
    for planned in PLANS:
        path = keep / f"{planned.name}.json"
        if left and args.only in planned.name and not path.exists():
            left -= 1
            plan(planned, path)
            write(args.out, keep)
    write(args.out, keep)


def plan(planned: Planned, path: Path) -> None:
    """Runs ``sct-jax plan``; its text goes to this terminal."""
    overrides = [f"--config.{key}={value}" for key, value in planned.overrides.items()]
    config = str(Path("configs") / f"{planned.config}.py")
    command = [sys.executable, "-m", "sct_jax", "plan", "--config", config, "--topology", planned.topology]
    began = time.perf_counter()
    done = subprocess.run([*command, *overrides, "--out", str(path.absolute())], cwd=ROOT, check=False)
    print(f"{planned.name}: status {done.returncode} after {time.perf_counter() - began:.0f} s", flush=True)


def write(out: str, keep: Path) -> None:
    """Writes OUT.json and OUT.md of all plans that are there."""
    found = []
    for planned in sorted(PLANS, key=lambda each: (each.title, each.topology)):
        path = keep / f"{planned.name}.json"
        if path.exists():
            found.append({"title": planned.title} | json.loads(path.read_text(encoding="utf-8")))
    files.write_json(f"{out}.json", found)
    text = table(list(COLUMNS), [[column(each) for column in COLUMNS.values()] for each in found])
    scaled = [row for each in found if each["weak_scaling"] for row in [scaling_row(each)]]
    heads = ["run", "slice of the plan", "images a chip", *(f"{count} chips" for count in CHIPS)]
    files.write_text(f"{out}.md", f"{INTRODUCTION}\n{text}\n{SCALING}\n{table(heads, scaled)}")
    print(f"{out}.md: {len(found)} of {len(PLANS)} plans", flush=True)


INTRODUCTION = """# Planned, not run

What `sct-jax plan` says of the published runs, and of the digits, on TPU slices that were not there: the train step
really compiled, by libtpu, on two CPU cores (mesh over all chips; bfloat16 where it says so is
`--config.model.compute_dtype=bfloat16`, the configs have float32, which costs a TPU six passes). The three times are
floors from published peaks (`sct_jax/plan/chips.py`); the largest binds. What real steps reach of them is not known
here: 40 % is an assumption. `difference` is the form of the TD difference (`objective.difference`): a bfloat16 run
begins with the evaluated one and trains on the derivative once gaps are small. References are the batch (CIFAR-10,
digits) and a bank of 256 (ImageNet-64); what others cost in addition is [a table of its own](reference_plan.md).
"""
SCALING = """## Weak scaling by the floor model

The same images a chip on more chips of the same kind: efficiency with collectives beside the rest / after it
(`sct_jax/plan/scaling.py` says what is left out).
"""


def scaling_row(plan: dict[str, Any]) -> list[str]:
    rows = {row["chips"]: row for row in plan["weak_scaling"]}
    cells = [
        f"{100 * rows[count]['overlapped']:.0f} / {100 * rows[count]['exposed']:.0f} %" if count in rows else ""
        for count in CHIPS
    ]
    return [
        plan["title"],
        f"{plan['topology']}, {plan['compute_dtype']}" + (", split state" if plan["mesh"]["fsdp"] > 1 else ""),
        f"{plan['batch_size'] / plan['chips']:g}",
        *cells,
    ]


def table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", "---", *["---:"] * (len(heads) - 2)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _scaled(value: float | None, unit: float, form: str) -> str:
    return "unknown" if value is None else f"{value / unit:{form}}"


if __name__ == "__main__":
    main()
