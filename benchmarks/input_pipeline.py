"""Whether the input keeps up at ImageNet-64 size: images/s of a core against what a step consumes, and the loop's cost.

    python benchmarks/input_pipeline.py --out docs/results/input_pipeline.json --table docs/results/input_pipeline.md

Images are noise with the spectrum of photographs (1/f), 64x64x3, written as ``prepare`` writes them. Images/s of a core
are images per second of processor time, of all threads and processes together, so other work on the machine changes
them little; images/s are by the clock.

What a device consumes is its peak x ``--efficiency`` / ``--step-flops``. The default is a step of EDM2-S at 64x64 by
SCT: 102 GFLOP for a network evaluation (as Karras et al. 2024 count), times four: the network at t and its backward
pass (three), and the network at r.

The loop's cost: the training loop as it is, with a step that takes ``--step-seconds`` more (the device sleeps), against
the same jitted step called again and again with one batch. Medians over windows of 20 steps; the network is tiny.
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sct_jax import config as config_lib
from sct_jax import files
from sct_jax.data import Source, make_pipeline, open_source, writing
from sct_jax.data.spec import ArraySource
from sct_jax.evaluation.provenance import provenance
from sct_jax.training import assembly, loop, mesh

SIZE = 64
WINDOW = 20  # steps
CASES = (  # name, mode, workers, prefetch, compressed
    ("resident (indices only)", "resident", 0, 0, False),
    ("streamed, 1 thread", "streamed", 0, 1, False),
    ("streamed, 2 threads", "streamed", 0, 2, False),
    ("streamed, 1 process", "streamed", 1, 2, False),
    ("streamed, 2 processes", "streamed", 2, 2, False),
    ("streamed, 1 thread, --compress", "streamed", 0, 1, True),
)
PEAKS = "H100=989e12,TPU v4=275e12,TPU v5e=197e12,TPU v5p=459e12,TPU v6e=918e12"  # bfloat16, dense, as published


def photographs(count: int, seed: int = 0) -> np.ndarray:
    """Noise whose amplitude falls as 1/frequency, its colours correlated, uint8 ``[count, 64, 64, 3]``."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE))
    amplitude = 1 / np.maximum(frequency, 1 / SIZE) ** 1.2
    colours = np.array([[1, 0.3, 0.1], [1, 0, -0.2], [1, -0.3, 0.1]])
    images = np.empty((count, SIZE, SIZE, 3), np.uint8)
    for first in range(0, count, 512):
        part = images[first : first + 512]
        waves = rng.normal(size=(2, len(part), *amplitude.shape, 3)) @ colours.T
        pixels = np.fft.irfft2((waves[0] + 1j * waves[1]) * amplitude[..., None], (SIZE, SIZE), (1, 2))
        pixels *= 55 / pixels.std((1, 2, 3), keepdims=True)
        part[:] = np.clip(np.round(pixels + 120), 0, 255)
    return images


def store(folder: Path, images: np.ndarray, compress: bool) -> Source:
    """Writes the images as ``prepare`` does and opens them."""
    target = folder / f"compress-{compress}"
    source = ArraySource(images, np.arange(len(images)) % 1000, 1000)
    plan = {"arguments": {"compress": compress}}
    writing.write({"train": source}, target, plan, shard_size=4096, workers=1, skip_damaged=False)
    return open_source("tfds", str(target))


def measure(source: Source, args: argparse.Namespace, mode: str, workers: int, prefetch: int) -> dict[str, Any]:
    """Images/s by the clock and by processor time of one way to read."""
    size = args.batch
    pipeline = make_pipeline(
        source, seed=0, batch_size=size, mode=mode, workers=workers, prefetch=prefetch, resident_max_mib=2**30
    )
    warm = 2 + 4 * workers * prefetch  # what was read ahead of the clock is taken before it starts
    for index in range(warm):
        pipeline.next(index, 1)
    began, used = time.perf_counter(), processor_seconds()
    for index in range(warm, warm + args.batches):
        pipeline.next(index, 1)
    seconds, used = time.perf_counter() - began, processor_seconds() - used
    pipeline.close()
    count = args.batches * size
    return {"images_per_second": count / seconds, "images_per_core_second": count / used, "seconds": seconds}


