"""Trains a grid of variants x seeds at equal steps from one data set's configs; writes the table, the curves, the JSON.

    python benchmarks/ablation.py --study references --data digits --seeds 0,1,2 --out docs/results/ablation_references

``--study`` is one of STUDIES below, a comparison that the paper or its reviewers asked for. ``--data`` is the prefix of
the configs (digits, fashion_mnist, gmm_2d, gmm_64d, cifar10): for each seed one diffusion model is trained from
``DATA_edm.py`` and the variants from it. Studies share runs, and everything resumes: what is trained is not trained
again, what is measured not measured again. ``--all``, ``--edm`` and ``--tune KEY=VALUE`` override every config, the
diffusion model's or the variants'.

Variants of one seed start from one diffusion model and see the same images, times and noise, so differences are taken
seed by seed: a second table has, for each baseline, the mean difference, its 95 % interval and the seeds that agree.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from common import made_by, pairs, spread
from scipy import stats
from svg import stand_alone

from sct_jax import config as config_lib
from sct_jax import files
from sct_jax.errors import UserError
from sct_jax.evaluation.provenance import provenance
from sct_jax.evaluation.run import evaluate_checkpoint
from sct_jax.report.plots import Series, line_chart
from sct_jax.scores import more_is_better
from sct_jax.training.loop import train
from sct_jax.training.saver import kept_steps

ROOT = Path(__file__).resolve().parent.parent
METRICS = {
    "gmm": ("consistency_error", "consistency_error_at_t_max", "w2"),
    "images": ("fd_pca", "fd_classifier", "class_agreement"),
}

DEFAULT_SAMPLING: tuple[dict[str, Any], ...] = ({"steps": (1, 2)},)


class Variant(NamedTuple):
    """One trained model: a config with overrides, started from the model of ``start`` (None: from scratch)."""

    config: str
    overrides: dict[str, str]
    start: "Variant | None"
    sampling: tuple[dict[str, Any], ...] = DEFAULT_SAMPLING  # each is a way to measure it


EDM = Variant("edm", {}, None, ({"steps": (18,)},))


def sct(*sampling: dict[str, Any], start: Variant | None = EDM, **overrides: str) -> Variant:
    """SCT with ``objective_phases="4"`` and the like; underscores after the room's name are dots."""
    return Variant("sct", _keys(overrides), start, sampling or DEFAULT_SAMPLING)


def ect(*sampling: dict[str, Any], start: Variant | None = EDM, **overrides: str) -> Variant:
    """ECT, as :func:`sct`."""
    return Variant("ect", _keys(overrides), start, sampling or DEFAULT_SAMPLING)


def _keys(overrides: dict[str, str]) -> dict[str, str]:
    return {key.replace("_", ".", 1): value for key, value in overrides.items()}


def _guidance(kept: Sequence[str], strengths: Sequence[float]) -> tuple[dict[str, Any], ...]:
    plain = {"steps": (1, 2)}
    return plain, *({"steps": (1, 2), "bad": part, "omega": omega} for part in kept for omega in strengths)


MATCHED = {"objective_schedule": "smooth_matched"}  # as fine as ECT's stages on average: the target alone differs
SMOOTH = {"objective_schedule": "smooth"}
STAGED = {"objective_schedule": "staged"}
BFLOAT16 = {"model_compute_dtype": "bfloat16"}
ALL_ROWS = {"reference_source": "dataset"}


def _bank(rows: int) -> Variant:
    return sct(**MATCHED, reference_source="bank", reference_size=str(rows))


