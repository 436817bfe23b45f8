"""What the posterior mean costs by where its rows come from: operations, bytes, and time as a share of a step.

    python benchmarks/reference_cost.py --out docs/results/reference_cost.json --table docs/results/reference_cost.md
    python benchmarks/reference_cost.py --measure-step --out …                                   # on an accelerator

Batch (128 rows that all queries share), bank (256 rows for each query, drawn in the step from a store of 50,000) and
data set (all 50,000), for images of 32x32x3. The share is of the training step of the 55.7 M parameter network for
CIFAR-10 at the same batch: ``--step-seconds`` if given, measured here with ``--measure-step``, else on a CPU that of
``docs/results/sct_cost.json`` (timed at a smaller batch and scaled by the number of images).

XLA counts a loop's body once, so its count of operations stands in the JSON only and the table has the sum: for each
query, row and pixel 6 where differences are formed (batch, bank), 10 for the five matrix products of the data set.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import sct_cost
from timing import seconds

from sct_jax import files
from sct_jax.data import references as store_lib
from sct_jax.data.spec import ArraySource
from sct_jax.evaluation.provenance import provenance
from sct_jax.objectives import references

STEP_RECORD = Path(__file__).resolve().parent.parent / "docs" / "results" / "sct_cost.json"
SHAPE = (32, 32, 3)
OPERATIONS = {"batch": 6, "bank": 6, "dataset": 10}  # for each query, row and pixel
COLUMNS = (
    ("rows of a query", "rows", 1, "d"),
    ("operations, GFLOP", "operations", 1e9, ".1f"),
    ("store, MB", "store_bytes", 1e6, ".1f"),
    ("rows read, MB", "read_bytes", 1e6, ".1f"),
    ("temporaries, MB", "temporary_bytes", 1e6, ".1f"),
    ("time, ms", "seconds", 1e-3, ".1f"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--bank", type=int, default=256, help="rows for each query")
    parser.add_argument("--images", type=int, default=50_000, help="rows of the store")
    parser.add_argument("--block", type=int, help="rows of the data set at a time (default: the config's)")
    parser.add_argument("--bank-block", type=int, help="rows of the bank at a time (default: the config's)")
    parser.add_argument("--repeats", type=int, default=5)
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--step-seconds", type=float, help="the network's step at this batch")
    step.add_argument("--measure-step", action="store_true", help="time the network's step here")
    parser.add_argument("--out", help="where the JSON goes")
    parser.add_argument("--table", help="where the table goes, in Markdown")
    args = parser.parse_args()
    load = [round(value, 2) for value in os.getloadavg()]
    step_seconds, step_from = network_step(args)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (args.images, *SHAPE), dtype=np.uint8)
    store = store_lib.make_store(ArraySource(images, rng.integers(0, 10, args.images), 10))
    rows = {source: measure(source, args, store) for source in OPERATIONS}
    for row in rows.values():
        row["share_of_step"] = row["seconds"] / step_seconds if step_seconds else None
    result = {"batch": args.batch, "image": SHAPE, "sources": rows, "step_seconds": step_seconds}
    result |= {"step_from": step_from, "load_before": load, "provenance": provenance()}
    text = table(result)
    print(text)
    if args.out:
        print(files.write_json(args.out, result))
    if args.table:
        print(files.write_text(args.table, text + "\n"))


def network_step(args: argparse.Namespace) -> tuple[float | None, str]:
    """Seconds of the CIFAR-10 network's training step at the batch, and how they were found."""
    if args.step_seconds:
        return args.step_seconds, "given"
    if args.measure_step:
        return sct_cost.whole_step(args.batch, args.repeats)["seconds"], "measured here"
    if jax.default_backend() == "cpu" and STEP_RECORD.is_file():
        record = json.loads(STEP_RECORD.read_text())["step"]
        return record["seconds"] * args.batch / record["batch"], f"{STEP_RECORD.name}, from batch {record['batch']}"
    return None, "unknown: give --step-seconds or --measure-step"


def measure(source: str, args: argparse.Namespace, store: dict[str, np.ndarray]) -> dict[str, Any]:
    """Operations, bytes and the median time of the posterior means of one batch with the rows of ``source``."""
    config = sct_cost.make_config("sct", args.batch)
    config.reference.source, config.reference.size = source, args.bank
    config.reference.block = args.block or config.reference.block
    config.reference.bank_block = args.bank_block or config.reference.bank_block
    needed = {"batch": (), "bank": ("image", "label", "order", "start"), "dataset": ("image", "label")}[source]
    kept = jax.device_put({name: store[name] for name in needed})
    rng = np.random.default_rng(1)
    x_0 = store["image"][: args.batch].astype(np.float32) / 127.5 - 1.0
    noise, t = rng.normal(size=x_0.shape).astype(np.float32), rng.lognormal(-1.1, 2.0, args.batch).astype(np.float32)
    given = jax.device_put((x_0, noise, t, store["label"][: args.batch], kept, jax.random.key(0)))
    compiled = jax.jit(references.build(config)).lower(*given).compile()
    count = {"batch": args.batch, "bank": args.bank + 1, "dataset": args.images}[source]
    read = {"batch": 4 * args.batch, "bank": args.batch * args.bank, "dataset": args.images}[source]
    return {
        "rows": count,
        "block": {"batch": args.batch, "bank": config.reference.bank_block, "dataset": config.reference.block}[source],
        "operations": OPERATIONS[source] * args.batch * count * x_0[0].size,
        "operations_counted_once_a_loop": compiled.cost_analysis()["flops"],
        "store_bytes": sum(array.nbytes for array in kept.values()),
        "read_bytes": read * x_0[0].size,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "seconds": seconds(lambda: compiled(*given), args.repeats, jax.block_until_ready)["median"],
    }


def table(result: dict[str, Any]) -> str:
    """Markdown: a line for each source of rows, and what the share is of."""
    lines = ["| references | " + " | ".join(name for name, *_ in COLUMNS) + " | share of the step |"]
    lines.append("|---" + "|---:" * (len(COLUMNS) + 1) + "|")
    for source, row in result["sources"].items():
        cells = [format(row[key] if unit == 1 else row[key] / unit, kind) for _, key, unit, kind in COLUMNS]
        share = "" if row["share_of_step"] is None else f"{100 * row['share_of_step']:.2g} %"
        lines.append(f"| {source} | {' | '.join(cells)} | {share} |")
    step = "unknown" if result["step_seconds"] is None else f"{result['step_seconds']:.4g} s"
    lines += [
        "",
        f"Batch {result['batch']} on {result['provenance']['device']}, load {result['load_before'][0]} before.",
    ]
    lines[-1] += f" Step of the network: {step} ({result['step_from']})."
    return "\n".join(lines)


if __name__ == "__main__":
    main()
