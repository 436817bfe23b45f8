"""``sct-jax evaluate``: samples of a checkpoint, measured, with everything needed to make the number again."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sct_jax import config as config_lib
from sct_jax import files
from sct_jax.data import DataSpec, open_source
from sct_jax.data.mixtures import known_data
from sct_jax.data.prepare import detect_kind
from sct_jax.data.sources import NO_DATA
from sct_jax.data.tfds_source import INFO_FILE
from sct_jax.errors import UserError
from sct_jax.evaluation.metrics import Evaluator
from sct_jax.evaluation.mixtures import MixtureEvaluator
from sct_jax.evaluation.provenance import provenance
from sct_jax.model import Model, load
from sct_jax.sampling.generate import default_steps, phase_edges, sampler_kind, to_uint8

MOST_SAMPLES = {Evaluator: 10_000, MixtureEvaluator: 1000}  # unless asked for


def evaluate_checkpoint(
    checkpoint: str | Path,
    *,
    steps: Sequence[int] | None = None,
    num: int | None = None,
    seeds: Sequence[int] = (0,),
    metrics: Sequence[str] | None = None,
    profile: str = "",
    data_path: str = "",
    batch_size: int = 256,
    noise: str | None = None,
    eta: float | None = None,
    guide: str | Path | None = None,
    omega: float | None = None,
) -> dict[str, Any]:
    """Measures a checkpoint at each number of steps, averaged over sampling seeds.

    Args:
      checkpoint: a workdir or one of its checkpoints.
      steps: numbers of sampling steps; None: those of the run's config, or as many as the model has phases.
      num: samples for each seed; None: as many as there are training images, at most 10,000 (of a mixture 1,000).
      seeds: sampling seeds.
      metrics: names; None: all that apply.
      profile: EMA profile, empty for the first.
      data_path: where the data lies now, if not where the config says.
      noise: as ``eta``, ``guide`` and ``omega``, see :meth:`sct_jax.model.Model.sample`.

    Returns:
      ``{"results": [{"sampling_steps", metric: mean, metric_std: spread over seeds, "per_seed": […]}], "floor": {…},
      "provenance": {…}}``; of a model of a known mixture also ``"oracle"``, for each seed the error against the noise
      level (:class:`sct_jax.evaluation.mixtures.MixtureEvaluator`).

    Raises:
      UserError: for a checkpoint, data or metric that is not there.
    """
    model = load(checkpoint, profile)
    counts = tuple(steps or default_steps(model.config))
    model.check_options(noise, eta)
    levels = {str(count): list(model.times(count, eta)) for count in counts}
    bad, omega = model.check_guide(guide, omega)
    options = {"noise": noise, "eta": eta, "guide": bad, "omega": omega}
    denoise = model.guided(bad, omega)
    config = with_data(model.config, model.spec, data_path, str(checkpoint))
    data, classes = config.data, {} if model.config.model.conditional else {"num_classes": 0}
    where = data_path or data.path
    train = open_source(data.source, where, split=data.split, image_size=data.image_size)
    expected = replace(model.spec, num_examples=0, class_names=(), **classes)
    if replace(train.spec, num_examples=0, class_names=(), **classes) != expected:
        raise UserError(
            f"the data at {where or data.source} ({train.spec}) is not what {checkpoint} was trained on ({model.spec})"
        )
    evaluator = make_evaluator(config, train, where, files.cache_folder())
    num = min(len(train), MOST_SAMPLES[type(evaluator)]) if num is None else num
    evaluator.check(num, metrics)
    labels = model.check_labels(None)
    sample_labels = None if labels is None else np.resize(np.asarray(labels), num)
    results = []
    for count in counts:
        each = []
        for seed in seeds:
            samples = model.sample(num, count, seed, labels, batch_size=batch_size, **options)
            each.append(measure(evaluator, denoise, samples, sample_labels, metrics, seed))
        if not each[0]:
            raise UserError(f"--metrics {','.join(metrics or ())}: none applies to an unconditional model")
        results.append(
            {"sampling_steps": int(count), "evaluations": _evaluations(model, count, bool(omega))} | summarize(each)
        )
    known = isinstance(evaluator, MixtureEvaluator)
    return {
        "kind": "evaluation",
        "results": results,
        **({"oracle": [evaluator.curve(denoise, int(seed)) for seed in seeds]} if known else {}),
        "floor": evaluator.floor(num, seed=0, names=metrics, **({"sample_labels": sample_labels} if known else {})),
        "provenance": provenance(
            checkpoint=str(checkpoint),
            step=model.step,
            ema_profile=model.profile,
            num_samples=num,
            seeds=[int(seed) for seed in seeds],
            data={
                "source": data.source,
                "split": data.split,
                "held_out_split": data.held_out_split,
                "images": len(train),
            },
            noise_levels=levels,
            sampling=_sampling_facts(model, options),
        ),
    }


def with_data(config: Any, spec: DataSpec, data_path: str, checkpoint: str) -> Any:
    """The config, with the kind of data at ``data_path`` where it names none: that of an imported model.

    Raises:
      UserError: when neither of them names data.
    """
    if config.data.source != NO_DATA:
        return config
    if not data_path:
        raise UserError(f"{checkpoint} is imported and brings no images to measure against: name them with --data-path")
    kind = "tfds" if (Path(data_path) / INFO_FILE).is_file() else detect_kind(data_path)
    copy = config_lib.to_dict(config)
    copy["data"] |= {"source": kind, "image_size": spec.image_size}
    return config_lib.from_dict(copy)


def measure(
    evaluator: Evaluator | MixtureEvaluator,
    denoise: Any,
    samples: np.ndarray,
    labels: np.ndarray | None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Scores of a model ``denoise(x, t, labels)`` and its float ``samples [N, H, W, C]``, by its data's evaluator."""
    if isinstance(evaluator, MixtureEvaluator):
        return evaluator.metrics(denoise, samples, labels, names, seed)
    return evaluator.metrics(to_uint8(samples), labels, names)


