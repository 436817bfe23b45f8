"""What the reference sets of the published runs cost on TPU slices, compiled alone, as a share of the planned step.

    python benchmarks/reference_plan.py --out docs/results/reference_plan

Compiles the posterior mean of one global batch, and nothing else, by libtpu for slices that are not there, and counts
it as ``sct-jax plan`` counts the step: matrix operations, bytes through HBM, collectives, and the floor of the three;
elementwise work is in none of them. The step is that of ``docs/results/plan.json`` on the same slice, bfloat16, with
the batch (CIFAR-10) or a bank of 256 (ImageNet-64) as its references. The loop over the rows of a class, whose length
the compiler does not know, is taken to be that of a class of average size, and all of that program to be in it. Nothing
of it was measured on a TPU. Writes OUT.json and OUT.md.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from common import made_by

from sct_jax import config as config_lib
from sct_jax import files
from sct_jax.data.references import by_class
from sct_jax.evaluation.provenance import provenance
from sct_jax.objectives import masks_classes, references
from sct_jax.plan import collectives, data_spec, hlo, operations, program, topology, traffic
from sct_jax.plan import floor as floor_lib
from sct_jax.training import assembly, mesh

ROOT = Path(__file__).resolve().parent.parent


class Case(NamedTuple):
    """One reference set of one run."""

    run: str
    words: str
    topology: str
    config: str
    overrides: dict[str, Any]


CIFAR10, IMAGENET = ("CIFAR-10 SCT, DDPM++", "v5e:2x4"), ("ImageNet-64 SCT, EDM2-S", "v5e:4x4")
UNCONDITIONAL = {"model.conditional": False, "reference.source": "dataset"}
CASES = (
    Case(CIFAR10[0], "batch, 128 rows", CIFAR10[1], "cifar10_sct", {"reference.source": "batch"}),
    Case(CIFAR10[0], "bank, 256 rows a query", CIFAR10[1], "cifar10_sct", {"reference.source": "bank"}),
    Case(CIFAR10[0], "all 50,000 rows", CIFAR10[1], "cifar10_sct", {}),
    Case(CIFAR10[0], "all rows of the class, masked", CIFAR10[1], "cifar10_sct", {"model.conditional": True}),
    Case(IMAGENET[0], "bank, 85 rows a query", IMAGENET[1], "imagenet64_sct", {"reference.resident_max_mib": 0}),
    Case(IMAGENET[0], "all rows of the class, gathered", IMAGENET[1], "imagenet64_sct", {}),
    Case(IMAGENET[0], "all 1,281,167 rows", IMAGENET[1], "imagenet64_sct", UNCONDITIONAL),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", default=str(ROOT / "docs" / "results" / "plan.json"))
    parser.add_argument("--only", default="", help="cases whose words or run have this in them")
    parser.add_argument("--out", required=True, help="of .json and .md")
    args = parser.parse_args()
    plans = {(plan["title"], plan["topology"]): plan for plan in reversed(json.loads(Path(args.plans).read_text()))}
    rows = []
    for case in CASES:
        if args.only in f"{case.run} {case.words}":
            rows.append(compiled(case, plans[case.run, case.topology]))
            print(json.dumps(rows[-1]), flush=True)
    facts = provenance(libtpu=importlib.metadata.version("libtpu"))
    files.write_json(f"{args.out}.json", {"cases": rows, "provenance": facts})
    text = f"{table(rows)}\n\n{made_by(facts)}.\n"
    files.write_text(f"{args.out}.md", text)
    print(text)


def compiled(case: Case, plan: dict[str, Any]) -> dict[str, Any]:
    """The counts of one case on one chip, and the step's."""
    config = config_lib.load_config(ROOT / "configs" / f"{case.config}.py")
    for key, value in case.overrides.items():
        config_lib._set(config, key, value)
    spec, slice_ = data_spec.find(config), topology.find(case.topology)
    device_mesh = mesh.make_mesh(config.mesh.data, config.mesh.fsdp, slice_.devices)
    made = assembly.assemble(config, spec, device_mesh)
    config = made.config
    trips = 1
    if config.reference.source == "dataset" and by_class(spec, masks_classes(config)):
        trips = math.ceil(spec.num_examples / spec.num_classes / device_mesh.size / config.reference.bank_block)
    batch = assembly.abstract_batch(made, spec)
    split = mesh.split_batch(device_mesh)
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=split)  # noqa: E731
    images, t = array(*batch["image"].shape), array(config.batch_size)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = (images, images, t, batch["label"], batch.get("references", {}), key)
    traced = jax.jit(references.build(config, device_mesh), out_shardings=split).trace(*arguments)
    counts = {name: trips * value for name, value in operations.count(traced.jaxpr).items()}
    one = program.compile_step(program.Traced(device_mesh, traced.lower(), counts, {}, 0, 0.0))
    module = hlo.parse(one.text)
    chips, sent = device_mesh.size, collectives.find(module)
    coordinates = [getattr(device, "coords", (0,)) for device in device_mesh.devices.flat]
    links = sum(floor_lib.seconds(slice_.chip, each, coordinates) for each in sent)
    moved = trips * traffic.count(module)
    floor = floor_lib.floor(slice_.chip, {name: value / chips for name, value in counts.items()}, moved, links)
    return {
        **case._asdict(),
        "step_title": plan["title"],
        "batch": config.batch_size,
        "size": config.reference.size,
        "operations": sum(counts.values()),
        "hbm_bytes": moved,
        "sent_by_chip": sum(each.sent for each in sent),
        "store_bytes": mesh.bytes_of_one(batch.get("references", {})),
        "temporaries": one.memory["temporaries"],
        "unknown_loops": module.unknown_loops(),
        "floor": dataclasses.asdict(floor) | {"step": floor.step, "binds": floor.binds},
        "step": {
            "operations": sum(plan["operations"]["step"].values()),
            "hbm_bytes": plan["hbm_bytes"]["chip"],
            "floor": plan["floor"]["step"],
        },
        "seconds_here": one.seconds,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line for each case."""
    heads = ("run", "slice", "references", "store, MiB a chip", "operations, T", "of the step's", "HBM a chip, GB")
    heads += ("of the step's", "temporaries, MiB", "floor, ms", "binds", "of the step's floor")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---" + "|---:" * (len(heads) - 3) + "|"]
    for row in rows:
        step, floor = row["step"], row["floor"]
        cells = (
            row["run"],
            row["topology"],
            row["words"],
            f"{row['store_bytes'] / 2**20:,.0f}",
            f"{row['operations'] / 1e12:.3g}",
            f"{100 * row['operations'] / step['operations']:.2g} %",
            f"{row['hbm_bytes'] / 1e9:.3g}",
            f"{100 * row['hbm_bytes'] / step['hbm_bytes']:.2g} %",
            f"{row['temporaries'] / 2**20:,.0f}",
            f"{1e3 * floor['step']:.3g}",
            floor["binds"],
            f"{100 * floor['step'] / step['floor']:.2g} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
