"""``sct-jax evaluate times``: the noise levels of a few sampling steps that a metric likes best.

ECT (arXiv 2406.14548) samples in two steps with 0.821 on CIFAR-10 and 1.526 on ImageNet-64, found by such a search.
Every candidate is measured on the same noise, so that their differences are those of the times.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sct_jax.errors import UserError
from sct_jax.evaluation import line_search
from sct_jax.evaluation.line_search import MARGIN, Times
from sct_jax.evaluation.meter import Meter
from sct_jax.evaluation.provenance import provenance
from sct_jax.model import load
from sct_jax.sampling.generate import lowest_time
from sct_jax.scores import more_is_better

RANGE = (0.02, 20.0)  # noise levels in which the intermediate times are looked for


def search_times(
    checkpoint: str | Path,
    *,
    steps: int = 2,
    metric: str = "fid",
    num: int | None = None,
    seed: int = 0,
    low: float = RANGE[0],
    high: float = RANGE[1],
    tolerance: float = 0.02,
    tries: int = 40,
    references: Sequence[str | Path] = (),
    features: str | Path = "",
    profile: str = "",
    data_path: str = "",
    batch_size: int = 256,
    noise: str | None = None,
    guide: str | Path | None = None,
    omega: float | None = None,
    boundary: str | None = None,
    sigma_min: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Searches the intermediate times of ``steps`` sampling steps of a consistency model.

    Args:
      checkpoint: a workdir or one of its checkpoints.
      steps: network evaluations, two or more.
      metric: what is minimised, or maximised where more is better.
      num: samples for each candidate, images 0 … num − 1 of ``seed``; None: as ``sct-jax evaluate`` takes.
      low: least noise level to try.
      high: greatest noise level to try.
      tolerance: in ln t.
      tries: candidates at most.
      say: told what a reference does not tell, and each candidate as it is measured, in a line each.

    The others are those of :func:`sct_jax.evaluation.run.evaluate_checkpoint`.

    Returns:
      ``{"kind": "time_search", "metric", "sampling_steps", "best": {"times", metric}, "start": {…}, "tried": [{…}, …],
      "done": bool, "use": …, "provenance": {…}}``.

    Raises:
      UserError: for a model of another kind, a range without room, and all that ``evaluate_checkpoint`` raises it for.
    """
    model = load(checkpoint, profile, boundary=boundary, sigma_min=sigma_min)
    if model.kind != "consistency":
        raise UserError(f"times are searched for a consistency model; {checkpoint} is a {model.kind} model")
    if steps < 2:
        raise UserError(f"--steps {steps}: one step has no time to choose; use 2 or more")
    start = model.times(steps)
    low = max(low, lowest_time(model.config))
    _check_range(low, min(high, start[0]), steps, tolerance, tries)
    options = {"noise": noise, "guide": guide, "omega": omega, "batch_size": batch_size}
    meter = Meter(
        model,
        metrics=[metric],
        references=references,
        features=features,
        data_path=data_path,
        options=options,
    )
    num = meter.checked_num(num)
    for note in meter.notes:
        say(note)
    sign = -1.0 if more_is_better(metric) else 1.0

    def measure(times: Times) -> float:
        value = meter.scores(num, steps, seed, times=times)[metric]
        say(f"{_text(times)}  {metric} {value:.6g}")
        return sign * value

    best, tried, done = line_search.search(measure, start, low=low, high=high, tolerance=tolerance, most=tries)
    as_row = lambda one: {"times": list(one.times), metric: sign * one.value}  # noqa: E731
    mid = ",".join(f"{t:g}" for t in best.times[1:])
    return {
        "kind": "time_search",
        "metric": metric,
        "sampling_steps": steps,
        "best": as_row(best),
        "start": as_row(tried[0]),
        "tried": [as_row(one) for one in tried],
        "done": done,
        "use": f"--times {_text(best.times)} of sct-jax sample and evaluate, or config.sampling.mid_times = ({mid},)",
        "provenance": provenance(
            checkpoint=str(checkpoint),
            num_samples=num,
            seeds=[seed],
            image_ranges=[[0, num]],
            search={"low": low, "high": high, "tolerance": tolerance, "tries": tries},
            **meter.facts(),
        ),
    }


def format_search(result: dict[str, Any]) -> str:
    """The candidates in order of their times, the best marked, and how to use it."""
    metric, best = result["metric"], result["best"]
    rows = sorted(result["tried"], key=lambda row: row["times"], reverse=True)
    width = max(len(_text(row["times"])) for row in rows)
    lines = [f"{'times':>{width}}  {metric}"]
    lines += [f"{_text(row['times']):>{width}}  {row[metric]:.6g}{'  best' * (row == best)}" for row in rows]
    if not result["done"]:
        lines.append(
            f"all {len(rows)} tries are used up before the times were found to --tolerance: allow more --tries"
        )
    return "\n".join([*lines, f"use {result['use']}"])


def _text(times: Sequence[float]) -> str:
    return ",".join(f"{t:g}" for t in times)


def _check_range(low: float, high: float, steps: int, tolerance: float, tries: int) -> None:
    if not 0 < low < high or math.log(high / low) < 2 * MARGIN * steps:
        raise UserError(f"--low {low:g} and --high {high:g} leave no room for {steps - 1} levels between them")
    if not 0 < tolerance < 1:
        raise UserError(f"--tolerance {tolerance:g}: in ln t, above 0 and below 1")
    if tries < 1:
        raise UserError(f"--tries {tries}: at least one is needed")
