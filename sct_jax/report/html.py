"""``sct-jax report``: one self-contained HTML file about one or several runs."""

import base64
import json
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from sct_jax import files
from sct_jax.errors import UserError
from sct_jax.report.page import chart, document, table
from sct_jax.report.plots import DASHES, Series, legend, line_chart, number
from sct_jax.report.runs import Run, read_runs
from sct_jax.scores import SCORES, more_is_better

MOST_GRIDS = 8  # a run and number of sampling steps
SIGNAL_AT = "td_signal_at_"  # before the lower end of an octave of t
NOT_METRICS = ("kind", "step", "seconds", "sampling_steps", "num", "per_seed", "evaluations", "minimum")


def write_report(workdirs: Sequence[str | Path], out: str | Path) -> Path:
    """Writes the report of the runs in ``workdirs`` to ``out`` and returns its path.

    The file holds everything it shows and asks nothing of the network. Files missing in a workdir are noted in it.

    Raises:
      UserError: when a path is no run's workdir, or ``out`` cannot be written.
    """
    out = Path(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder: give the name of a file, such as {out / 'report.html'}")
    runs = read_runs(list(workdirs))
    title = " · ".join(run.name for run in runs)
    sections = [_heading(runs), *_comparison(runs), *_curves(runs), *_signals(runs)]
    sections += [*_variances(runs), *_samples(runs), *_measurements(runs), *_configs(runs), *_notes(runs)]
    return files.write_text(out, document(f"{title}: report", sections))


def _heading(runs: list[Run]) -> str:
    count = "One run" if len(runs) == 1 else f"{len(runs)} runs"
    names = ", ".join(run.name for run in runs)
    return f'<h1>Report</h1><p class="quiet">{count}: {escape(names)}</p>'


def _comparison(runs: list[Run]) -> Iterator[str]:
    """The table that compares runs: what they cost and what their samples score."""
    steps = sorted({count for run in runs for count in _sampling_steps(run)})
    names = [name for name in SCORES if _scored(runs, steps, name)]
    header = ["run", "method", "parameters", "trained", "images/s", "sampling", *(SCORES[name].label for name in names)]
    fixed = len(header) - len(names)
    rows, scores = [], []
    for run in runs:
        last = run.train[-1] if run.train else {}
        step = max((record["step"] for record in run.train + run.evaluations), default=None)
        cost = [
            run.name,
            str(run.config.get("objective", {}).get("method", "–")),
            f"{run.parameters:,}" if run.parameters else "–",
            _steps(step) if step is not None else "–",
            _cell(last.get("images_per_second")),
        ]
        for count in sorted(_sampling_steps(run)) or [None]:
            found = run.final_scores(count) if count is not None else {}
            rows.append([*cost, _steps(count) if count is not None else "–", *(_score(found, name) for name in names)])
            scores.append((count, found))
    best = []
    for count in steps:  # among the runs sampled with as many steps
        for column, name in enumerate(names):
            values = {i: row[name] for i, (own, row) in enumerate(scores) if own == count and _is_number(row.get(name))}
            if len(set(values.values())) > 1:
                top = (max if more_is_better(name) else min)(values.values())
                best += [(i, fixed + column) for i, value in values.items() if value == top]
    yield "<h2>Comparison</h2>"
    yield (
        "<p>Lower distances (FID and KID too) and errors are better, and higher class agreement, Inception Score, "
        "precision, recall, density and coverage; none means much without the others. "
        "The best of the runs sampled alike is set off. Scores are those of <code>sct-jax evaluate</code> where there "
        "are any, else the last measured while training."
        "</p>"
    )
    yield table(header, rows, best=best)


def _curves(runs: list[Run]) -> Iterator[str]:
    charts = []
    for name, label in (("loss", "loss"), ("grad_norm", "gradient norm")):
        series = [
            Series(run.name, *_column(run.train, "step", name), colour=index)
            for index, run in enumerate(runs)
            if any(_is_number(record.get(name)) for record in run.train)
        ]
        charts.append(_chart(label.capitalize(), series, "training step", label, log=True))
    for name, score in SCORES.items():
        series = []
        for index, run in enumerate(runs):
            for dash, count in enumerate(sorted({record.get("sampling_steps") or 0 for record in run.evaluations})):
                records = [record for record in run.evaluations if record.get("sampling_steps") == count]
                x, y = _column(records, "step", name)
                if x:
                    series.append(Series(f"{run.name}, {_steps(count)}", x, y, index, dash, markers=True))
        title = score.label[0].upper() + score.label[1:]
        charts.append(_chart(title, series, "training step", score.label, log=not score.more_is_better))
    charts = [one for one in charts if one]
    if charts:
        yield "<h2>Curves</h2>"
        yield f'<div class="charts">{"".join(charts)}</div>'


def _variances(runs: list[Run]) -> Iterator[str]:
    """Variance of the target against the noise level, a line for each reference size."""
    charts = []
    for run in runs:
        if run.target_variance is None:
            continue
        found = run.target_variance
        series, zero = [], []
        for index, size in enumerate(found["reference_sizes"]):
            trace = [row[index] for row in found["trace"]]
            if any(_is_number(value) and value > 0 for value in trace):
                series.append(Series(f"n = {size}", found["t"], trace, index, markers=True))
            else:
                zero.append(str(size))
        if found.get("ct_trace"):
            name = "CT, closed form"
            series.append(Series(name, found["t"], found["ct_trace"], len(DASHES) + 1, dash=1))
        note = f"Without variance, so not on a logarithmic axis: n = {', '.join(zero)}." if zero else ""
        axes = {"x_label": "noise level t", "y_label": "Tr Cov(x̂₀ | x_t)"}
        svg = line_chart(series, **axes, log_x=True, log_y=True)
        if svg:
            charts.append(chart(run.name, svg, legend(series), note))
    if charts:
        yield "<h2>Variance of the target</h2>"
        yield (
            "<p>Trace of the covariance, given the noisy image, of the estimate of the clean one that training steps "
            "towards, for reference sets of n images. n = 1 is the sample itself (CT).</p>"
        )
        yield f'<div class="charts">{"".join(charts)}</div>'


def _signals(runs: list[Run]) -> Iterator[str]:
    """What precision leaves of the TD difference: over training, and by noise level at the last measurement."""
    charts = []
    for run in runs:
        if not run.signals:
            continue
        names = {"td_signal": "as trained", "td_signal_evaluated": "evaluated", "td_signal_tangent": "derivative"}
        series = []
        for index, (name, label) in enumerate(names.items()):
            x, y = _column(run.signals, "step", name)
            if x:
                series.append(Series(label, x, y, index, dash=index, markers=True))
        charts.append(_chart(f"{run.name}: TD signal", series, "training step", "cosine to float32's", log=False))
        last = run.signals[-1]
        levels = {float(key.removeprefix(SIGNAL_AT)): last[key] for key in last if key.startswith(SIGNAL_AT)}
        levels = {low: levels[low] for low in sorted(levels) if _is_number(levels[low])}
        if levels:
            centres = [low * 2**0.5 for low in levels]
            series = [Series(f"step {last['step']:,}", centres, [*levels.values()], 0, markers=True)]
            svg = line_chart(series, "noise level t", "cosine to float32's", log_x=True)
            charts.append(chart(f"{run.name}: TD signal by noise level", svg, legend(series)) if svg else "")
    charts = [one for one in charts if one]
    if charts:
        yield "<h2>TD signal</h2>"
        yield (
            "<p>Cosine between the TD difference as it is computed and float32's, for the same parameters and noise: "
            "at 1 nothing is lost to low precision, near 0 training regresses on rounding errors.</p>"
        )
        yield f'<div class="charts">{"".join(charts)}</div>'


def _samples(runs: list[Run]) -> Iterator[str]:
    if not any(run.grids for run in runs):
        return
    yield "<h2>Samples</h2><p>The same noise at every step of training.</p>"
    for run in runs:
        for count, grids in run.grids.items():
            yield f"<h3>{escape(run.name)}, {_steps(count)}</h3>"
            pictures = []
            for step, path in _thinned(grids):
                data = base64.b64encode(path.read_bytes()).decode()
                label = f"training step {step:,}"
                image = f'<img alt="Samples of {escape(run.name)}, {label}" src="data:image/png;base64,{data}">'
                pictures.append(f"<figure>{image}<figcaption>{label}</figcaption></figure>")
            yield f'<div class="strip">{"".join(pictures)}</div>'


def _measurements(runs: list[Run]) -> Iterator[str]:
    """Every ``evaluation*.json`` as a table, its floor as the last row, its provenance folded away."""
    if not any(run.measured for run in runs):
        return
    yield "<h2>Evaluations</h2>"
    for run in runs:
        for name, content in run.measured.items():
            rows = content["results"]
            metrics = list(dict.fromkeys(key for row in rows for key in row))
            metrics = [key for key in metrics if key not in NOT_METRICS and not key.endswith("_std")]
            cells = [[_cell(row.get("sampling_steps")), *(_score(row, key) for key in metrics)] for row in rows]
            if isinstance(content.get("floor"), dict):
                cells.append(["real against real", *(_score(content["floor"], key) for key in metrics)])
            yield f"<h3>{escape(run.name)}: {escape(name)}</h3>"
            yield table(["sampling steps", *metrics], cells)
            if content.get("provenance"):
                yield _folded("Provenance", json.dumps(content["provenance"], indent=2, ensure_ascii=False))


def _configs(runs: list[Run]) -> Iterator[str]:
    flat = [_flatten(run.config) for run in runs]
    yield "<h2>Configuration</h2>"
    if len(runs) > 1:
        keys = sorted({key for config in flat for key in config})
        differing = [key for key in keys if len({_shown(config, key) for config in flat}) > 1]
        if differing:
            yield f"<p>Where the runs differ: {len(differing)} of {len(keys)} fields.</p>"
            rows = [[key, *(_shown(config, key) for config in flat)] for key in differing]
            yield table(["field", *(run.name for run in runs)], rows).replace("<tr><td", '<tr class="differs"><td')
        else:
            yield "<p>The runs have the same configuration.</p>"
    for run in runs:
        yield _folded(f"{run.name}: all fields", json.dumps(run.config, indent=2, ensure_ascii=False))


def _notes(runs: list[Run]) -> Iterator[str]:
    notes = [(run.name, note) for run in runs for note in run.notes]
    if notes:
        items = "".join(f"<li><strong>{escape(name)}</strong>: {escape(note)}</li>" for name, note in notes)
        yield f'<h2>Missing or left out</h2><ul class="quiet">{items}</ul>'


def _chart(title: str, series: list[Series], x_label: str, y_label: str, log: bool) -> str:
    log = log and all(value > 0 for one in series for value in one.y)  # an unbiased KID may be below 0
    svg = line_chart(series, x_label, y_label, log_y=log)
    return chart(title, svg, legend(series)) if svg else ""


def _column(records: list[dict[str, Any]], x: str, y: str) -> tuple[list[float], list[float]]:
    rows = [record for record in records if _is_number(record.get(y))]
    return [record[x] for record in rows], [record[y] for record in rows]


def _sampling_steps(run: Run) -> set[int]:
    rows = [row for content in run.measured.values() for row in content["results"]] + run.evaluations
    return {row["sampling_steps"] for row in rows if isinstance(row.get("sampling_steps"), int)}


def _scored(runs: list[Run], steps: list[int], name: str) -> bool:
    return any(_is_number(run.final_scores(count).get(name)) for run in runs for count in steps)


def _thinned(grids: list[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """At most ``MOST_GRIDS`` of them, evenly spread, the first and the last among them."""
    if len(grids) <= MOST_GRIDS:
        return grids
    return [grids[round(index * (len(grids) - 1) / (MOST_GRIDS - 1))] for index in range(MOST_GRIDS)]


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def _steps(count: int) -> str:
    return "1\u00a0step" if count == 1 else f"{count:,}\u00a0steps"


def _score(row: dict[str, Any], name: str) -> str:
    spread = row.get(f"{name}_std")
    return _cell(row.get(name)) + (f" ± {number(spread)}" if _is_number(spread) else "")


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return number(round(value, 4) if abs(value) >= 0.1 else value)
    return number(value) if _is_number(value) else "–" if value is None else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(config: dict[str, Any], key: str) -> str:
    return json.dumps(config[key], ensure_ascii=False) if key in config else "–"
