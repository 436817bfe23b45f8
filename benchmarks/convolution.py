"""3×3 convolutions on this CPU: XLA's own against `models/winograd.py`, forward and both gradients.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 JAX_PLATFORMS=cpu python benchmarks/convolution.py --out convolution.json

Shapes are those of the CIFAR-10 network at batch 4 and of a narrow one at batch 32. Wall-clock milliseconds, the least
of `--repeats`; the error is the root mean square of the difference to XLA's over the deviation of its result.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from timing import seconds

from sct_jax import files
from sct_jax.evaluation.provenance import provenance
from sct_jax.models import winograd
from sct_jax.models.products import NHWC

SHAPES = [(4, 32, 256, 256), (4, 32, 512, 256), (4, 16, 256, 256), (4, 8, 256, 256)]
SHAPES += [(32, 32, 32, 32), (32, 32, 64, 32), (32, 16, 64, 64), (32, 16, 16, 16)]


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=NHWC)


def least(call: Callable[..., jax.Array], given: tuple[jax.Array, ...], repeats: int) -> tuple[jax.Array, float]:
    """The result of a jitted function and the least seconds of a call, after those that warm up."""
    jitted = jax.jit(call)
    return jitted(*given), seconds(lambda: jitted(*given), repeats, jax.block_until_ready)["least"]


def compare(shape: tuple[int, int, int, int], repeats: int) -> dict[str, Any]:
    """Milliseconds and errors of the three passes for a batch, size, and channels in and out."""
    batch, size, inputs, outputs = shape
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch, size, size, inputs))
    kernel = jax.random.normal(keys[1], (3, 3, inputs, outputs)) / (9 * inputs) ** 0.5
    g = jax.random.normal(keys[2], (batch, size, size, outputs))
    cases = {
        "forward": (plain, winograd.convolve, (x, kernel)),
        "image gradient": (
            lambda kernel, g: jax.vjp(lambda x: plain(x, kernel), x)[1](g)[0],
            winograd.image_gradient,
            (kernel, g),
        ),
        "kernel gradient": (
            lambda x, g: jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](g)[0],
            winograd.kernel_gradient,
            (x, g),
        ),
    }
    row: dict[str, Any] = {"shape": list(shape), "operations": 18 * batch * size**2 * inputs * outputs}
    for name, (theirs, ours, given) in cases.items():
        expected, slow = least(theirs, given, repeats)
        found, quick = least(ours, given, repeats)
        error = float(jnp.sqrt(jnp.mean(jnp.square(found - expected))) / jnp.std(expected))
        row[name] = {"xla_ms": 1e3 * slow, "winograd_ms": 1e3 * quick, "error": error}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out")
    args = parser.parse_args()
    load, rows = os.getloadavg()[0], []
    print(f"{'batch, size, in, out':24}" + "".join(f"{name + ': XLA, ours':>32}" for name in ("forward", "dx", "dk")))
    for shape in SHAPES:
        rows.append(compare(shape, args.repeats))
        cells = [rows[-1][name] for name in ("forward", "image gradient", "kernel gradient")]
        texts = [f"{c['xla_ms']:.1f}, {c['winograd_ms']:.1f} ms ({c['error']:.0e})" for c in cells]
        print(f"{', '.join(map(str, shape)):24}" + "".join(f"{text:>32}" for text in texts), flush=True)
    result = {"rows": rows, "cpu_cores": os.cpu_count(), "load_before": round(load, 2), "provenance": provenance()}
    if args.out:
        print(files.write_json(args.out, result))


if __name__ == "__main__":
    main()
