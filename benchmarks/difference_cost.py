"""What the TD difference as a derivative costs: a training step with each form, timed in turn in one process.

    python benchmarks/difference_cost.py --config configs/cifar10_sct.py --batch 32 --set model.channels=32 \\
        model.num_blocks=1 reference.source=batch --out docs/results/difference_cost_small

For each of ``--modes`` (a compute dtype and a form of ``objective.difference``): operations of the step, seconds by
medians and least, and their ratio to the first mode. The steps take turns, so that neighbours of a shared machine slow
all of them alike. Images are random, and on the device.
"""

import argparse
import statistics
import time
from typing import Any

import jax
import numpy as np
from common import made_by, pairs

from sct_jax import config as config_lib
from sct_jax import files
from sct_jax.data import DataSpec
from sct_jax.evaluation.provenance import provenance
from sct_jax.plan import operations
from sct_jax.training import assembly, mesh

SPEC = DataSpec(32, 3, 10, 50_000)


class Mode:
    """One compiled step and its state."""

    def __init__(self, name: str, args: argparse.Namespace):
        self.name, self.seconds = name, []
        dtype, form = name.split(":")
        overrides = pairs(args.set) | {"model.compute_dtype": dtype, "objective.difference": form}
        config = config_lib.load_config(args.config, overrides | {"batch_size": str(args.batch)})
        devices = mesh.make_mesh(1, 1, jax.devices()[:1])
        made = assembly.assemble(config, SPEC, devices)
        self.state = assembly.initial_state(made)
        images = np.random.default_rng(0).integers(0, 256, (args.batch, 32, 32, 3)).astype(np.uint8)
        self.batch = jax.device_put({"image": images, "label": np.arange(args.batch, dtype=np.int32) % 10})
        traced = jax.jit(made.train_step, donate_argnums=0).trace(self.state, self.batch)
        self.operations = sum(operations.count(traced.jaxpr).values())
        self.step = traced.lower().compile()

    def run(self, timed: bool) -> None:
        began = time.perf_counter()
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        if timed:
            self.seconds.append(time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cifar10_sct.py")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--modes", default="float32:evaluated,float32:tangent")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", required=True, help="OUT.json and OUT.md")
    args = parser.parse_args()
    modes = [Mode(name, args) for name in args.modes.split(",")]
    for index in range(args.repeats + 2):
        for mode in modes:
            mode.run(timed=index > 1)
    rows: list[dict[str, Any]] = []
    for mode in modes:
        median, least = statistics.median(mode.seconds), min(mode.seconds)
        rows.append({"mode": mode.name, "operations": mode.operations, "median": median, "least": least})
    facts = provenance(device=jax.devices()[0].device_kind)
    files.write_json(f"{args.out}.json", {"rows": rows, "batch": args.batch, "set": args.set, "provenance": facts})
    lines = ["| computes in: difference | operations | step, s (least) | to the first |", "|---|---:|---:|---:|"]
    for row in rows:
        times = f"{row['median']:.3f} ({row['least']:.3f})"
        ratios = [row[key] / rows[0][key] for key in ("operations", "median", "least")]
        ratio = f"{ratios[0]:.2f} of operations, {ratios[1]:.2f} of time ({ratios[2]:.2f})"
        lines.append(f"| {row['mode']} | {row['operations'] / 1e9:.1f} G | {times} | {ratio} |")
    files.write_text(f"{args.out}.md", "\n".join(lines) + f"\n\n{made_by(facts)}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