MANY_STEPS = (1, 2, 4, 8)
EDGES_PAST = (1.0, 0.9, 0.7, 0.5)
DROPPED = {"model_conditional": "True", "model_label_dropout": "0.1"}
EDM_DROPPED = EDM._replace(overrides=_keys(DROPPED))
STUDIES: dict[str, dict[str, Variant]] = {
    # ECT against SCT as published, and both at one schedule, over training steps and at their end.
    "methods": {
        "ect": ect(),
        "ect, matched": ect(**MATCHED),
        "sct, matched": sct(**MATCHED),
        "sct, bank of 256, matched": _bank(256),
        "sct, all rows, matched": sct(**MATCHED, **ALL_ROWS),
        "sct": sct(),
    },
    # The schedule apart from the target.
    "schedule": {
        "sample, staged (ect)": ect(),
        "sample, matched": ect(**MATCHED),
        "sample, smooth": ect(**SMOOTH),
        "batch, staged": sct(**STAGED),
        "batch, matched": sct(**MATCHED),
        "batch, smooth (sct)": sct(),
        "all rows, matched": sct(**MATCHED, **ALL_ROWS),
    },
    # Where the rows of the posterior mean come from, and how many; of the query's class or of all.
    "references": {
        "1 row (ect)": ect(**MATCHED),
        **{f"bank of {rows}": _bank(rows) for rows in (4, 16, 64, 256)},
        "batch": sct(**MATCHED),
        "batch, all classes": sct(**MATCHED, reference_same_class="False"),
        "all rows": sct(**MATCHED, **ALL_ROWS),
        "all rows, all classes": sct(**MATCHED, **ALL_ROWS, reference_same_class="False"),
    },
    # Phases of the ODE path and how far past an edge sampling steps, beside the samplers of a plain model.
    "phases": {
        "1 phase": sct(
            {"steps": MANY_STEPS},
            {"steps": MANY_STEPS[1:], "noise": "none"},
            *({"steps": MANY_STEPS[1:], "noise": f"adjusted:{share}"} for share in (0.1, 0.3)),
            **MATCHED,
        ),
        **{
            f"{phases} phases": sct(
                *({"steps": (phases,), "eta": eta} for eta in EDGES_PAST), **MATCHED, objective_phases=str(phases)
            )
            for phases in MANY_STEPS[1:]
        },
    },
    # A bad version of itself at a strength; and classifier-free guidance of a model trained with label dropout.
    "guidance": {
        "bad version": sct(
            *_guidance(("0.25", "0.5", "0.75"), (0.1, 0.3, 1.0)), **MATCHED, checkpoint_keep_fractions="0.25,0.5,0.75"
        ),
        "edm, label dropout": EDM_DROPPED,
        "classifier-free": sct(
            *_guidance(("unconditional",), (0.1, 0.3, 1.0)), start=EDM_DROPPED, **MATCHED, **DROPPED
        ),
    },
    # What the precision of activations costs, with the TD difference as "auto" makes it and evaluated throughout.
    "precision": {
        "float32": sct(**MATCHED),
        "float32, derivative": sct(**MATCHED, objective_difference="tangent"),
        "bfloat16": sct(**MATCHED, **BFLOAT16),
        "bfloat16, evaluated": sct(**MATCHED, **BFLOAT16, objective_difference="evaluated"),
    },
    # Tuning against training from scratch, each with and without the reduced variance.
    "scratch": {
        "ect, tuned": ect(**MATCHED),
        "sct, tuned": sct(**MATCHED),
        "ect, from scratch": ect(start=None, **MATCHED),
        "sct, from scratch": sct(start=None, **MATCHED),
        "sct, all rows, from scratch": sct(start=None, **MATCHED, **ALL_ROWS),
    },
}
BASELINES = {
    "precision": ("float32",),
    "methods": ("ect", "ect, matched"),
    "schedule": ("sample, staged (ect)", "sample, matched", "sample, smooth"),
    "references": ("1 row (ect)", "batch"),
    "phases": ("1 phase",),
    "guidance": ("bad version", "classifier-free"),
    "scratch": ("ect, tuned", "ect, from scratch"),
}


