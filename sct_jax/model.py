"""A trained model as an object: what ``sct_jax.load`` gives."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.diffusion.condition import Condition
from sct_jax.diffusion.jump import jump
from sct_jax.errors import UserError
from sct_jax.interop import weights
from sct_jax.sampling import generate, guidance
from sct_jax.sampling.guidance import Guide
from sct_jax.training import checkpoint
from sct_jax.training.mesh import make_mesh, put, replicated

Array = jax.Array
UNCONDITIONAL = "unconditional"


class Model:
    """A denoiser with its weights: ``denoise``, ``jump`` and ``sample``, with the boundary of ``config.sampling``.

    Attributes:
      config: the config it was trained with.
      spec: image size, channels and classes of its data.
      step: training steps behind the weights.
      profile: the EMA profile of the weights.
      params: the weights, a nested dict.
      path: the checkpoint folder.
      mesh: the devices that batches are split over, all there are.
    """

    def __init__(self, config: Any, spec: DataSpec, params: Any, *, step: int = 0, profile: str = "", path: str = ""):
        self.config, self.spec = config, spec
        self.step, self.profile, self.path = step, profile, path
        self._network = models.build(config_lib.sampled_model(config), spec)
        self._boundary: dict[str, Any] = {}  # of the caller in place of the config's; a guide is loaded with it too
        shape = (spec.image_size, spec.image_size, spec.channels)
        self.mesh = make_mesh()
        self.params = put(params, replicated(self.mesh))
        self._generator = generate.Generator(
            self._network.denoise, shape, config, self.mesh, clip=spec.dtype == "uint8"
        )

    @property
    def kind(self) -> str:
        """``"diffusion"`` for a pre-trained denoiser; ``"consistency"``, ``"phased"`` or ``"two-time"`` for others."""
        return generate.sampler_kind(self.config)

    def denoise(self, x: Array, t: Array, labels: Array | None = None) -> Array:
        """The prediction of the clean images.

        Args:
          x: noisy images ``[B, H, W, C]``, float, clean images being in [-1, 1].
          t: noise levels ``[B]``.
          labels: classes, int ``[B]``, −1 for none; or None.

        Raises:
          ValueError: when the shapes do not fit the model, or it needs labels (class-conditional, and trained without
            label dropout) and a row has none, or a noise level is below those that it answers at (TCM's stage 2).
        """
        return self._predict(x, t, labels)

    def jump(self, x: Array, t: Array, s: Array, labels: Array | None = None) -> Array:
        """Where the path through ``x`` at noise level ``t`` is at ``s``, as this kind of model has it.

        A diffusion model makes one Euler step; a consistency model goes along the chord to the end of the path; a
        phased model within a segment along the chord to its start, and on from edge to edge; a two-time model answers
        for ``s`` itself. See :func:`sct_jax.diffusion.jump.jump`.

        Args:
          x: noisy images ``[B, H, W, C]``.
          t: their noise levels ``[B]``.
          s: noise levels ``[B]`` to go to, ``0 ≤ s ≤ t``.
          labels: as of :meth:`denoise`.

        Raises:
          ValueError: for times out of order, and as :meth:`denoise`.
        """
        x, t, s = (jnp.asarray(array, jnp.float32) for array in (x, t, s))
        if s.shape != t.shape or not jnp.all((s >= 0) & (s <= t)):
            raise ValueError(f"jump needs s [B] with 0 <= s <= t, got t {t} and s {s}")
        edges = generate.phase_edges(self.config) if self.kind == "phased" else None
        return jump(lambda x, t, s: self._predict(x, t, labels, s), x, t, s, edges)

    def _predict(self, x: Array, t: Array, labels: Array | None = None, s: Array | None = None) -> Array:
        """:meth:`denoise`, on the way to ``s``, which a model of one time does not look at."""
        x, t = jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32)
        shape = (self.spec.image_size, self.spec.image_size, self.spec.channels)
        if x.shape[1:] != shape or t.shape != x.shape[:1]:
            raise ValueError(
                f"denoise needs x [B, {', '.join(map(str, shape))}] and t [B], got {x.shape} and {t.shape}"
            )
        lowest = generate.lowest_time(self.config)
        if lowest and jnp.any(t < lowest):
            raise ValueError(f"this model is a second stage: it answers at noise levels from {lowest:g} up, not {t}")
        if labels is not None:
            labels = jnp.asarray(labels, jnp.int32)
            if labels.shape != t.shape or jnp.any((labels < -1) | (labels >= max(self.spec.num_classes, 1))):
                raise ValueError(f"labels must be int [B] from -1 to {self.spec.num_classes - 1}, got {labels}")
        needs_labels = self.config.model.conditional and not self.config.model.label_dropout
        if needs_labels and (labels is None or jnp.any(labels < 0)):
            raise ValueError("this model is class-conditional and has never seen a row without label: give labels")
        return self._network.denoise(self.params, x, t, Condition(labels, s=s if self.kind == "two-time" else None))

    def sample(
        self,
        num: int,
        steps: int | None = None,
        seed: int = 0,
        labels: Sequence[int] | None = None,
        times: Sequence[float] | None = None,
        batch_size: int = 256,
        *,
        noise: str | None = None,
        eta: float | None = None,
        guide: "Model | str | Path | None" = None,
        omega: float | None = None,
    ) -> np.ndarray:
        """``num`` images ``[num, H, W, C]``, float32; image *i* of a seed is always the same.

        They are kept in [-1, 1], but for data of floats (``spec.dtype``), which may leave it.

        Args:
          steps: network evaluations (of a diffusion model: Heun steps); None: one, one for each phase, or (of a
            diffusion model) the config's.
          labels: classes used in turn; None: every class in turn where the model is conditional.
          times: noise levels in place of ``steps``, descending.
          noise: of the steps after the first, ``"fresh"``, ``"none"``, ``"adjusted"`` or
            ``"adjusted:SHARE"``; None: the config's.
          eta: a phased model steps past its edges ``s`` to ``eta s``; None: the config's.
          guide: what the predictions are pushed away from: ``"unconditional"``, another model or its checkpoint.
          omega: how far, ``D + omega (D − D_guide)``; None: 1.

        Raises:
          UserError: for labels out of range, labels for an unconditional model, and what does not suit the model.
        """
        options = {"labels": labels, "times": times, "batch_size": batch_size}
        guidance = {"noise": noise, "eta": eta, "guide": guide, "omega": omega}
        return np.concatenate(list(self.batches(num, steps, seed, **options, **guidance)))

    def batches(
        self,
        num: int,
        steps: int | None = None,
        seed: int = 0,
        *,
        first: int = 0,
        labels: Sequence[int] | None = None,
        guide: "Model | str | Path | None" = None,
        omega: float | None = None,
        then: generate.Then | None = None,
        **options: Any,
    ) -> Iterator[Any]:
        """Images ``first … first + num − 1`` of a seed, batch by batch, or what ``then`` makes of each on the device.

        The next batch is made while the caller has one. The other options are those of :meth:`sample`.
        """
        bad, omega = self.check_guide(guide, omega)
        return self._generator.batches(
            self.params,
            num,
            steps=generate.steps_of_a_sample(self.config) if steps is None else steps,
            seed=seed,
            first=first,
            labels=self.check_labels(labels),
            guide=self._guide(bad),
            omega=omega or 0.0,
            then=then,
            **options,
        )

    def times(self, steps: int, eta: float | None = None) -> tuple[float, ...]:
        """The descending noise levels that ``steps`` stand for."""
        return self._generator.times(steps, eta)

    def check_options(
        self, noise: str | None = None, eta: float | None = None, times: Sequence[float] | None = None
    ) -> None:
        """Raises a UserError for options of :meth:`sample` that do not suit the model."""
        self._generator.check_options(noise, eta, times)

    def check_guide(
        self, guide: "Model | str | Path | None", omega: float | None
    ) -> tuple["Model | str | None", float | None]:
        """The guide, loaded if it is a path (its first EMA profile), and its weight.

        Raises:
          UserError: for a weight without a guide, and a guide that cannot guide this model.
        """
        if guide is None:
            if omega is not None:
                raise UserError(f"--omega {omega:g} needs --guide: what the predictions are pushed away from")
            return None, None
        omega = 1.0 if omega is None else float(omega)
        if not math.isfinite(omega):
            raise UserError(f"--omega {omega}: must be finite")
        if guide != UNCONDITIONAL:
            bad = guide if isinstance(guide, Model) else load(guide, **self._boundary)
            _check_versions(self, bad)
            return bad, omega
        if not (self.config.model.conditional and self.config.model.label_dropout):
            raise UserError(
                f"--guide {UNCONDITIONAL} needs a conditional model trained with config.model.label_dropout > 0; "
                "this one is not: guide it by another checkpoint"
            )
        return UNCONDITIONAL, omega

    def guided(self, guide: "Model | str | Path | None", omega: float | None = None) -> Callable[..., Array]:
        """:meth:`denoise` with its predictions pushed away from the guide's; see :meth:`sample`.

        Of a two-time model it takes ``s`` too: ``(x, t, labels=None, s=None)``.
        """
        bad, weight = self.check_guide(guide, omega)
        if bad is None:
            return self._predict

        def denoise(x: Array, t: Array, labels: Array | None = None, s: Array | None = None) -> Array:
            if isinstance(bad, Model):
                worse = bad._predict(x, t, labels if bad.config.model.conditional else None, s)
            else:
                worse = self._predict(x, t, s=s)
            return guidance.guide(self._predict(x, t, labels, s), worse, weight)

        return denoise

    def _guide(self, bad: "Model | str | None") -> Guide | None:
        if not isinstance(bad, Model):
            return None if bad is None else Guide()
        return Guide(bad.params, None if _same_network(self, bad) else bad._network.denoise)

    def check_labels(self, labels: Sequence[int] | None) -> Sequence[int] | None:
        """The labels to use; raises a UserError for impossible ones."""
        conditional = self.config.model.conditional
        if labels is None:
            return generate.default_labels(self.spec.num_classes, conditional)
        if not conditional:
            raise UserError("labels were given, but this model is unconditional")
        bad = [label for label in labels if not -1 <= label < self.spec.num_classes]
        if bad or len(labels) == 0:
            raise UserError(f"labels {list(bad)} are out of range: classes go from 0 to {self.spec.num_classes - 1}")
        if -1 in labels and not self.config.model.label_dropout:
            raise UserError(
                "label -1 (none) needs a model trained with config.model.label_dropout > 0; this one is not"
            )
        return labels


def _check_versions(good: Model, bad: Model) -> None:
    """Raises a UserError unless ``bad`` predicts what ``good`` does: the same images, classes, function and phases."""
    shapes = [(m.spec.image_size, m.spec.image_size, m.spec.channels) for m in (good, bad)]
    phases = [generate.phase_edges(m.config).tolist()[:-1] for m in (good, bad)]
    if shapes[0] != shapes[1]:
        what = f"its images are {_times(shapes[1])}, not {_times(shapes[0])}"
    elif bad.config.model.conditional and not good.config.model.conditional:
        what = "it is conditional and this model is not"
    elif bad.config.model.conditional and good.spec.num_classes != bad.spec.num_classes:
        what = f"it has {bad.spec.num_classes} classes, not {good.spec.num_classes}"
    elif good.kind != bad.kind and {"diffusion", "two-time"} & {good.kind, bad.kind}:
        what = f"it is a {bad.kind} model and this is a {good.kind} model"
    elif phases[0] != phases[1]:
        what = "the edges of its phases are not those of this model"
    else:
        return
    raise UserError(f"--guide {bad.path} cannot guide this model: {what}")


def _same_network(one: Model, other: Model) -> bool:
    """Whether one denoiser serves the weights of both; what matters in training only may differ."""
    sampled = [config_lib.sampled_model(m.config).to_dict() for m in (one, other)]
    fields = [{**model, "dropout": 0, "label_dropout": 0} for model in sampled]
    return fields[0] == fields[1]


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def load(path: str | Path, profile: str = "", *, boundary: str | None = None, sigma_min: float | None = None) -> Model:
    """Loads a model from a workdir, one of its checkpoints, or a checkpoint file of another project.

    Args:
      path: a run's workdir (its newest checkpoint is taken), ``WORKDIR/checkpoints/STEP``, or a file that is imported
        in memory (see :func:`sct_jax.interop.import_model`).
      profile: the EMA profile; empty: the first of the run; ``"raw"``: the raw weights.
      boundary: of a consistency model, where its denoiser is the identity, ``"zero"`` or ``"sigma_min"``; None: as the
        config's ``sampling.boundary`` says.
      sigma_min: the shift of ``"sigma_min"``; None: the config's.

    Raises:
      UserError: when there is no checkpoint, or it is damaged or of another architecture; for an impossible boundary.
    """
    return from_weights(weights.load(path, profile), str(path), boundary=boundary, sigma_min=sigma_min)


def from_weights(
    found: weights.Weights, path: str, *, boundary: str | None = None, sigma_min: float | None = None
) -> Model:
    """The model of weights that were read from ``path``; for ``boundary`` and ``sigma_min`` see :func:`load`.

    Raises:
      UserError: when they are of another architecture than their config says; for an impossible boundary.
    """
    config = config_lib.with_boundary(found.config, boundary, sigma_min)
    model = Model(config, found.spec, found.params, step=found.step, profile=found.profile, path=path)
    if config is not found.config:
        sampled = config_lib.sampled_model(config)
        model._boundary = {"boundary": sampled.boundary}
        model._boundary |= {"sigma_min": sampled.sigma_min} if sampled.boundary == "sigma_min" else {}
    expected = jax.eval_shape(model._network.init, jax.random.key(0))
    weights.check_inputs(found, expected)
    checkpoint.check_weights(found.params, expected, found.origin)
    return model
