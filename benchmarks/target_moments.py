"""Bias and variance of the target on a Gaussian mixture, against the closed-form posterior mean, by reference size.

    python benchmarks/target_moments.py --mixture 2d --out docs/results/target_moments_gmm_2d

Once with the sample's own clean image among the references (SCT's target: no bias at any size), once without it
(self-normalised importance sampling from the data alone). Writes OUT.json and OUT.md.
"""

import argparse
from typing import Any

from common import made_by

from sct_jax import files
from sct_jax.data.mixtures import MIXTURES
from sct_jax.evaluation.oracle import target_moments
from sct_jax.evaluation.provenance import provenance

TIMES = (0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 20.0, 80.0)
SIZES = (1, 4, 16, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mixture", default="2d", choices=sorted(MIXTURES))
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    mixture = MIXTURES[args.mixture][0]()
    found = {
        name: target_moments(
            mixture, TIMES, SIZES, own_sample=own, num_queries=args.queries, num_draws=args.draws, seed=0
        )
        for name, own in (("with the own sample", True), ("without it", False))
    }
    facts = provenance(mixture=args.mixture)
    files.write_json(f"{args.out}.json", found | {"provenance": facts})
    made = f"{made_by(facts)}."
    text = "\n\n".join([*(f"References {name}:\n\n{table(result)}" for name, result in found.items()), made])
    files.write_text(f"{args.out}.md", text + "\n")
    print(text)


def table(result: dict[str, Any]) -> str:
    """Markdown: bias² (± standard error over queries) and variance, a row for each noise level."""
    lines = [
        f"| t | {' | '.join(f'bias², n = {n}' for n in result['sizes'])} | "
        f"{' | '.join(f'variance, n = {n}' for n in result['sizes'])} |",
        "|---|" + "---:|" * (2 * len(result["sizes"])),
    ]
    rows = zip(result["t"], result["bias_squared"], result["bias_standard_error"], result["variance"], strict=True)
    for t, bias, error, variance in rows:
        cells = [f"{b:.1e} ± {e:.0e}" if abs(b) > 1e-12 else "0" for b, e in zip(bias, error, strict=True)]
        cells += [f"{v:.2e}" if v > 1e-12 else "0" for v in variance]
        lines.append(f"| {t:g} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