def train_one(args: argparse.Namespace, seed: int, variant: Variant) -> dict[str, Any]:
    """Trains and measures one variant with one seed; ``{"measured", "curve", "seconds"}``."""
    workdir, seed = _place(args, seed, variant)
    start = str(_place(args, seed, variant.start)[0]) if variant.start else ""
    overrides = pairs(args.all) | pairs(args.edm if variant.config == "edm" else args.tune) | variant.overrides
    overrides |= {"seed": str(seed), "init.checkpoint": start}
    config = config_lib.load_config(ROOT / "configs" / f"{args.data}_{variant.config}.py", overrides)
    check_same_run(config, workdir)
    train(config, workdir)
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    measured = []
    for sampling in variant.sampling:
        measured += [row | {"sampling": sampling} for row in measure(args, workdir, config, sampling)]
    found = {(row["step"], row["sampling_steps"]): row for row in rows if row["kind"] == "evaluation"}  # the last word
    curve = [found[key] for key in sorted(found)]
    return {"measured": measured, "curve": curve, "seconds": max(row.get("seconds", 0.0) for row in rows)}


def _place(args: argparse.Namespace, seed: int, variant: Variant) -> tuple[Path, int]:
    """The workdir of a run and its seed, which may be one for all diffusion models."""
    if variant.config == "edm" and args.edm_seed is not None:
        seed = args.edm_seed
    return Path(args.runs) / args.data / f"seed{seed}" / _folder(variant), seed


def check_same_run(config: Any, workdir: Path) -> None:
    """Raises a UserError when the workdir holds a run of other settings: its name holds those of the variant alone."""
    path = workdir / "config.json"
    if not path.exists():
        return
    before, now = (config_lib.flatten(tree) for tree in (json.loads(path.read_text()), config_lib.to_dict(config)))
    other = [key for key in now if before.get(key, now[key]) != now[key]]
    if other:
        key = other[0]
        raise UserError(
            f"{workdir} holds a run with config.{key} = {before[key]!r}, not {now[key]!r}: choose another --runs"
        )


def _folder(variant: Variant) -> str:
    """The name of a run's folder by what it is, so that studies share it."""
    start = "" if variant.config == "edm" or variant.start == EDM else "_from_dropout" if variant.start else "_scratch"
    changed = [f"{key.split('.')[-1]}{value}" for key, value in sorted(variant.overrides.items())]
    name = "_".join([variant.config + start, *changed])
    return "".join(c if c.isalnum() else "_" for c in name)


