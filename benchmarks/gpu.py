"""Everything worth doing on a lent GPU, in one call of under ten minutes: is it right, how fast is it, does it learn.

    python benchmarks/gpu.py --out results_gpu [--fashion-mnist DIR]       # DIR holds the IDX files

1. Correct: the losses of a few training steps (MLP and U-Net, EDM, ECT and SCT with each source of references) on the
   accelerator against the CPU's.
2. Fast: training step and sampling of the CIFAR-10 network in float32, TF32 and bfloat16 at batch 128; SCT's cost over
   ECT, and that of each source; 50,000 samples drawn and seen by Inception, and the metrics on them.
3. Learns: a short Fashion-MNIST run, EDM and then SCT, with its samples and offline metrics.

Writes one JSON for each part and ``summary.json`` into the folder, and goes on when a part fails. ``--quick`` makes
everything tiny, to try the script on a CPU. ``--peer DIR`` also times ECT's PyTorch step and sampler, as shipped and
at its best (a checkout of locuslab/ect; ``--peer-python`` has PyTorch).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOLERANCE = 2e-3  # relative, of losses over three steps; TF32 is off for this part


def losses() -> None:
    """Prints the losses of three steps of each small case as JSON, on whatever device JAX finds."""
    import jax
    import numpy as np

    from sct_jax import config as config_lib
    from sct_jax import models, objectives
    from sct_jax.data import DataSpec, references
    from sct_jax.data.spec import ArraySource
    from sct_jax.objectives.table import ROWS
    from sct_jax.training import mesh, step

    jax.config.update("jax_default_matmul_precision", "highest")
    rng, found = np.random.default_rng(0), {}
    images, labels = rng.integers(0, 256, (3, 16, 16, 16, 3)).astype(np.uint8), np.arange(16, dtype=np.int32) % 4
    store = references.make_store(ArraySource(images.reshape(48, 16, 16, 3), np.tile(labels, 3), 4))
    for network_name in ("film_mlp", "ddpmpp"):
        for method, source in (("edm", "batch"), ("ect", "batch"), *(("sct", s) for s in ("batch", "bank", "dataset"))):
            config = config_lib.default_config()
            config.batch_size = 16
            config.model.update({"name": network_name, "channels": 32, "channel_mult": (1, 2), "num_blocks": 1})
            config.model.conditional, config.model.dropout = True, 0.1
            config.objective.update(ROWS[method])
            config.reference.source, config.reference.size, config.reference.block = source, 20, 20
            config = config_lib.validate(config)
            network = models.build(config.model, DataSpec(16, 3, 4, 48))
            train_step = step.make_train_step(config, objectives.build(config, network.denoise), mesh.make_mesh(1))
            state = step.initial_state(config, network.init(jax.random.key(0)))
            jitted, values = jax.jit(train_step), []
            for batch in images:
                rows = {} if source == "batch" else {"references": store}
                state, metrics = jitted(state, {"image": batch, "label": labels} | rows)
                values.append(float(metrics["loss"]))
            found[f"{network_name}_{method}_{source}"] = values
    print(json.dumps({"device": jax.devices()[0].device_kind, "losses": found}))


def correctness() -> dict:
    """The largest relative difference of losses between this machine's accelerator and its CPU."""
    command = [sys.executable, __file__, "--losses", "--out", "-"]
    both = [  # at once: the CPU's part is the longer one, and compiles on one core
        subprocess.Popen(command, env=os.environ | given, stdout=subprocess.PIPE, text=True)
        for given in ({"JAX_PLATFORMS": "cpu"}, {})
    ]
    outputs = [process.communicate()[0] for process in both]
    for process in both:
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
    results = [json.loads(output.splitlines()[-1]) for output in outputs]
    worst = {
        case: max(abs(a - b) / abs(a) for a, b in zip(values, results[1]["losses"][case], strict=True))
        for case, values in results[0]["losses"].items()
    }
    return {"devices": [r["device"] for r in results], "relative_difference": worst, "tolerance": TOLERANCE}


