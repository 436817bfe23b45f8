"""``sct-jax evaluate``: samples of a checkpoint, measured, with everything needed to make the number again."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sct_jax.errors import UserError
from sct_jax.evaluation.meter import Meter
from sct_jax.evaluation.provenance import provenance
from sct_jax.evaluation.table import summarize
from sct_jax.model import load
from sct_jax.sampling.generate import default_steps


def evaluate_checkpoint(
    checkpoint: str | Path,
    *,
    steps: Sequence[int] | None = None,
    times: Sequence[float] | None = None,
    num: int | None = None,
    seeds: Sequence[int] = (0,),
    repeats: int = 1,
    metrics: Sequence[str] | None = None,
    references: Sequence[str | Path] = (),
    features: str | Path = "",
    profile: str = "",
    data_path: str = "",
    batch_size: int = 256,
    noise: str | None = None,
    eta: float | None = None,
    guide: str | Path | None = None,
    omega: float | None = None,
    boundary: str | None = None,
    sigma_min: float | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures a checkpoint at each number of steps, averaged over sampling seeds and repetitions.

    Args:
      checkpoint: a workdir or one of its checkpoints.
      steps: numbers of sampling steps; None: those of the run's config, or as many as the model has phases.
      times: noise levels in place of ``steps``, descending.
      num: samples for each seed; None: 50,000 for metrics on feature networks, else as many as there are training
        images, at most 10,000 (of a mixture 1,000).
      seeds: sampling seeds.
      repeats: sets of samples of each seed, one range of its images after the other; their minimum is reported too.
      metrics: names; None: all offline ones that apply, and FID where weights and ``references`` are there.
      references: files with statistics of real images, one or more feature spaces in each.
      features: folder of the feature networks' weights; empty: where ``sct-jax import`` puts them.
      profile: EMA profile, empty for the first.
      data_path: where the data lies now, if not where the config says.
      noise: as ``eta``, ``guide`` and ``omega``, see :meth:`sct_jax.model.Model.sample`.
      boundary: as ``sigma_min``, see :func:`sct_jax.load`.
      say: told what is left out, and what a reference does not tell, in a line each.

    Returns:
      ``{"results": [{"sampling_steps", metric: mean, metric_std: spread over repetitions, "per_seed": […]}], "floor":
      {…}, "provenance": {…}}``, with repeats also ``"minimum"`` in each row; of a model of a known mixture also
      ``"oracle"``, for each seed the error against the noise level
      (:class:`sct_jax.evaluation.mixtures.MixtureEvaluator`).

    Raises:
      UserError: for a checkpoint, data, metric, weights or reference that is not there.
    """
    if steps and times:
        raise UserError("--steps and --times: the times say already how many steps there are; give one of the two")
    if repeats < 1:
        raise UserError(f"--repeats {repeats}: at least one set of samples is needed")
    model = load(checkpoint, profile, boundary=boundary, sigma_min=sigma_min)
    counts = (len(times),) if times else tuple(steps or default_steps(model.config))
    model.check_options(noise, eta, times)
    levels = {str(count): list(map(float, times) if times else model.times(count, eta)) for count in counts}
    meter = Meter(
        model,
        metrics=metrics,
        references=references,
        features=features,
        data_path=data_path,
        options={"noise": noise, "eta": eta, "guide": guide, "omega": omega, "batch_size": batch_size},
    )
    num = meter.checked_num(num)
    for note in meter.notes:
        say(note)
    draws = [(int(seed), repeat * num) for seed in seeds for repeat in range(repeats)]
    results = []
    for count in counts:
        each = [meter.scores(num, count, seed, first=first, times=times) for seed, first in draws]
        row = {"sampling_steps": int(count), "evaluations": meter.evaluations(count)}
        results.append(row | summarize(each, minimum=repeats > 1))
    curves = meter.curves(seeds)
    return {
        "kind": "evaluation",
        "results": results,
        **({} if curves is None else {"oracle": curves}),
        "floor": meter.floor(num),
        "provenance": provenance(
            checkpoint=str(checkpoint),
            num_samples=num,
            seeds=[int(seed) for seed in seeds],
            image_ranges=[[first, first + num] for _, first in draws[:repeats]],
            noise_levels=levels,
            **meter.facts(),
        ),
    }
