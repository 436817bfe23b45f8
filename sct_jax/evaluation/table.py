"""Scores of several repetitions in one row, and rows as text."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def summarize(each: Sequence[dict[str, float]], minimum: bool = False) -> dict[str, Any]:
    """Means over repetitions, the sample standard deviation as ``NAME_std`` where there are several, and the list.

    With ``minimum`` also the least of each, as EDM reports of three sets of samples (arXiv 2206.00364, appendix F).
    """
    summary: dict[str, Any] = {}
    for name in each[0]:
        values = [values[name] for values in each]
        summary[name] = float(np.mean(values))
        if len(values) > 1:
            summary[f"{name}_std"] = float(np.std(values, ddof=1))
    if minimum:
        summary["minimum"] = {name: min(values[name] for values in each) for name in each[0]}
    return summary | {"per_seed": list(each)}


def format_table(result: dict[str, Any]) -> str:
    """The results as aligned text, the floor (real against real) last."""
    names = [name for name in result["results"][0]["per_seed"][0]]
    rows = [["steps", "evaluations", *names]]
    for row in result["results"]:
        least = row.get("minimum", {})
        cells = [_cell(row[name], row.get(f"{name}_std"), least.get(name)) for name in names]
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
