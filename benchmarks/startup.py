"""How long a run takes to begin: import, data, building, compiling with and without cache, the first step.

    JAX_PLATFORMS=cpu python benchmarks/startup.py --config configs/digits_sct.py --out startup.json
    python benchmarks/startup.py --config configs/cifar10_ect.py --set data.source=digits data.held_out_split= \\
        model.augment_dim=0 init.checkpoint=            # a big network on data that is always there

Each stage is a process of its own, as a user's is; the folder of compiled programs is a fresh one, so that the first
run compiles and the second reads. `one step` is all of `sct-jax train` for a single step, saving included.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sct_jax import files
from sct_jax.evaluation.provenance import provenance


def call(command: list[str], cache: str) -> float:
    """Seconds of a command; what it said, and the end, where it fails."""
    began = time.perf_counter()
    environment = os.environ | {"XDG_CACHE_HOME": cache}
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()[-500:]}")
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/digits_sct.py")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out")
    args = parser.parse_args()
    given = ["total_steps=1", "checkpoint.every_steps=1", "sampling.every_steps=0", "evaluation.every_steps=0"]
    given += ["init.checkpoint=", *args.set]
    flags = [f"--config.{item}" for item in given]
    with tempfile.TemporaryDirectory() as folder:
        workdir = lambda name: ["--workdir", str(Path(folder) / name)]  # noqa: E731
        train = ["-m", "sct_jax", "train", "--config", args.config, *flags]
        rows = {
            "python": call(["-c", "pass"], folder),
            "import sct_jax": call(["-c", "import sct_jax"], folder),
            "import jax": call(["-c", "import jax; jax.devices()"], folder),
            "sct-jax --help": call(["-m", "sct_jax", "--help"], folder),
            "one step, nothing compiled": call([*train, *workdir("first")], folder),
            "one step, compiled before": call([*train, *workdir("second")], folder),
        }
    for name, seconds in rows.items():
        print(f"{name:32}{seconds:8.2f} s")
    result = {"config": args.config, "overrides": args.set, "seconds": rows, "cpu_cores": os.cpu_count()}
    if args.out:
        print(files.write_json(args.out, result | {"provenance": provenance()}))


if __name__ == "__main__":
    main()
