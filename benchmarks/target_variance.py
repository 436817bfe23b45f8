"""How noisy the target is: the trace of its covariance given ``x_t``, against the noise level, by reference size.

    python benchmarks/target_variance.py --data digits --split all --out docs/results/target_variance_digits
    python benchmarks/target_variance.py --data idx --images 8192 --queries 24 --out docs/results/target_variance_idx

Size 1 is CT's (and ECT's) target, the sample itself; SCT's is the posterior mean over n samples, the own one among
them; "all" is the exact posterior mean of the data set. Writes OUT.json, OUT.md and OUT.svg.
"""

import argparse

import numpy as np
from svg import stand_alone

from sct_jax import files
from sct_jax.data import open_source
from sct_jax.data.spec import unit_range
from sct_jax.evaluation.provenance import provenance
from sct_jax.evaluation.target import target_covariance
from sct_jax.report.plots import Series, line_chart

TIMES = np.geomspace(0.05, 80.0, 14)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--path", default="")
    parser.add_argument("--split", default="train")
    parser.add_argument("--images", type=int, default=100_000, help="at most so many images, drawn at random")
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--draws", type=int, default=128)
    parser.add_argument("--conditional", action="store_true", help="references of the query's class only")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    source = open_source(args.data, args.path, split=args.split)
    count = min(args.images, len(source))
    chosen = np.random.default_rng(0).permutation(len(source))[:count]
    images, labels = zip(*(source[int(index)] for index in chosen), strict=True)
    result = target_covariance(
        unit_range(np.stack(images)),
        TIMES,
        labels=np.asarray(labels) if args.conditional else None,
        num_queries=args.queries,
        num_draws=args.draws,
    )
    files.write_json(f"{args.out}.json", result | {"provenance": provenance(images=count)})
    text = table(result)
    files.write_text(f"{args.out}.md", text + "\n")
    files.write_text(f"{args.out}.svg", plot(result))
    print(text)


def table(result: dict) -> str:
    """Markdown: a row for each noise level."""
    sizes = [f"n = {size}" for size in result["reference_sizes"]]
    lines = [f"| t | CT, closed form | {' | '.join(sizes)} |", "|---|---|" + "---|" * len(sizes)]
    for t, exact, row in zip(result["t"], result["ct_trace"], result["trace"], strict=True):
        cells = [f"{value:.4g}" if value > 1e-9 else "0" for value in (exact, *row)]
        lines.append(f"| {t:.3g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(result: dict) -> str:
    """A stand-alone SVG with a legend."""
    columns = list(zip(*result["trace"], strict=True))[:-1]  # "all" is 0, which has no place on a logarithmic axis
    series = [
        Series(f"n = {size}", result["t"], column, colour=index, markers=True)
        for index, (size, column) in enumerate(zip(result["reference_sizes"], columns, strict=False))
    ]
    chart = line_chart(series, "noise level t", "trace of Cov(target | x_t)", log_x=True, log_y=True)
    return stand_alone(chart, series)


if __name__ == "__main__":
    main()
