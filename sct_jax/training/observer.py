"""What a run shows of itself while it trains: sample grids, and measured samples."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sct_jax import config as config_lib
from sct_jax import files, models
from sct_jax.data.spec import unit_range
from sct_jax.diffusion.condition import Condition
from sct_jax.models import Network
from sct_jax.objectives import masks_classes
from sct_jax.sampling.generate import Generator, default_labels, default_steps
from sct_jax.training import mesh
from sct_jax.training.state import TrainState

SAMPLE_SEED = 0
TARGET_TIMES = np.geomspace(0.05, 20.0, 12)
MOST_TARGET_IMAGES = 4096  # of a larger data set, so many stand for it
ORACLE_QUERIES = 32  # states of each noise level at which a model of a known mixture is asked


class Observer:
    """Samples from the first EMA profile of a state, the same noise every time."""

    def __init__(self, config: Any, workdir: Path, network: Network, source: Any, device_mesh: Any):
        self._config, self._workdir, self._source = config, workdir, source
        spec = source.spec
        shape = (spec.image_size, spec.image_size, spec.channels)
        sampled = config_lib.sampled_model(config)
        denoise = network.denoise if sampled == config.model else models.build(sampled, spec).denoise
        self._generate = Generator(denoise, shape, config, device_mesh, clip=spec.dtype == "uint8")
        self._denoise = jax.jit(denoise, out_shardings=mesh.replicated(device_mesh))
        self._labels = default_labels(spec.num_classes, config.model.conditional)
        self._steps = default_steps(config)
        self._evaluator: Any = None

    def samples(self, state: TrainState, num: int, steps: int) -> np.ndarray:
        """Float32 samples ``[num, H, W, C]``."""
        return self._generate(self._params(state), num, steps=steps, seed=SAMPLE_SEED, labels=self._labels)

    def draw_grids(self, state: TrainState, step: int) -> None:
        """Writes a picture for each number of steps into the workdir: a grid or, of points in the plane, their plot."""
        from sct_jax.report.grids import save_samples

        for steps in self._steps:
            samples = self.samples(state, self._config.sampling.num_images, steps)
            if mesh.is_first_process():
                save_samples(samples, self._grid_path(step, steps))

    def measure(self, state: TrainState) -> Iterator[dict[str, Any]]:
        """Metrics for each number of steps: with the offline features or, on a known mixture, against the truth.

        The latter are those of ``sct-jax evaluate``, at fewer states: cheap enough to be logged while training.
        """
        from sct_jax.evaluation.offline import measure

        num, params = self._config.evaluation.num_images, self._params(state)
        labels = None if self._labels is None else np.resize(np.asarray(self._labels), num)

        def denoise(x: Any, t: Any, labels: Any = None, s: Any = None) -> np.ndarray:
            # Of and as numpy arrays: every process has the same, none is tied to its own devices.
            return np.asarray(self._denoise(params, *jax.tree.map(np.asarray, (x, t, Condition(labels, s=s)))))

        for steps in self._steps:
            scores = measure(self._evaluate(), denoise, self.samples(state, num, steps), labels)
            yield {"sampling_steps": int(steps), "num": num} | scores

    def check(self) -> None:
        """Finds out before the first step what would fail at the first measurement."""
        if self._config.evaluation.every_steps:
            self._evaluate().check(self._config.evaluation.num_images)

    def finish(self, state: TrainState, step: int) -> None:
        """What belongs to a finished run and is not there yet: its last grids, and the variance of its target."""
        if not mesh.from_first(all(self._grid_path(step, steps).exists() for steps in self._steps)):
            self.draw_grids(state, step)
        if mesh.is_first_process() and not (self._workdir / "target_variance.json").exists():
            self.measure_target()

    def _params(self, state: TrainState) -> Any:
        return state.ema[self._config.ema.profiles[0]]

    def _grid_path(self, step: int, steps: int) -> Path:
        return self._workdir / "samples" / f"step_{step:08d}_{steps}step.png"

    def _evaluate(self) -> Any:
        if self._evaluator is None:
            from sct_jax.evaluation.offline import make_evaluator

            self._evaluator = make_evaluator(
                self._config, self._source, self._config.data.path, files.cache_folder(), ORACLE_QUERIES
            )
        return self._evaluator

    def measure_target(self) -> None:
        """Writes ``target_variance.json``: the variance of CT's and SCT's targets given ``x_t``, on this run's data."""
        from sct_jax.evaluation.target import target_covariance

        queries = self._config.evaluation.target_queries
        if not queries or self._config.objective.method == "edm":
            return
        count = min(len(self._source), MOST_TARGET_IMAGES)
        chosen = np.random.default_rng(0).permutation(len(self._source))[:count]
        images, labels = zip(*(self._source[int(index)] for index in chosen), strict=True)
        result = target_covariance(
            unit_range(np.stack(images)),
            TARGET_TIMES,
            labels=np.asarray(labels) if masks_classes(self._config) else None,
            num_queries=queries,
            num_draws=32,
        )
        files.write_text(self._workdir / "target_variance.json", json.dumps(result | {"images": count}) + "\n")
