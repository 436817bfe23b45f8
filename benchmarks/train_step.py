"""A training step and one-step sampling of a config's network on this device, beside ECT's own PyTorch code.

    python benchmarks/train_step.py --config configs/cifar10_ect.py --batch 128 --out step.json     # a GPU or TPU
    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python benchmarks/train_step.py --config configs/cifar10_ect.py --batch 4 \\
        --modes float32 --cpu-devices 2 --peer ECT --peer-python PYTHON                             # two CPU cores

Modes: `float32` (TF32 off), `tf32`, `bfloat16` (activations; parameters, losses and averages stay float32). Images are
random: what is timed is the whole jitted step on data that is on the device, and the sampler. Operations are those of
the plain convolutions, multiply-adds as two, whatever the device makes of them; utilisation is their rate over the
chip's published peak, on a CPU over the rate of a matrix product measured here. `--set model.channels=32` overrides.
One device computes; `--cpu-devices 2` makes two of the CPU, as `sct-jax train` does, and splits the batch over them.

`--peer` is a checkout of github.com/locuslab/ect, run by `--peer-python` (which has PyTorch) through `peer_ect.py`
after ours, on the same shapes, device and environment; the ratio is its time over ours.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import pairs
from timing import seconds

from sct_jax import config as config_lib
from sct_jax import files
from sct_jax.data import DataSpec
from sct_jax.evaluation.provenance import provenance
from sct_jax.plan import chips, operations
from sct_jax.sampling.generate import Generator
from sct_jax.training import assembly, mesh

HERE = Path(__file__).resolve().parent
PRECISION = {"float32": ("highest", "float32"), "tf32": ("high", "tf32"), "bfloat16": ("high", "bfloat16")}
PEAK = {"float32": "float32 highest", "tf32": "float32 high", "bfloat16": "bfloat16"}
SPECS = {"cifar10": DataSpec(32, 3, 10, 50_000), "imagenet64": DataSpec(64, 3, 1000, 1_281_167)}


def main() -> None:
    args = parse()
    if args.cpu_devices:
        mesh.split_cpu(args.cpu_devices)
    load, rows = os.getloadavg()[0], []
    for mode in args.modes:
        rows.append({"implementation": "sct_jax", "mode": mode} | measure(args, mode))
        print(line(rows[-1], args.batch), flush=True)
    if args.peer:
        for row in peer(args):
            rows.append(row)
            print(line(row, args.batch), flush=True)
    result = {
        "config": args.config,
        "overrides": args.set,
        "batch": args.batch,
        "devices": args.cpu_devices or 1,
        "rows": rows,
        "ratios": ratios(rows),
        "cpu_cores": os.cpu_count(),
        "load_before": round(load, 2),
        "huge_pages": "hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""),
        "machine": platform.machine(),
        "provenance": provenance(),
    }
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio:.2f}")
    if args.out:
        print(files.write_json(args.out, result))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/cifar10_ect.py")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="overrides of the config")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--modes", nargs="+", choices=list(PRECISION), default=list(PRECISION))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cpu-devices", type=int, default=0, metavar="N", help="compute on the CPU as N devices")
    parser.add_argument("--peer", type=Path, help="a checkout of ECT")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--peer-modes", nargs="+", default=["shipped"], choices=["shipped", "tf32", "bfloat16"])
    parser.add_argument("--out")
    return parser.parse_args()


def measure(args: argparse.Namespace, mode: str) -> dict[str, Any]:
    """Seconds, operations, utilisation and memory of one mode."""
    precision, compute = PRECISION[mode]
    jax.config.update("jax_default_matmul_precision", precision)
    given = pairs(args.set)
    given |= {"batch_size": str(args.batch), "model.compute_dtype": compute}
    config = config_lib.load_config(args.config, given)
    spec = SPECS["imagenet64" if "imagenet64" in args.config else "cifar10"]
    devices = mesh.make_mesh(args.cpu_devices or 1, 1, jax.devices()[: args.cpu_devices or 1])
    made = assembly.assemble(config, spec, devices)
    state, rng, size = assembly.initial_state(made), np.random.default_rng(0), spec.image_size
    images = rng.integers(0, 256, (args.batch, size, size, 3)).astype(np.uint8)
    batch = {"image": images, "label": np.arange(args.batch, dtype=np.int32) % spec.num_classes}
    batch = jax.device_put(batch, mesh.split_batch(devices))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    traced = jax.jit(made.train_step, donate_argnums=0).trace(state, batch)
    work = sum(operations.count(traced.jaxpr).values())  # of all devices
    began = time.perf_counter()
    compiled = traced.lower().compile()
    compiling = time.perf_counter() - began

    def step() -> Any:
        nonlocal state
        state, metrics = compiled(state, batch)
        return state, metrics

    timed = seconds(step, args.repeats, jax.block_until_ready)
    generator = Generator(made.network.denoise, (size, size, 3), config, made.device_mesh)
    labels = range(spec.num_classes) if config.model.conditional else None

    def sample() -> Any:
        return generator(state.params, args.batch, labels=labels, batch_size=args.batch)

    sampled = seconds(sample, args.repeats, jax.block_until_ready)
    memory = compiled.memory_analysis()
    chip = chips.find(jax.devices()[0].device_kind)
    peak = chip.operations[PEAK[mode]] if chip else matrix_rate()
    return {
        "parameters": parameters,
        "step": timed,
        "sample": sampled,
        "operations": work,
        "peak": peak,
        "peak_of": chip.name if chip else "a matrix product here",
        "utilisation": work / timed["median"] / peak,
        "peak_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes,
        "compile_seconds": compiling,
    }


def matrix_rate() -> float:
    """Operations a second of a float32 product of square matrices."""
    size = 2048
    a = jnp.ones((size, size))
    product = jax.jit(lambda a: a @ a)
    return 2 * size**3 / seconds(lambda: product(a), 5, jax.block_until_ready)["least"]


def peer(args: argparse.Namespace) -> list[dict[str, Any]]:
    """ECT's rows; what its process said where it failed."""
    model = config_lib.load_config(args.config, pairs(args.set)).model
    command = [args.peer_python, str(HERE / "peer_ect.py"), "--peer", str(args.peer), "--batch", str(args.batch)]
    command += ["--channels", str(model.channels), "--channel-mult", *map(str, model.channel_mult)]
    command += ["--num-blocks", str(model.num_blocks), "--dropout", str(model.dropout)]
    command += ["--attention", *map(str, model.attention_resolutions)]
    command += ["--repeats", str(args.repeats), "--modes", *args.peer_modes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the peer failed: {done.stderr.strip().splitlines()[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    name = f"ECT, PyTorch {found['torch']}"
    return [{"implementation": name, "threads": found["threads"]} | row for row in found["rows"]]


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """ECT's seconds over ours, for each of its modes over our mode of the same kind and over our fastest."""
    ours = {row["mode"]: row for row in rows if row["implementation"] == "sct_jax"}
    found = {}
    for row in rows:
        if row["implementation"] == "sct_jax" or "error" in row:
            continue
        for mode, mine in ours.items():
            for what in ("step", "sample"):
                found[f"{what}: ECT {row['mode']} / ours {mode}"] = row[what]["median"] / mine[what]["median"]
    return found


def line(row: dict[str, Any], batch: int) -> str:
    """A row as text."""
    name = f"{row['implementation']}, {row['mode']}"
    if "error" in row:
        return f"{name}: {row['error']}"
    rate = batch / row["step"]["median"]
    cells = [f"step {1e3 * row['step']['median']:.1f} ms ({1e3 * row['step']['least']:.1f})", f"{rate:.1f} images/s"]
    cells.append(f"sampling {batch / row['sample']['median']:.1f} images/s")
    if "utilisation" in row:
        cells.append(f"{100 * row['utilisation']:.0f} % of {row['peak_of']}")
    if "peak_bytes" in row:
        cells.append(f"{row['peak_bytes'] / 2**20:.0f} MiB")
    return f"{name} ({row['parameters']:,} parameters): " + ", ".join(cells)


if __name__ == "__main__":
    main()