def call(*command: str) -> float:
    """Runs a command of this checkout; returns its seconds."""
    began = time.time()
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    return round(time.time() - began, 1)


def speed(out: Path, quick: bool, peer: list[str]) -> dict:
    size, samples = ["--batch", "128"], ["--num", "50000", "--batch", "500", "--rows", "10000"]
    if quick:
        tiny, peer = ["--set", "model.channels=8", "model.num_blocks=1"], []
        size = ["--batch", "8", "--repeats", "2", "--modes", "float32", *tiny]
        samples = ["--num", "8", "--batch", "4", *tiny]
    seconds = {"step": call("benchmarks/train_step.py", *size, "--out", str(out / "train_step.json"), *peer)}
    seconds["evaluation"] = call("benchmarks/evaluation.py", *samples, "--out", str(out / "evaluation.json"))
    if not quick:
        seconds["sct_cost"] = call("benchmarks/sct_cost.py", "--step-batch", "128", "--out", str(out / "sct_cost.json"))
        table = ["--out", str(out / "reference_cost.json"), "--table", str(out / "reference_cost.md")]
        seconds["reference_cost"] = call("benchmarks/reference_cost.py", "--measure-step", *table)
    return {"wall_seconds": seconds}


def learning(out: Path, quick: bool, data: str) -> dict:
    steps, runs, seconds = ("4", out / "runs", {}) if quick else ("1500", out / "runs", {})
    shared = [f"--config.total_steps={steps}", f"--config.checkpoint.every_steps={steps}"]
    shared += [f"--config.data.path={data}", "--config.evaluation.every_steps=0", "--config.sampling.every_steps=0"]
    if quick:
        shared += ["--config.model.channels=8", "--config.model.num_blocks=1", "--config.batch_size=8"]
    num = "200" if quick else "5000"
    for method, extra, sampling in (
        ("edm", [], "18"),
        ("sct", [f"--config.init.checkpoint={runs / 'edm'}", "--config.objective.stage_steps=200"], "1,2"),
    ):
        config, workdir = f"configs/fashion_mnist_{method}.py", str(runs / method)
        seconds[method] = call("-m", "sct_jax", "train", "--config", config, "--workdir", workdir, *shared, *extra)
        evaluation = ["--steps", sampling, "--num", num, "--out", str(out / f"fashion_{method}.json")]
        call("-m", "sct_jax", "evaluate", "--checkpoint", workdir, "--data-path", data, *evaluation)
        grid = ["--num", "100", "--steps", sampling.split(",")[0], "--out", str(out / f"fashion_{method}.png")]
        call("-m", "sct_jax", "sample", "--checkpoint", workdir, *grid)
    return {"wall_seconds": seconds, "steps": int(steps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="a folder for the results")
    parser.add_argument("--fashion-mnist", default="", help="folder of the IDX files (default: Debian's)")
    parser.add_argument("--peer", default="", help="a checkout of locuslab/ect, to time it too")
    parser.add_argument("--peer-python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--quick", action="store_true", help="everything tiny")
    parser.add_argument("--losses", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.losses:
        losses()
        return
    out, peer = Path(args.out).resolve(), []
    if args.peer:
        peer = ["--peer", args.peer, "--peer-python", args.peer_python, "--peer-modes", "shipped", "tf32", "bfloat16"]
    out.mkdir(parents=True, exist_ok=True)
    summary, failed = {}, False
    for name, part in (
        ("correctness", correctness),
        ("speed", lambda: speed(out, args.quick, peer)),
        ("learning", lambda: learning(out, args.quick, args.fashion_mnist)),
    ):
        began = time.time()
        try:
            summary[name] = part()
        except (subprocess.CalledProcessError, OSError) as error:
            summary[name], failed = {"error": str(error), "stderr": getattr(error, "stderr", None)}, True
        summary[name]["part_seconds"] = round(time.time() - began, 1)
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(f"== {name}: {json.dumps(summary[name])}", flush=True)
    worst = max(summary["correctness"].get("relative_difference", {"": 1.0}).values())
    sys.exit(1 if failed or worst > TOLERANCE else 0)


if __name__ == "__main__":
    main()
