"""How long DDPM++ takes forward, and forward and backward, on this device.

    python benchmarks/network_step.py --channels 32 --channel-mult 1 2 --batch 32 --out network_step.json
    python benchmarks/network_step.py --batch 128 --compute-dtype bfloat16       # the CIFAR-10 network, on a GPU

`--peer DIR` times the PyTorch original in the same run; DIR is a checkout of github.com/NVlabs/edm and PyTorch must
be importable. Both run with dropout on; backward is the gradient of the summed squares of the output with respect
to every parameter. Times are medians (and minima) of `--repeats` calls after a first one, the device waited for.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from sct_jax.models.ddpmpp import DDPMpp


def main() -> None:
    """Parse the command line, time the networks, print the table, write the JSON."""
    arguments, load = parse(), os.getloadavg()
    rows = [time_ours(arguments)]
    if arguments.peer:
        rows.append(time_original(arguments))
    report = {
        "device": jax.devices()[0].device_kind,
        "platform": jax.default_backend(),
        "cpu_cores": os.cpu_count(),
        "load_before": [round(value, 2) for value in load],
        "python": platform.python_version(),
        "jax": jax.__version__,
        "arguments": {key: value for key, value in vars(arguments).items() if key not in ("peer", "out")},
        "rows": rows,
    }
    print_table(report)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def parse() -> argparse.Namespace:
    """The command line; the defaults are EDM's DDPM++ for CIFAR-10."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--channels", type=int, default=128)
    parser.add_argument("--channel-mult", type=int, nargs="+", default=[2, 2, 2])
    parser.add_argument("--num-blocks", type=int, default=4)
    parser.add_argument("--attention", type=int, nargs="*", default=[16], help="resolutions in pixels")
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--compute-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peer", type=Path, help="a checkout of the PyTorch original")
    parser.add_argument("--out", type=Path, help="where the JSON goes")
    return parser.parse_args()


def time_ours(arguments: argparse.Namespace) -> dict:
    """The row of this project's network."""
    size = arguments.image_size
    network = DDPMpp(
        rngs=nnx.Rngs(0),
        image_size=size,
        in_channels=3,
        out_channels=3,
        channels=arguments.channels,
        channel_mult=arguments.channel_mult,
        num_blocks=arguments.num_blocks,
        attention_resolutions=arguments.attention,
        dropout=arguments.dropout,
        compute_dtype=arguments.compute_dtype,
    )
    graph, state = nnx.split(network)
    params, key = nnx.to_pure_dict(state), jax.random.key(0)
    x = jax.random.normal(key, (arguments.batch, size, size, 3))
    c_noise = jnp.zeros(arguments.batch)

    def forward(params: dict, key: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(x, c_noise, dropout_key=key)

    apply = jax.jit(forward)
    gradient = jax.jit(jax.grad(lambda params, key: jnp.square(forward(params, key)).sum()))
    return {
        "implementation": "sct_jax",
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "forward": measure(lambda: jax.block_until_ready(apply(params, key)), arguments.repeats),
        "forward_backward": measure(lambda: jax.block_until_ready(gradient(params, key)), arguments.repeats),
    }


def time_original(arguments: argparse.Namespace) -> dict:
    """The row of the PyTorch original, on the same kind of device."""
    sys.path.insert(0, str(arguments.peer))
    import torch
    from training.networks import SongUNet

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    size = arguments.image_size
    network = SongUNet(
        size,
        3,
        3,
        model_channels=arguments.channels,
        channel_mult=arguments.channel_mult,
        num_blocks=arguments.num_blocks,
        attn_resolutions=arguments.attention,
        dropout=arguments.dropout,
    ).to(device)
    dtype = getattr(torch, arguments.compute_dtype)
    x = torch.randn(arguments.batch, 3, size, size, device=device, dtype=dtype)
    c_noise = torch.zeros(arguments.batch, device=device)

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def forward() -> None:
        with torch.no_grad():
            network(x, c_noise, None)
        wait()

    def forward_backward() -> None:
        network.zero_grad(set_to_none=True)
        network(x, c_noise, None).float().square().sum().backward()
        wait()

    return {
        "implementation": f"PyTorch {torch.__version__}",
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "forward": measure(forward, arguments.repeats),
        "forward_backward": measure(forward_backward, arguments.repeats),
    }


def measure(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Seconds: of the first call (with compilation), and the median and least of the next `repeats`."""
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return {"first": seconds[0], "median": statistics.median(seconds[1:]), "least": min(seconds[1:])}


def print_table(report: dict) -> None:
    """One line an implementation: milliseconds as median (least), and images a second forward and backward."""
    batch = report["arguments"]["batch"]
    print(f"{report['device']} ({report['platform']}), batch {batch}, {report['arguments']['compute_dtype']}")
    print(f"{'':<22}{'parameters':>12}{'forward ms':>22}{'+ backward ms':>22}{'images/s':>10}{'first s':>9}")
    for row in report["rows"]:
        forward, both = row["forward"], row["forward_backward"]
        cells = [f"{1e3 * t['median']:.1f} ({1e3 * t['least']:.1f})" for t in (forward, both)]
        rate = batch / both["median"]
        print(
            f"{row['implementation']:<22}{row['parameters']:>12,}{cells[0]:>22}{cells[1]:>22}{rate:>10.1f}"
            f"{both['first']:>9.1f}"
        )


if __name__ == "__main__":
    main()
