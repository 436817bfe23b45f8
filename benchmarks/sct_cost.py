"""What SCT costs over ECT in a training step, at the shapes of the CIFAR-10 network: operations and time.

    python benchmarks/sct_cost.py --batch 128 --step-batch 4 --out docs/results/sct_cost.json

The two methods differ in ``objective.draw`` alone (the posterior mean of the batch); the network's passes are the
same. So the draw is timed for both at the full batch, and the whole step once, at ``--step-batch`` images where the
full batch is too slow for the device; its time is then scaled by the number of images, which the output says.
"""

import argparse
from typing import Any

import jax
import numpy as np
from timing import seconds

from sct_jax import config as config_lib
from sct_jax import files, models, objectives
from sct_jax.data import DataSpec
from sct_jax.evaluation.provenance import provenance
from sct_jax.objectives.table import ROWS
from sct_jax.training import mesh, step

SPEC = DataSpec(32, 3, 10, 50_000)


def make_config(method: str, batch: int) -> Any:
    """The CIFAR-10 settings of METHOD."""
    config = config_lib.default_config()
    config.batch_size = batch
    config.model.dropout = 0.2
    config.objective.update(ROWS[method])
    return config_lib.validate(config)


def draw(method: str, batch: int, repeats: int) -> dict[str, float]:
    """Time, operations and temporary memory of drawing one batch's transitions."""
    objective = objectives.build(make_config(method, batch), lambda *a, **k: None)
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.uniform(-1, 1, (batch, 32, 32, 3)).astype(np.float32))
    labels, key, at = np.zeros(batch, np.int32), jax.random.key(0), np.int32(100_000)
    compiled = jax.jit(objective.draw).lower(images, labels, key, at).compile()
    return {
        "seconds": seconds(lambda: compiled(images, labels, key, at), repeats, jax.block_until_ready)["median"],
        "gflop": compiled.cost_analysis()["flops"] / 1e9,
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
    }


def whole_step(batch: int, repeats: int) -> dict[str, float]:
    """Time and operations of one SCT training step of the 55.7 M parameter network."""
    config = make_config("sct", batch)
    network = models.build(config.model, SPEC)
    train_step = step.make_train_step(config, objectives.build(config, network.denoise), mesh.make_mesh(1))
    state = jax.jit(lambda: step.initial_state(config, network.init(jax.random.key(0))))()
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (batch, 32, 32, 3)).astype(np.uint8), np.zeros(batch, np.int32)
    batch_arrays = jax.device_put({"image": image, "label": label})
    compiled = jax.jit(train_step).lower(state, batch_arrays).compile()
    return {
        "seconds": seconds(lambda: compiled(state, batch_arrays), repeats, jax.block_until_ready)["median"],
        "gflop": compiled.cost_analysis()["flops"] / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--step-batch", type=int, default=4, help="images in the timed whole step")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--step-repeats", type=int, default=3)
    parser.add_argument("--out")
    args = parser.parse_args()
    ect, sct = draw("ect", args.batch, args.repeats), draw("sct", args.batch, args.repeats)
    full = whole_step(args.step_batch, args.step_repeats)
    scale = args.batch / args.step_batch
    scaled = {name: value * scale for name, value in full.items()}
    extra = {name: sct[name] - ect[name] for name in ect}
    result = {
        "batch": args.batch,
        "draw_ect": ect,
        "draw_sct": sct,
        "extra": extra,
        "step": full | {"batch": args.step_batch},
        "step_scaled_to_batch": scaled,
        "extra_share_of_time": extra["seconds"] / scaled["seconds"],
        "extra_share_of_operations": extra["gflop"] / scaled["gflop"],
        "provenance": provenance(),
    }
    print(f"{'':24}{'time, ms':>12}{'GFLOP':>12}{'temporary, MB':>16}")
    for name, row in (("draw, ECT", ect), ("draw, SCT", sct)):
        print(f"{name:24}{row['seconds'] * 1e3:12.2f}{row['gflop']:12.3f}{row['temporary_mb']:16.1f}")
    print(f"{f'step, scaled x{scale:g}':24}{scaled['seconds'] * 1e3:12.0f}{scaled['gflop']:12.0f}")
    shares = (
        f"{100 * result['extra_share_of_time']:.3f} % of the time, {100 * result['extra_share_of_operations']:.4f} %"
    )
    print(f"SCT over ECT, batch {args.batch}: {shares} of the operations")
    if args.out:
        print(files.write_json(args.out, result))


if __name__ == "__main__":
    main()