def measure(args: argparse.Namespace, workdir: Path, config: Any, sampling: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics of one way to sample, over three sampling seeds; kept beside the run until it is trained further."""
    label = "_".join(f"{key}{value}" for key, value in sampling.items()).replace(" ", "")
    if args.metrics:
        label += "_" + args.metrics
    path = workdir / f"ablation_{''.join(c if c.isalnum() or c in '._' else '-' for c in label)}.json"
    if path.exists():
        found = json.loads(path.read_text())
        if found["provenance"]["step"] == config.total_steps and args.num in (None, found["provenance"]["num_samples"]):
            return found["results"]
    options: dict[str, Any] = {key: value for key, value in sampling.items() if key in ("eta", "omega", "noise")}
    if "bad" in sampling:
        options["guide"] = sampling["bad"]
        if sampling["bad"] != "unconditional":
            wanted = float(sampling["bad"]) * config.total_steps
            kept = min(kept_steps(config), key=lambda step: abs(step - wanted))
            options["guide"] = str(workdir / "checkpoints" / str(kept))
    chosen = args.metrics.split(",") if args.metrics else None
    result = evaluate_checkpoint(
        workdir, steps=sampling["steps"], num=args.num, seeds=(0, 1, 2), metrics=chosen, **options
    )
    files.write_json(path, result)
    return result["results"]


def table(results: dict[str, list[dict[str, Any]]], metrics: Sequence[str]) -> str:
    """Markdown: variant and sampling against metrics, mean ± sample standard deviation over training seeds."""
    lines = [
        f"| variant | sampling | {' | '.join(metrics)} | training, s |",
        "|---|---|" + "---:|" * (len(metrics) + 1),
    ]
    for name, runs in results.items():
        for index, first in enumerate(runs[0]["measured"]):
            cells = [spread([run["measured"][index].get(metric) for run in runs]) for metric in metrics]
            seconds = f"{np.mean([run['seconds'] for run in runs]):.0f}"
            lines.append(f"| {name} | {_how(first)} | {' | '.join(cells)} | {seconds} |")
    return "\n".join(lines)


def paired(
    results: dict[str, list[dict[str, Any]]], metrics: Sequence[str], baselines: Sequence[str]
) -> list[dict[str, Any]]:
    """Differences to each baseline, seed by seed, with Student's 95 % interval for their mean.

    A way to sample is compared with the baseline's first of as many steps; where there is none it is left out.

    Returns:
      Rows ``{"baseline", "variant", "sampling", "sampling_steps", metric: {"differences", "mean", "standard_error",
      "interval", "ratio", "better"}}``: ``ratio`` is that of the means, ``better`` the number of seeds in which the
      variant is better than the baseline.
    """
    rows = []
    for baseline in filter(results.__contains__, baselines):
        against: dict[int, int] = {}
        for index, row in enumerate(results[baseline][0]["measured"]):
            against.setdefault(row["sampling_steps"], index)
        for name, runs in results.items():
            for index, first in enumerate(runs[0]["measured"]):
                other = against.get(first["sampling_steps"])
                if other is None or (name == baseline and index == other):
                    continue
                row = {"baseline": baseline, "variant": name}
                row |= {key: first[key] for key in ("sampling", "sampling_steps")}
                for metric in metrics:
                    ours = [run["measured"][index].get(metric) for run in runs]
                    theirs = [run["measured"][other].get(metric) for run in results[baseline]]
                    if None not in ours + theirs:
                        row[metric] = differences(ours, theirs, more_is_better(metric))
                if len(row) > 4:
                    rows.append(row)
    return rows


def differences(ours: Sequence[float], theirs: Sequence[float], more: bool) -> dict[str, Any]:
    """What :func:`paired` says of one metric; ``more``: whether a greater value is better."""
    each = np.subtract(ours, theirs)
    error = np.std(each, ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.nan
    reach = stats.t.ppf(0.975, len(each) - 1) * error if len(each) > 1 else np.nan
    found = {"mean": each.mean(), "standard_error": error, "ratio": np.mean(ours) / np.mean(theirs)}
    return {
        "differences": each.tolist(),
        **{key: float(value) for key, value in found.items()},
        "interval": [float(each.mean() - reach), float(each.mean() + reach)],
        "better": int(np.sum(each > 0 if more else each < 0)),
    }


def paired_table(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> str:
    """Markdown of :func:`paired`, a table for each baseline."""
    parts = []
    for baseline in dict.fromkeys(row["baseline"] for row in rows):
        own = [row for row in rows if row["baseline"] == baseline]
        shown = [metric for metric in metrics if any(metric in row for row in own)]
        lines = [
            f"Minus {baseline}, seed by seed: mean difference [95 % interval], seeds that are better, ratio of means.",
            "",
            f"| variant | sampling | {' | '.join(shown)} |",
            "|---|---|" + "---:|" * len(shown),
        ]
        for row in own:
            cells = [_difference(row[metric]) if metric in row else "–" for metric in shown]
            lines.append(f"| {row['variant']} | {_how(row)} | {' | '.join(cells)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _difference(found: dict[str, Any]) -> str:
    size = max(abs(found["mean"]), 1e-9)
    digits = int(np.clip(1 - np.floor(np.log10(size)), 2, 6))
    low, high = (f"{bound:+.{digits}f}" for bound in found["interval"])
    count = f"{found['better']} of {len(found['differences'])}"
    return f"{found['mean']:+.{digits}f} [{low}, {high}], {count}, × {found['ratio']:.2f}".replace("-", "−")


def _how(row: dict[str, Any]) -> str:
    sampling, steps = row["sampling"], row["sampling_steps"]
    parts = [f"{steps} step{'s' if steps > 1 else ''}"]
    parts += [f"η = {sampling['eta']:g}"] if "eta" in sampling else []
    parts += [f"noise {sampling['noise']}"] if "noise" in sampling else []
    if "bad" in sampling:
        bad = sampling["bad"]
        parts.append(f"ω = {sampling['omega']:g}, {bad if bad == 'unconditional' else f'at {float(bad):.0%}'}")
    return ", ".join(parts)


def curves(results: dict[str, list[dict[str, Any]]], metric: str) -> str:
    """A stand-alone SVG of ``metric`` against training steps, one- and two-step sampling, means over seeds; or ""."""
    series = []
    for colour, (name, runs) in enumerate(results.items()):
        for dash, steps in enumerate((1, 2)):
            rows = [
                [row for row in run["curve"] if row.get("sampling_steps") == steps and metric in row] for run in runs
            ]
            if min(map(len, rows)) > 1:
                x = [row["step"] for row in rows[0]]
                y = np.mean([[row[metric] for row in run[: len(x)]] for run in rows], axis=0)
                if series and series[-1].y == y.tolist():  # an error that does not depend on the sampling
                    series[-1] = replace(series[-1], name=name)
                    continue
                series.append(Series(f"{name}, {steps}-step", x, y.tolist(), colour=colour, dash=dash, markers=True))
    return stand_alone(line_chart(series, "training step", metric, log_y=True), series) if series else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", required=True, choices=sorted(STUDIES))
    parser.add_argument("--data", default="digits", help="the configs' prefix")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--without", default="", help="variants to leave out, by the start of their names")
    parser.add_argument("--only", nargs="*", help="the study's variants to take (default: all)")
    parser.add_argument("--metrics", help="names, with commas (default: fd_pca,fd_classifier,class_agreement)")
    parser.add_argument("--baseline", nargs="*", help="variants to subtract, seed by seed (default: the study's own)")
    parser.add_argument("--runs", default="runs/ablation")
    parser.add_argument("--edm-seed", type=int, help="of one diffusion model for all seeds (default: each has its own)")
    parser.add_argument("--edm-steps", type=int, default=18, help="to sample the diffusion model with; 0: do not")
    parser.add_argument("--num", type=int, help="samples for each sampling seed")
    for group in ("all", "edm", "tune"):
        parser.add_argument(f"--{group}", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", required=True, help="OUT.md, OUT.json and, where there are curves, OUT.svg")
    args = parser.parse_args()
    metrics = METRICS["gmm" if args.data.startswith("gmm") else "images"]
    if args.metrics:
        metrics = tuple(args.metrics.split(","))
    if args.study == "phases" and args.data.startswith("gmm"):
        metrics = metrics[-1:]  # the error is to other functions, those of the phases' own edges
    study, baselines = STUDIES[args.study], BASELINES[args.study] if args.baseline is None else args.baseline
    if unknown := [name for name in (*baselines, *(args.only or ())) if name not in study]:
        raise UserError(f"{unknown[0]!r}: no variant of study {args.study}, which has {'; '.join(study)}")
    left_out = tuple(filter(None, args.without.split(",")))
    edm = EDM._replace(sampling=({"steps": (args.edm_steps,)},) if args.edm_steps else ())
    variants = {"edm": edm} | {
        name: variant
        for name, variant in study.items()
        if not (left_out and name.startswith(left_out)) and (args.only is None or name in args.only)
    }
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in variants}
    began = time.time()
    for seed in map(int, args.seeds.split(",")):
        for name, variant in variants.items():
            results[name].append(train_one(args, seed, variant))
        print(f"seed {seed} done after {time.time() - began:.0f} s\n{table(results, metrics)}", flush=True)
    compared = paired(results, metrics, baselines)
    facts = provenance(seeds=args.seeds, overrides={group: getattr(args, group) for group in ("all", "edm", "tune")})
    made = f"{made_by(facts)}; mean ± spread over the seeds."
    chart = curves(results, metrics[0])
    if chart:
        files.write_text(f"{args.out}.svg", chart)
        made += f"\n\n![{metrics[0]} against training steps]({Path(args.out).name}.svg)"
    files.write_json(f"{args.out}.json", {"results": results, "paired": compared, "provenance": facts})
    text = [table(results, metrics), paired_table(compared, metrics), made]
    files.write_text(f"{args.out}.md", "\n\n".join(filter(None, text)) + "\n")
    print(f"{args.out}.md")


if __name__ == "__main__":
    main()