def processor_seconds() -> float:
    """Processor time of this process and its children that live, user and system."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def loop_cost(args: argparse.Namespace, path: str, mode: str, workdir: Path) -> dict[str, float]:
    """Seconds of a step in the training loop and of the bare jitted step, both ``--step-seconds`` longer."""
    config = config_lib.default_config()
    config.total_steps, config.batch_size, config.seed = args.loop_steps + WINDOW, args.loop_batch, 0
    config.data.source, config.data.path, config.data.pipeline, config.data.prefetch = "tfds", path, mode, 2
    config.model.name, config.model.channels, config.model.num_blocks = "film_mlp", 4, 1
    config.mesh.data, config.ema.profiles = 1, ("constant:0.999",)
    config.log.every_steps, config.log.tensorboard, config.log.steps_per_dispatch = WINDOW, False, 1
    config.checkpoint.every_steps = config.total_steps
    config.sampling.num_images, config.evaluation.num_images, config.evaluation.target_queries = 2, 2, 0
    config = config_lib.validate(config)
    as_it_is, made = assembly.assemble, []

    def slowed(*given: Any, **options: Any) -> assembly.Assembly:
        whole = as_it_is(*given, **options)
        made.append(whole._replace(train_step=_longer(whole.train_step, args.step_seconds)))
        return made[-1]

    assembly.assemble = slowed
    try:
        loop.train(config, workdir)
    finally:
        assembly.assemble = as_it_is
    bare = _bare_step(made[0], path, args.loop_steps)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    logged = [line["seconds"] for line in lines if "images_per_second" in line]
    in_loop = float(np.median(np.diff(logged[:-1]))) / WINDOW  # the last steps save and sample
    return {"loop_step_seconds": in_loop, "bare_step_seconds": bare, "share": bare / in_loop}


def _longer(train_step: Any, seconds: float) -> Any:
    """The step, and then the device sleeps; the next step waits for it."""

    def sleep(count: np.ndarray) -> np.ndarray:
        time.sleep(seconds)
        return np.asarray(count)

    def longer(state: Any, batch: Any) -> Any:
        state, metrics = train_step(state, batch)
        after = jax.pure_callback(sleep, jax.ShapeDtypeStruct(state.step.shape, state.step.dtype), state.step)
        return dataclasses.replace(state, step=after), metrics

    return longer


def _bare_step(made: assembly.Assembly, path: str, count: int) -> float:
    pipeline = make_pipeline(open_source("tfds", path), seed=0, batch_size=made.config.batch_size, mode="streamed")
    item = {name: array[0] for name, array in pipeline.next(0, 1).items()}
    pipeline.close()
    batch = jax.device_put(item, mesh.split_batch(made.device_mesh)) | {"references": {}}
    state = assembly.initial_state(made)
    run = jax.jit(made.train_step, donate_argnums=0)
    for _ in range(5):
        state, metrics = run(state, batch)
    jax.block_until_ready((state, metrics))
    windows = []
    for _ in range(count // WINDOW):
        began = time.perf_counter()
        for _ in range(WINDOW):
            state, metrics = run(state, batch)
        jax.block_until_ready((state, metrics))
        windows.append(time.perf_counter() - began)
    return float(np.median(windows)) / WINDOW


def needs(args: argparse.Namespace) -> dict[str, float]:
    """Images/s that one of each device consumes at most."""
    peaks = (entry.split("=") for entry in args.peaks.split(","))
    return {name: float(peak) * args.efficiency / args.step_flops for name, peak in peaks}


def table(result: dict[str, Any]) -> str:
    """Markdown: the ways to read, how many cores each device keeps busy, and the loop's cost."""
    lines = ["| input | images/s | images/s of a core |", "|---|---:|---:|"]
    for name, row in result["pipelines"].items():
        lines.append(f"| {name} | {row['images_per_second']:,.0f} | {row['images_per_core_second']:,.0f} |")
    best = result["pipelines"]["streamed, 2 processes"]["images_per_core_second"]
    lines += ["", "| device | images/s it consumes | cores that feed it |", "|---|---:|---:|"]
    lines += [f"| {name} | {rate:,.0f} | {rate / best:.2f} |" for name, rate in result["needs"].items()]
    lines += ["", "| loop | ms a step | bare step, ms | loop's throughput |", "|---|---:|---:|---:|"]
    for name, row in result["loop"].items():
        times = f"{1e3 * row['loop_step_seconds']:.1f} | {1e3 * row['bare_step_seconds']:.1f}"
        lines.append(f"| {name} | {times} | {100 * row['share']:.1f} % |")
    stored = result["bytes_per_image"]
    lines += ["", f"Bytes an image: {stored['plain']:,.0f} stored, {stored['compressed']:,.0f} with --compress. "]
    lines[-1] += f"Machine: {result['machine']}, load {result['load_before'][0]} before."
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8192, help="of the data set that is made")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=40, help="that are timed")
    parser.add_argument("--peaks", default=PEAKS, help="NAME=FLOP/s of devices, commas between them")
    parser.add_argument("--efficiency", type=float, default=0.4, help="share of the peak that a step reaches")
    parser.add_argument("--step-flops", type=float, default=4 * 102e9, help="operations of a step for each image")
    parser.add_argument("--step-seconds", type=float, default=0.1, help="that the device sleeps in a step of the loop")
    parser.add_argument("--loop-steps", type=int, default=200)
    parser.add_argument("--loop-batch", type=int, default=16)
    parser.add_argument("--out", help="where the JSON goes")
    parser.add_argument("--table", help="where the table goes, in Markdown")
    args = parser.parse_args()
    load = [round(value, 2) for value in os.getloadavg()]
    images = photographs(args.images)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stored = {flag: store(folder, images, flag) for flag in (False, True)}
        pipelines = {
            name: measure(stored[compress], args, mode, workers, prefetch)
            for name, mode, workers, prefetch, compress in CASES
        }
        path = str(folder / "compress-False")
        cost = {mode: loop_cost(args, path, mode, folder / mode) for mode in ("resident", "streamed")}
        size = {
            word: sum(file.stat().st_size for file in (folder / f"compress-{flag}").glob("*array_record*"))
            / args.images
            for word, flag in (("plain", False), ("compressed", True))
        }
    result = {"pipelines": pipelines, "needs": needs(args), "loop": cost, "bytes_per_image": size}
    result |= {"machine": f"{os.cpu_count()} CPU cores", "load_before": load, "arguments": vars(args) | {"out": None}}
    result["provenance"] = provenance()
    text = table(result)
    print(text)
    if args.out:
        print(files.write_json(args.out, result))
    if args.table:
        print(files.write_text(args.table, text + "\n"))


if __name__ == "__main__":
    main()