def make_evaluator(
    config: Any, train: Any, data_path: str, cache_dir: Path | None, queries: int = 128
) -> Evaluator | MixtureEvaluator:
    """The offline evaluator for a config's data: its training images, and held-out ones where it names a split.

    Where the data is a known mixture it is the truth itself, asked at ``queries`` states of each noise level.
    """
    held_out = None
    data = config.data
    if data.source == "gmm":
        return MixtureEvaluator(
            *known_data(data_path),
            kind=sampler_kind(config),
            conditional=config.model.conditional,
            edges=phase_edges(config),
            queries=queries,
        )
    if data.held_out_split:
        other = open_source(data.source, data_path, split=data.held_out_split, image_size=data.image_size)
        if (other.spec.image_size, other.spec.channels) != (train.spec.image_size, train.spec.channels):
            raise UserError(
                f"images of split {data.held_out_split} ({other.spec.image_size} px, {other.spec.channels} channels) "
                f"differ from the training images; set config.data.image_size, or data.held_out_split=''"
            )
        held_out = other.read_all()
    return Evaluator(train=train.read_all(), held_out=held_out, num_classes=train.spec.num_classes, cache_dir=cache_dir)


def summarize(each: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Means over repetitions, the sample standard deviation as ``NAME_std`` where there are several, and the list."""
    summary: dict[str, Any] = {}
    for name in each[0]:
        values = [values[name] for values in each]
        summary[name] = float(np.mean(values))
        if len(values) > 1:
            summary[f"{name}_std"] = float(np.std(values, ddof=1))
    return summary | {"per_seed": list(each)}


def format_table(result: dict[str, Any]) -> str:
    """The results as aligned text, the floor (real against real) last."""
    names = [name for name in result["results"][0]["per_seed"][0]]
    rows = [["steps", "evaluations", *names]]
    for row in result["results"]:
        cells = [_cell(row[name], row.get(f"{name}_std")) for name in names]
        rows.append([str(row["sampling_steps"]), str(row["evaluations"]), *cells])
    floor = result["floor"]
    rows.append(["real", "-", *(_cell(floor.get(name, math.nan), None) for name in names)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def _cell(mean: float, spread: float | None) -> str:
    if math.isnan(mean):
        return "-"
    digits = ".4f" if abs(mean) >= 0.1 else ".4g"
    return f"{mean:{digits}}" + (f" ± {spread:{digits}}" if spread is not None else "")


def _evaluations(model: Model, steps: int, guided: bool) -> int:
    """Network evaluations: Heun's method takes two a step but for the last, guidance one more for each."""
    return (2 * steps - 1 if model.kind == "diffusion" else steps) * (1 + guided)


def _sampling_facts(model: Model, options: dict[str, Any]) -> dict[str, Any]:
    """How the samples were drawn, as far as it applies to the model."""
    facts, config, bad = {"kind": model.kind}, model.config.sampling, options["guide"]
    if model.kind == "consistency":
        facts["noise"] = options["noise"] or config.noise
    if model.kind == "phased":
        facts["eta"] = config.eta if options["eta"] is None else options["eta"]
    if bad is not None:
        facts["guide"] = bad.path if isinstance(bad, Model) else bad
        facts["omega"] = options["omega"]
    if isinstance(bad, Model):
        facts |= {"guide_step": bad.step, "guide_ema_profile": bad.profile}
    return facts
