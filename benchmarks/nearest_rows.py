"""What is lost when the posterior mean takes the nearest rows only: its error by noise level and number of rows kept.

    python benchmarks/nearest_rows.py --data folder --path data/cifar10_jpeg --name "CIFAR-10 (JPEG q75)" \\
        --out docs/results/nearest_rows_cifar10

Against the exact mean m over all rows, as a share of what m moved the target by: sqrt(E‖x̂_k − m‖² / E‖x_0 − m‖²); 1
is as bad as CT. The query's own sample is always kept. Three ways to choose the rows: the k nearest to x_t; the k
nearest by images averaged over squares of 4 pixels, a sixteenth of the work; and half of k nearest by these averages,
the other half drawn at random from the rest and weighted up to stand for all of it. Writes OUT.json and OUT.md.
"""

import argparse
from typing import Any

import numpy as np
from common import made_by

from sct_jax import files
from sct_jax.data import open_source
from sct_jax.evaluation.provenance import provenance
from sct_jax.evaluation.target_shift import Rows, log_weights, softmax

TIMES = np.array((2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 15.0, 30.0, 80.0))
SIZES = (256, 1024, 4096, 16_384)
WAYS = {"exact": "nearest", "pooled": "nearest by averages", "mixed": "half of them, half drawn"}
POOL = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--path", default="")
    parser.add_argument("--split", default="train")
    parser.add_argument("--name", default="", help="what the table calls the data")
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--out", required=True, help="of .json and .md")
    args = parser.parse_args()
    images, _ = open_source(args.data, args.path, split=args.split).read_all()
    result = measure(images, args.queries)
    facts = provenance(images=len(images), data_name=args.name or args.data)
    files.write_json(f"{args.out}.json", result | {"provenance": facts})
    text = f"{table(result, args.name or args.data, len(images))}\n\n{made_by(facts)}.\n"
    files.write_text(f"{args.out}.md", text)
    print(text)


def measure(images: np.ndarray, num_queries: int) -> dict[str, Any]:
    """Errors ``[T][sizes]`` of each way, the weight of the rows it looks at, CT's variance ``[T]``; over queries."""
    rng = np.random.default_rng(0)
    rows, (height, width, channels) = Rows(images, flip=False), images.shape[1:]
    pooled, squares = rows.pooled(POOL), (height // POOL, POOL, width // POOL, POOL, channels)
    errors = np.zeros((len(TIMES), len(SIZES), len(WAYS)))
    mass, variance = np.zeros((len(TIMES), len(SIZES), len(WAYS))), np.zeros(len(TIMES))
    for own in rng.integers(0, len(rows), num_queries):
        noise = rng.standard_normal(images[0].size).astype(np.float32)
        logs = log_weights(*rows.gaps(own, noise), TIMES)
        coarse = log_weights(*pooled.gaps(own, noise.reshape(squares).mean(axis=(1, 3)).ravel()), TIMES)
        weights = softmax(logs)
        exact, x_0 = rows.mean(weights), rows.take(np.array([own]))[0]
        kept = np.stack([_kept(*each, own, rng) for each in zip(logs, coarse, strict=True)])  # [T, sizes, ways, N]
        estimates = rows.mean(kept.reshape(-1, len(rows))).reshape(*errors.shape, -1)
        errors += ((estimates - exact[:, None, None]) ** 2).sum(axis=-1) / num_queries
        mass += (weights[:, None, None] * (kept > 0)).sum(axis=-1) / num_queries
        variance += ((exact - x_0) ** 2).sum(axis=1) / num_queries
    shares = np.sqrt(errors / variance[:, None, None])
    return {
        "t": TIMES.tolist(),
        "sizes": list(SIZES),
        "relative_error": {way: shares[..., index].tolist() for index, way in enumerate(WAYS)},
        "mass": {way: mass[..., index].tolist() for index, way in enumerate(WAYS)},
        "ct_variance": variance.tolist(),
        "queries": num_queries,
        "pool": POOL,
    }


def _kept(logs: np.ndarray, coarse: np.ndarray, own: int, rng: np.random.Generator) -> np.ndarray:
    """The weights ``[sizes, ways, N]`` of all rows at one noise level, 0 for those that are left out."""
    kept = np.zeros((len(SIZES), len(WAYS), len(logs)), np.float32)
    for size, into in zip(SIZES, kept, strict=True):
        for way, values in enumerate((logs, coarse)):
            index = nearest(values, size, own)
            into[way, index] = softmax(logs[index])
        near = nearest(coarse, size // 2, own)
        rest = np.setdiff1d(np.arange(len(logs)), near)
        index = np.concatenate([near, rng.choice(rest, size // 2, replace=False)])
        for_all = np.log(2 * len(rest) / size) * (np.arange(size) >= size // 2)
        into[2, index] = softmax(logs[index] + for_all)
    return kept


def nearest(values: np.ndarray, count: int, own: int) -> np.ndarray:
    """The places of the ``count`` largest, ``own`` among them."""
    index = np.argpartition(values, -count)[-count:]
    if own not in index:
        index[np.argmin(values[index])] = own
    return index


def table(result: dict[str, Any], name: str, count: int) -> str:
    """Markdown: a row for each noise level, the ways and numbers of rows side by side."""
    heads = [f"{words}, {size:,}" for words in WAYS.values() for size in result["sizes"]]
    lines = [
        f"# The nearest rows only, on {name}",
        "",
        f"{count:,} rows, {result['queries']} queries. Error of the estimate as a share of what the exact posterior",
        "mean moves CT's target by; 1 is as far off as CT.",
        "",
        f"| t | {' | '.join(heads)} |",
        "|---" + "|---:" * len(heads) + "|",
    ]
    for level, t in enumerate(result["t"]):
        cells = [f"{value:.3f}" for way in WAYS for value in result["relative_error"][way][level]]
        lines.append(f"| {t:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
