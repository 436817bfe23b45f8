"""At which noise levels the posterior mean changes the target at all, data set by data set; what share of training.

    python benchmarks/target_shift.py --data digits idx 'tfds:data/cifar32' --out docs/results/target_shift

For queries ``x_t = x_0 + t ε`` and n references of the query's class (its own image and n - 1 others) it measures the
own image's weight and the mean squared shift ``E ‖x̂_0 − x_0‖²``. As x̂_0 is a conditional mean of x_0, the shift is
the variance that the average takes out of CT's target, and the shift by all rows is all there is to take out: their
quotient is the share removed. Averages over the training's ``ln t ~ N(−1.1, 2²)`` say how often the target is another
one (own weight below 0.99) and how much of its noise, at the scale of the loss (``noise/t``), is removed. --data takes
names of sources, with a path after a colon. Writes OUT.json, OUT.md and OUT.svg.
"""

import argparse
import math
from typing import Any

import numpy as np
from common import made_by
from svg import stand_alone

from sct_jax import files
from sct_jax.data import open_source
from sct_jax.data.spec import unit_range
from sct_jax.evaluation.provenance import provenance
from sct_jax.report.plots import Series, line_chart

TIMES = np.geomspace(0.02, 80.0, 19)
SIZES = (13, 257)  # of the query's class: a batch of 128 of ten classes; a bank of 256 and the own image
TIME_MEAN, TIME_STD = -1.1, 2.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="NAME[:PATH]")
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    found = {name: measure(name, args.queries) for name in args.data}
    facts = provenance(queries=args.queries)
    files.write_json(f"{args.out}.json", {"t": TIMES.tolist(), "data": found, "provenance": facts})
    series = [
        Series(f"{title(name)}, {label}", TIMES.tolist(), row["share_changed_at"][label], colour=i, dash=j)
        for i, (name, row) in enumerate(found.items())
        for j, label in enumerate(("n = 13", "all rows"))
    ]
    chart = line_chart(series, "noise level t", "share of queries with another target", log_x=True)
    files.write_text(f"{args.out}.svg", stand_alone(chart, series))
    files.write_text(f"{args.out}.md", f"{table(found)}\n\n{made_by(facts)}.\n")
    print(table(found))


def measure(name: str, queries: int) -> dict[str, Any]:
    """The own weight, the shift and their averages, by number of references."""
    kind, _, path = name.partition(":")
    source = open_source(kind, path, split="all" if kind == "digits" else "train")
    labels = np.asarray([source[index][1] for index in range(len(source))])
    rng = np.random.default_rng(0)
    totals: dict[str, list[np.ndarray]] = {}
    for own_class in np.unique(labels):
        members = np.flatnonzero(labels == own_class)
        rows = unit_range(np.stack([source[int(i)][0] for i in members])).reshape(len(members), -1).astype(np.float32)
        for query in rng.choice(len(rows), -(-queries // len(np.unique(labels))), replace=False):
            for label, values in one_query(rows, int(query), rng).items():
                totals.setdefault(label, []).append(values)
    mean = {label: np.mean(values, axis=0) for label, values in totals.items()}  # [3, T]
    everything = mean["all rows"][1]
    density = time_density()
    return {
        "dimensions": int(np.prod(source[0][0].shape)),
        "rows": len(labels),
        "own_weight": {label: value[0].tolist() for label, value in mean.items()},
        "shift": {label: value[1].tolist() for label, value in mean.items()},
        "share_changed_at": {label: value[2].tolist() for label, value in mean.items()},
        "share_changed": {label: float(density @ value[2]) for label, value in mean.items()},
        "noise_removed": {
            label: float(density @ (value[1] / TIMES**2) / (density @ (everything / TIMES**2)))
            for label, value in mean.items()
        },
    }


def one_query(rows: np.ndarray, query: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """``[own weight, squared shift, own weight < 0.99]`` at each of TIMES, ``[3, T]``, by number of references."""
    away = rows[query] - rows  # [N, D]
    distance = np.sum(away.astype(np.float64) ** 2, axis=1)
    along = (away @ rng.standard_normal(rows.shape[1]).astype(np.float32)).astype(np.float64)
    others = rng.permutation(len(rows))
    others = others[others != query]
    sets = {f"n = {size}": np.append(others[: size - 1], query) for size in SIZES if size <= len(rows)}
    result = {}
    for label, chosen in (sets | {"all rows": np.append(others, query)}).items():
        logits = -(distance[chosen] + 2 * TIMES[:, None] * along[chosen]) / (2 * TIMES[:, None] ** 2)  # own: 0
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        shift = np.sum((weights.astype(np.float32) @ away[chosen]).astype(np.float64) ** 2, axis=1)
        result[label] = np.stack([weights[:, -1], shift, weights[:, -1] < 0.99])
    return result


def time_density() -> np.ndarray:
    """Weights ``[T]`` of TIMES under the training's distribution, each for its cell in ln t; they sum to 1."""
    density = np.exp(-0.5 * ((np.log(TIMES) - TIME_MEAN) / TIME_STD) ** 2)
    below = 0.5 * (1 + _erf((np.log(TIMES[0]) - TIME_MEAN) / TIME_STD))
    above = 0.5 * (1 - _erf((np.log(TIMES[-1]) - TIME_MEAN) / TIME_STD))
    weights = density / density.sum() * (1 - below - above)
    weights[0] += below
    weights[-1] += above
    return weights


def _erf(z: float) -> float:
    return math.erf(z / math.sqrt(2))


def title(name: str) -> str:
    """A data set's name on the page."""
    kind, _, path = name.partition(":")
    return {"idx": "Fashion-MNIST"}.get(kind, path.rsplit("/", 1)[-1] or kind)


def table(found: dict[str, Any]) -> str:
    """Markdown: shares of training, a row for each data set and number of references."""
    lines = [
        "| data | values | rows | references | share of training with own weight < 0.99 | share of noise removed |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for name, row in found.items():
        for label in row["share_changed"]:
            changed, removed = (f"{row[key][label]:.1%}" for key in ("share_changed", "noise_removed"))
            lines.append(f"| {title(name)} | {row['dimensions']} | {row['rows']:,} | {label} | {changed} | {removed} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
