"""How much of SCT a reference set is: own weight, effective rows, shift and variance of the target, by size and t.

    python benchmarks/reference_sets.py --data folder --path data/cifar10_jpeg --name "CIFAR-10 (JPEG q75)" --flip \\
        --out docs/results/reference_sets_cifar10

Size 128 is a batch, its own sample among the rows; "all" is the whole data set, or the query's class with
--conditional. Also the share of ECT's noise levels, ``ln t ~ N(mean, std²)``, at which a target is another than CT's.
Writes OUT.json, OUT.md and OUT.svg.
"""

import argparse
import math
from typing import Any

import numpy as np
from common import made_by
from svg import stand_alone

from sct_jax import files
from sct_jax.data import open_source
from sct_jax.evaluation.provenance import provenance
from sct_jax.evaluation.target_shift import CHANGED, target_shift
from sct_jax.report.plots import Series, line_chart

TIMES = (0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 6, 7, 8, 10, 12, 15, 20, 30, 50, 80)
FIRST_SHOWN = 0.5  # in the table
LEAST_VARIANCE = 1e-3  # of CT's target, below which a share of it means nothing
SIZES = (128, 1024, 4096, 16_384)
FIGURES = {"own_weight": "own weight", "effective_sample_size": "effective rows", "shift": "shift"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--path", default="")
    parser.add_argument("--split", default="train")
    parser.add_argument("--name", default="", help="what the table calls the data")
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--sets", type=int, default=2, help="reference sets for each query and size")
    parser.add_argument("--flip", action="store_true", help="mirror images are rows too")
    parser.add_argument("--conditional", action="store_true", help="rows of the query's class only")
    parser.add_argument("--mean", type=float, default=-1.1, help="of ln t in training")
    parser.add_argument("--std", type=float, default=2.0)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    images, labels = open_source(args.data, args.path, split=args.split).read_all()
    result = target_shift(
        images,
        TIMES,
        SIZES,
        labels=np.asarray(labels) if args.conditional else None,
        flip=args.flip,
        num_queries=args.queries,
        num_sets=args.sets,
    )
    result["shift"] = shift(result)
    result["training"] = in_training(result, args.mean, args.std)
    facts = provenance(images=len(images), data_name=args.name or args.data)
    files.write_json(f"{args.out}.json", result | {"provenance": facts})
    text = table(result, args.name or args.data, len(images))
    files.write_text(f"{args.out}.md", f"{text}\n{made_by(facts)}.\n")
    files.write_text(f"{args.out}.svg", plot(result))
    print(text)


def shift(result: dict[str, Any]) -> list[list[float | None]]:
    """The share of CT's variance that the target moved by; None where CT's target has next to none."""
    rows = zip(result["moved"], result["ct_variance"], strict=True)
    return [[value / ct if ct > LEAST_VARIANCE else None for value in row] for row, ct in rows]


def in_training(result: dict[str, Any], mean: float, std: float) -> dict[str, Any]:
    """Expectations over ``ln t ~ N(mean, std²)``: each level stands for the ``t`` that are nearest to it in ln t."""
    log_t = np.log(result["t"])
    middles = (log_t[1:] + log_t[:-1]) / 2
    below = [0.0, *(0.5 * (1 + math.erf((x - mean) / std / math.sqrt(2))) for x in middles), 1.0]
    probability = np.diff(below)
    changed, own_weight, moved = (np.asarray(result[name]) for name in ("changed", "own_weight", "moved"))
    return {
        "mean": mean,
        "std": std,
        "changed": (probability @ changed).tolist(),
        "others_weight": (probability @ (1 - own_weight)).tolist(),
        "shift": (probability @ moved / (probability @ np.asarray(result["ct_variance"]))).tolist(),
    }


def table(result: dict[str, Any], name: str, count: int) -> str:
    """Markdown: shares of the training distribution by size, then a row for each noise level."""
    labels = [f"{size:,}" if isinstance(size, int) else size for size in result["sizes"]]
    what = ("rows of the query's class" if result["class_conditional"] else "rows of all classes") + (
        ", mirror images too" if result["flip"] else ""
    )
    training = result["training"]
    lines = [
        f"# Reference sets on {name}",
        "",
        f"{count:,} images, {what}; {result['queries']} queries, {result['sets']} sets of each size, the query's own "
        "sample in each.",
        "The shift is the share of CT's variance that the target moved by: 0 is CT, 1 the exact posterior mean (all); "
        "1 − shift is",
        "the variance left. Trace of the covariance, images in [-1, 1].",
        "",
        f"Over ln t ~ N({training['mean']:g}, {training['std']:g}²):",
        "",
        f"| reference rows | {' | '.join(labels)} |",
        "|---" + "|---:" * len(labels) + "|",
    ]
    for key, words in (
        ("changed", f"targets whose own weight is below {CHANGED:g}"),
        ("others_weight", "mean weight of the other rows"),
        ("shift", "share of CT's variance taken out, of that over all t"),
    ):
        lines.append(f"| {words} | {' | '.join(f'{100 * value:.1f} %' for value in training[key])} |")
    heads = [f"{words}, {label}" for words in FIGURES.values() for label in labels]
    lines += ["", f"| t | {' | '.join(heads)} | CT's variance |", "|---" + "|---:" * (len(heads) + 1) + "|"]
    for row, t in enumerate(result["t"]):
        if t >= FIRST_SHOWN:
            cells = [_number(key, value) for key in FIGURES for value in result[key][row]]
            lines.append(f"| {t:g} | {' | '.join(cells)} | {result['ct_variance'][row]:.3g} |")
    return "\n".join(lines)


def _number(key: str, value: float | None) -> str:
    if value is None:
        return "–"
    if key != "effective_sample_size":
        return f"{value:.3f}"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def plot(result: dict[str, Any]) -> str:
    """A stand-alone SVG: the shift against the noise level (lines) and the own weight (dashed)."""
    series = []
    for dash, (key, words) in enumerate((("shift", "shift"), ("own_weight", "own weight"))):
        columns = zip(*result[key], strict=True)
        for colour, (size, column) in enumerate(zip(result["sizes"], columns, strict=True)):
            column = [math.nan if value is None else value for value in column]
            name = f"{words}, {size:,}" if isinstance(size, int) else f"{words}, {size}"
            series.append(Series(name, result["t"], column, colour=colour, dash=dash))
    chart = line_chart(series, "noise level t", "shift, own weight (dashed)", log_x=True)
    return stand_alone(chart, series)


if __name__ == "__main__":
    main()
