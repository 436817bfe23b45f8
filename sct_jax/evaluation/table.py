"""Scores of several repetitions in one row, and rows as text."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sct_jax.evaluation.network_metrics import ERRORS
from sct_jax.scores import more_is_better


def summarize(each: Sequence[dict[str, float]], minimum: bool = False) -> dict[str, Any]:
    """Means over repetitions, the sample standard deviation as ``NAME_std`` where there are several, and the list.

    With ``minimum`` also the least of each score that is better the less it is, as EDM reports of three sets of samples
    (arXiv 2206.00364).
    """
    summary: dict[str, Any] = {}
    least: dict[str, float] = {}
    for name in each[0]:
        values = [values[name] for values in each]
        summary[name] = float(np.mean(values))
        if name in ERRORS.values():
            continue
        if len(values) > 1:
            summary[f"{name}_std"] = float(np.std(values, ddof=1))
        if not more_is_better(name):
            least[name] = min(values)
    return summary | ({"minimum": least} if minimum else {}) | {"per_seed": list(each)}


def format_table(result: dict[str, Any]) -> str:
    """The results as aligned text, the floor (real against real) last.

    After ± stands the spread over repetitions; of a single KID its standard error, of a single Inception Score the
    spread over its splits.
    """
    names = [name for name in result["results"][0]["per_seed"][0] if name not in ERRORS.values()]
    rows = [["steps", "evaluations", *names]]
    for row in result["results"]:
        least = row.get("minimum", {})
        spreads = {name: row.get(f"{name}_std", row.get(ERRORS.get(name, ""))) for name in names}
        cells = [_cell(row[name], spreads[name], least.get(name)) for name in names]
        rows.append([str(row["sampling_steps"]), str(row["evaluations"]), *cells])
    floor = result["floor"]
    if floor:
        rows.append(["real", "-", *(_cell(floor.get(name, math.nan)) for name in names)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _cell(mean: float, spread: float | None = None, minimum: float | None = None) -> str:
    if math.isnan(mean):
        return "-"
    digits = ".4f" if abs(mean) >= 0.1 else ".4g"
    text = f"{mean:{digits}}" + (f" ± {spread:{digits}}" if spread is not None else "")
    return text + (f", min {minimum:{digits}}" if minimum is not None else "")
