"""Quality of a model of a known Gaussian mixture: distance to the exact function, and of its samples to exact ones."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from sct_jax.data.mixtures import GaussianMixture
from sct_jax.errors import UserError
from sct_jax.evaluation import oracle
from sct_jax.evaluation.metrics import check_names

WASSERSTEIN = "w2"
TARGETS = {  # of the errors of each kind of model
    "consistency": ("consistency",),
    "phased": ("consistency",),
    "diffusion": ("denoiser",),
    "two-time": ("consistency", "jump"),
}
REFERENCE = 1  # of a seed's random numbers: the exact samples that samples are compared with; 2: those of the floor


class MixtureEvaluator:
    """Measures models of one kind on one mixture.

    The metrics: ``w2``, the Wasserstein-2 distance to as many exact samples, of the same components where the model is
    conditional; and ``consistency_error`` (of a diffusion model ``denoiser_error``), the mean squared distance a
    dimension to the exact function, averaged over noise levels from 0.02 to 80, with ``…_at_t_max``, that at 80 alone;
    of a two-time model ``jump_error`` too, that of its jumps ``f(x, t → s)`` over random pairs of times.
    In many dimensions even exact points lie far apart, and samples that are too smooth have a ``w2`` below the floor:
    judge by the error there.

    Args:
      mixture: the truth.
      image_shape: ``(H, W, C)``, what the model takes.
      kind: as :func:`sct_jax.sampling.generate.sampler_kind` says.
      conditional: whether the model is given the component.
      edges: of a model's phases, ascending, from 0.
      lowest: the noise level from which the model answers; lower ones are left out of the error.
      queries: states at each noise level.
    """

    def __init__(
        self,
        mixture: GaussianMixture,
        image_shape: tuple[int, ...],
        *,
        kind: str,
        conditional: bool,
        edges: Sequence[float] = oracle.WHOLE_PATH,
        lowest: float = 0.0,
        queries: int = 128,
    ):
        self._mixture, self._shape, self._conditional = mixture, image_shape, conditional
        self._errors = tuple(f"{target}_error" for target in TARGETS[kind])
        times = tuple(t for t in oracle.TIMES if t >= lowest)
        self._queries = lru_cache(maxsize=8)(
            lambda seed, target: oracle.draw_queries(
                mixture, times, num=queries, seed=seed, conditional=conditional, edges=edges, target=target
            )
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Every metric of this kind of model."""
        return (WASSERSTEIN, *self._errors)

    def check(self, num: int, names: Sequence[str] | None = None) -> None:
        """Raises ``UserError`` for unknown metrics, or a number of samples that they cannot do with."""
        if WASSERSTEIN in self._checked(names) and not 1 <= num <= oracle.MOST_POINTS:
            raise UserError(f"--num {num}: {WASSERSTEIN} compares 1 to {oracle.MOST_POINTS:,} samples")

    def metrics(
        self,
        denoise: Any,
        samples: np.ndarray,
        sample_labels: np.ndarray | None = None,
        names: Sequence[str] | None = None,
        seed: int = 0,
    ) -> dict[str, float]:
        """Scores of a model and its ``samples [N, H, W, C]`` by metric name.

        ``denoise(x, t, labels)`` is the model, of two times ``denoise(x, t, labels, s=None)``; ``seed`` decides the
        states and the exact samples it is compared with.
        """
        result = {}
        for name in self._checked(names):
            if name == WASSERSTEIN:
                rng = np.random.default_rng((seed, REFERENCE))
                exact, _ = self._mixture.sample(rng, len(samples), sample_labels)
                result[name] = oracle.wasserstein(samples, exact)
            else:
                curve = self.curve(denoise, seed, name)
                result |= {name: curve["mean"], f"{name}_at_t_max": curve["at_t_max"]}
        return result

    def curve(self, denoise: Any, seed: int = 0, name: str = "") -> dict[str, Any]:
        """An error, the first or the one of that name, against the noise level; see ``oracle.prediction_error``."""
        name = name or self._errors[0]
        queries = self._queries(seed, name.removesuffix("_error"))
        found = oracle.prediction_error(denoise, queries, self._shape)
        return {"metric": name, "class_conditional": self._conditional, "seed": seed} | found

    def floor(
        self, num: int, seed: int = 0, names: Sequence[str] | None = None, sample_labels: np.ndarray | None = None
    ) -> dict[str, float]:
        """What exact samples score against exact samples. The exact function's error is 0, and so is not listed."""
        if WASSERSTEIN not in self._checked(names):
            return {}
        return {WASSERSTEIN: oracle.wasserstein_floor(self._mixture, num, (seed, REFERENCE + 1), sample_labels)}

    def _checked(self, names: Sequence[str] | None) -> tuple[str, ...]:
        check_names(names or (), self.names, "known for this model")
        return self.names if names is None else tuple(names)
