"""Kills a training run again and again at random moments and starts it again: does it end where it should?

    python benchmarks/soak.py --kills 25 --out docs/results/soak.json                    # one process
    python benchmarks/soak.py --kills 10 --processes 2 --out docs/results/soak_2.json    # one of two is killed

Trains a small SCT run once undisturbed, then once with SIGKILL and SIGTERM in turn, at moments drawn by ``--seed``.
After each kill every checkpoint on disk is read, and the next start must go on from the newest of them. At the end
parameters, averages and optimizer state are compared with those of the undisturbed run: the same to the bit.
"""

import argparse
import itertools
import json
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """
from sct_jax.config import default_config


def get_config():
    config = default_config()
    config.total_steps, config.batch_size = {steps}, 32
    config.model.name, config.model.channels, config.model.num_blocks = "film_mlp", 32, 1
    config.model.conditional, config.model.dropout = True, 0.1
    config.ema.profiles = ("constant:0.99",)
    config.checkpoint.every_steps, config.log.every_steps, config.log.tensorboard = 100, 100, False
    config.sampling.num_images, config.evaluation.target_queries = 4, 0
    return config
"""


class Job:
    """One start of the run, in one process or several."""

    def __init__(self, config: Path, workdir: Path, processes: int):
        command = [sys.executable, "-m", "sct_jax", "train", "--config", str(config), "--workdir", str(workdir)]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "SCT_HEARTBEAT_TIMEOUT": "10"}
        environment["SCT_START_TIMEOUT"] = "40"
        if processes > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                port = free.getsockname()[1]
            command += ["--coordinator", f"localhost:{port}", "--num-processes", str(processes), "--process-id"]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the job
        self.processes = [
            subprocess.Popen([*command, str(i)] if processes > 1 else command, env=environment, stderr=self.log)
            for i in range(processes)
        ]

    def wait(self, seconds: float | None = None) -> bool:
        """Whether all processes ended within the time."""
        until = None if seconds is None else time.monotonic() + seconds
        try:
            for process in self.processes:
                process.wait(None if until is None else max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def said(self) -> str:
        """What it wrote on stderr."""
        self.log.seek(0)
        return self.log.read()


def run(processes: int, kills: int, steps: int, seed: int, longest: float, folder: Path) -> dict:
    """Both runs and their comparison."""
    config, whole, killed = folder / "config.py", folder / "whole", folder / "killed"
    config.write_text(CONFIG.format(steps=steps))
    began = time.monotonic()
    undisturbed = Job(config, whole, processes)
    undisturbed.wait()
    assert {p.returncode for p in undisturbed.processes} == {0}, undisturbed.said()
    seconds = time.monotonic() - began
    rng, events, newest = random.Random(seed), [], None
    for signum in itertools.islice(itertools.cycle((signal.SIGKILL, signal.SIGTERM)), kills):
        job, moment = Job(config, killed, processes), rng.uniform(0.5, longest)
        if job.wait(moment):
            raise SystemExit(f"the run ended after {len(events)} kills: more --steps\n{job.said()}")
        rng.choice(job.processes).send_signal(signum)
        began = time.monotonic()
        assert job.wait(120), f"still there two minutes after {signum.name}\n{job.said()}"
        events.append(
            {
                "signal": signum.name,
                "after_seconds": round(moment, 2),
                "seconds_to_end": round(time.monotonic() - began, 2),
                "statuses": [process.returncode for process in job.processes],
                "resumed_from": _resumed(job.said(), newest),
                "newest_checkpoint": (newest := _read_all(killed)),
            }
        )
        print(json.dumps(events[-1]), file=sys.stderr, flush=True)
    last = Job(config, killed, processes)
    last.wait()
    assert {p.returncode for p in last.processes} == {0}, last.said()
    _resumed(last.said(), newest)
    return {"undisturbed_seconds": round(seconds, 1), "kills": events} | compare(whole, killed)


def _resumed(said: str, newest: int | None) -> int | None:
    """The step a start went on from; it must be the newest on disk, and no checkpoint may have been passed over."""
    assert "going back" not in said, said
    assert "Traceback" not in said or "Gloo" in said, said  # of a process that was killed, its peers may show one
    found = re.search(r"resuming from step (\d+)", said)
    step = int(found.group(1)) if found else None
    assert step in (None, newest), f"resumed from {step}, not {newest}\n{said}"
    return step


def _read_all(workdir: Path) -> int | None:
    """Reads every checkpoint; gives the newest step."""
    from sct_jax.training import checkpoint

    folder = workdir / checkpoint.FOLDER
    steps = sorted(int(place.name) for place in folder.glob("*") if place.name.isdigit())
    for step in steps:
        checkpoint.read_weights(folder / str(step))
        checkpoint.read_weights(folder / str(step), "raw")
    return steps[-1] if steps else None


def compare(whole: Path, killed: Path) -> dict:
    """The largest difference of the two runs' last states, and whether they are the same to the bit."""
    import jax
    import numpy as np

    from sct_jax.training import checkpoint

    places = [checkpoint.resolve(workdir) for workdir in (whole, killed)]
    assert places[0].name == places[1].name
    largest, same, count = 0.0, True, 0
    for item in ("params", "ema", "training"):
        trees = [checkpoint.read_tree(place, item) for place in places]
        for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            same, count = same and np.array_equal(a, b), count + 1
            largest = max(largest, float(np.abs(a.astype(np.float64) - b).max(initial=0)))
    return {"arrays": count, "bitwise_equal": same, "largest_difference": largest, "final_step": int(places[0].name)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=16.0, help="seconds from a start to its kill, at most")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    from sct_jax import files
    from sct_jax.evaluation.provenance import provenance

    files.check_writable(args.out)
    with tempfile.TemporaryDirectory() as folder:
        result = run(args.processes, args.kills, args.steps, args.seed, args.longest, Path(folder))
    facts = {"command": " ".join(["python", *sys.argv]), "machine": f"{os.cpu_count()} CPU cores, {platform.system()}"}
    settings = {"processes": args.processes, "steps": args.steps, "seed": args.seed}
    files.write_json(args.out, facts | settings | result | {"provenance": provenance()})
    summary = {name: result[name] for name in ("bitwise_equal", "largest_difference", "final_step")}
    print(json.dumps({"kills": len(result["kills"])} | summary))
    if args.processes == 1 and not result["bitwise_equal"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
