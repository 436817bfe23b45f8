"""How fast samples are drawn, quantised and seen by Inception, in one pass; and how fast the statistics follow.

    python benchmarks/evaluation.py --num 50000 --batch 500 --out evaluation.json       # a GPU: FID's 50,000 samples
    JAX_PLATFORMS=cpu python benchmarks/evaluation.py --num 32 --batch 8 --set model.channels=32   # two CPU cores

The weights of both networks are random: the time does not depend on them. What is timed is what `sct-jax evaluate
--metrics fid,kid,precision,recall,density,coverage` runs: the pass with its float64 moments, then the Fréchet distance,
and with `--rows` the metrics that compare every pair of rows.
"""

import argparse
import os
import time
from pathlib import Path

import jax
import numpy as np
from common import pairs

from sct_jax import config as config_lib
from sct_jax import files, models
from sct_jax.data import DataSpec
from sct_jax.evaluation.embed import Embedding, Wanted
from sct_jax.evaluation.frechet import frechet_distance, moments
from sct_jax.evaluation.kernel import kid
from sct_jax.evaluation.manifold import density_coverage, precision_recall
from sct_jax.evaluation.provenance import provenance
from sct_jax.features import FeatureSpace, inception
from sct_jax.model import Model

FEATURES = ("inception", "features")


def random_inception() -> FeatureSpace:
    """Inception with random weights of the scale that keeps activations alive."""
    rng = np.random.default_rng(0)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        fan_in = max(1, int(np.prod(shape[:-1])))
        return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    params = {name: {part: draw(shape) for part, shape in layer.items()} for name, layer in inception.shapes().items()}
    sizes = (inception.RESOLUTION, inception.DIMS)
    return FeatureSpace("inception", "random weights", params, "", "", *sizes, inception.extract)


def timed(call) -> tuple[object, float]:
    began = time.perf_counter()
    result = call()
    return result, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(Path(__file__).parent.parent / "configs" / "cifar10_sct.py"))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--num", type=int, default=50_000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--rows", type=int, default=0, help="rows for the metrics of pairs, at most --num")
    parser.add_argument("--out")
    args = parser.parse_args()
    config = config_lib.load_config(args.config, pairs(args.set))
    spec = DataSpec(32, 3, 10, 50_000)
    params = jax.jit(models.build(config.model, spec).init)(jax.random.key(0))
    model = Model(config, spec, params)
    rows = frozenset({FEATURES}) if args.rows else frozenset()
    embedding = Embedding({"inception": random_inception()}, Wanted(frozenset({FEATURES}), rows), model.mesh)
    run = lambda num: embedding.samples(model, num, steps=1, batch_size=args.batch)  # noqa: E731
    _, compiling = timed(lambda: run(args.batch))
    found, seconds = timed(lambda: run(args.num))
    result = {
        "images": args.num,
        "batch": args.batch,
        "seconds": seconds,
        "images_per_second": args.num / seconds,
        "first_batch_seconds": compiling,
    }
    print(f"{args.num} samples drawn and seen in {seconds:.1f} s: {args.num / seconds:.1f} images/s", flush=True)
    if args.num > inception.DIMS:
        summary = moments(found.moments[FEATURES])
        _, result["frechet_seconds"] = timed(lambda: frechet_distance(*summary, *summary))
    if args.rows:
        seen = found.rows[FEATURES][: args.rows]
        for name, call in (
            ("precision_recall", precision_recall),
            ("density_coverage", density_coverage),
            ("kid", kid),
        ):
            _, result[f"{name}_seconds"] = timed(lambda call=call: call(seen, seen[::-1]))
    for name, value in result.items():
        print(f"{name:24}{value:10.2f}")
    result |= {"cpu_cores": os.cpu_count(), "provenance": provenance()}
    if args.out:
        print(files.write_json(args.out, result))


if __name__ == "__main__":
    main()
