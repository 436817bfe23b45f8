"""Many images from a denoiser: in batches, over a mesh, image *i* of a seed the same whatever their size."""

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sct_jax.diffusion import times as diffusion_times
from sct_jax.diffusion.condition import Condition
from sct_jax.diffusion.process import karras_grid
from sct_jax.errors import SamplingWarning, UserError
from sct_jax.sampling import samplers
from sct_jax.sampling.guidance import Guide, guided_denoise
from sct_jax.schema import DENOISING

Array = jax.Array


class Then(NamedTuple):
    """What is made of each batch of images on the device, in the same program as the images.

    Attributes:
      run: pure, ``(params, images [B, H, W, C]) -> arrays [B, …]``, row by row; keep one function, it is compiled once.
      params: its first argument, arrays.
    """

    run: Callable[[Any, Array], Any]
    params: Any = None


class Generator:
    """Generates images with one network; keeps the compiled samplers, so that it can be called while training.

    Args:
      denoise: the pure denoiser ``denoise(params, x, t, condition)``.
      image_shape: ``(H, W, C)``.
      config: the config that the network is trained with.
      device_mesh: the batch is split over its devices when given.
      clip: images are cut to [-1, 1], the range of uint8 data; False for float data of any range.
    """

    def __init__(
        self,
        denoise: Any,
        image_shape: tuple[int, ...],
        config: Any,
        device_mesh: Any = None,
        *,
        clip: bool = True,
    ):
        self._denoise, self._shape, self._sampling, self._clip = denoise, image_shape, config.sampling, clip
        self._sigma_data, self._lowest = config.model.sigma_data, lowest_time(config)
        self._kind, self._edges, self._trained_to = sampler_kind(config), phase_edges(config), largest_time(config)
        self._sharding = self._whole = None
        if device_mesh is not None:
            self._sharding = jax.sharding.NamedSharding(device_mesh, jax.sharding.PartitionSpec(device_mesh.axis_names))
            self._whole = jax.sharding.NamedSharding(device_mesh, jax.sharding.PartitionSpec())
        options = {} if self._whole is None else {"out_shardings": self._whole}  # every process has all images
        self._compiled = jax.jit(self._batch, static_argnames=("noise", "guide_by", "then"), **options)

    def times(self, steps: int, eta: float | None = None) -> tuple[float, ...]:
        """The descending noise levels of the evaluations that ``steps`` stand for; ``eta`` overrides the config's."""
        config = self._sampling
        if steps < 1:
            raise UserError(f"--steps {steps}: at least one step is needed")
        if self._kind == "phased":
            phases = len(self._edges) - 1
            if steps != phases:
                raise UserError(f"--steps {steps}: this model has {phases} phases: use --steps {phases}")
            eta = config.eta if eta is None else eta
            levels = samplers.skip_edges(self._edges[:0:-1], eta)
            self._check_phases(levels, f"eta = {eta:g}")
            return levels
        if self._kind in MULTISTEP:
            levels = samplers.consistency_times(steps, config.mid_times, config.t_max)
            self._check_lowest(levels, f"--steps {steps}")
            return levels
        if steps == 1:  # a diffusion model used in one step: its mean, a blur; measured for comparison
            return (config.t_max,)
        return tuple(float(t) for t in karras_grid(steps, config.t_min, config.t_max, config.rho)[::-1])

    def check_options(
        self, noise: str | None = None, eta: float | None = None, times: Sequence[float] | None = None
    ) -> None:
        """Raises a UserError for sampling options that are impossible or do nothing with this kind of model."""
        if noise is not None:
            parse_noise(noise, self._sampling)
            if self._kind not in MULTISTEP:
                raise UserError(f"--noise {noise}: a {self._kind} model is sampled without fresh noise; leave it out")
        if eta is not None:
            if not 0 < eta <= 1:
                raise UserError(f"--eta {eta:g}: must be above 0 and at most 1")
            if self._kind != "phased":
                raise UserError(f"--eta {eta:g}: only phased models have edges to skip; leave it out")
            if times is not None:
                raise UserError("--eta and --times: the times say already where the steps go; give one of the two")
        if times is not None:
            self._checked_times(times)

    def __call__(
        self,
        params: Any,
        num: int,
        **options: Any,
    ) -> np.ndarray:
        """Images ``[num, H, W, C]`` float32, in [-1, 1] where clipped; for the options see :meth:`batches`."""
        return np.concatenate(list(self.batches(params, num, **options)))

    def batches(
        self,
        params: Any,
        num: int,
        *,
        steps: int = 1,
        seed: int = 0,
        first: int = 0,
        labels: Sequence[int] | None = None,
        batch_size: int = 256,
        times: Sequence[float] | None = None,
        noise: str | None = None,
        eta: float | None = None,
        guide: Guide | None = None,
        omega: float = 1.0,
        then: Then | None = None,
    ) -> Iterator[Any]:
        """Images ``first … first + num − 1`` of a seed on the host, batch by batch, or what ``then`` makes of each.

        While the caller has a batch the device makes the next. ``labels`` are used in turn: image *i* has number
        ``i mod len(labels)``. ``times`` overrides the noise levels that ``steps`` stand for; ``noise`` and ``eta``
        override the config's. With a ``guide`` every prediction is pushed away from the guide's with weight ``omega``;
        0 leaves it out. Levels that are hardly those that were meant get a ``SamplingWarning``.
        """
        if num < 1:
            raise UserError(f"--num {num}: at least one image is needed")
        if batch_size < 1:
            raise UserError(f"--batch-size {batch_size}: at least one image at a time is needed")
        if not 0 <= seed < 2**31:
            raise UserError(f"--seed {seed}: must be from 0 to {2**31 - 1}")
        self.check_options(noise, eta, times)
        levels = self._stated_times(steps, eta) if times is None else self._checked_times(times)
        self._warn_of_start(levels, "config.sampling.t_max" if times is None else _given(times))
        guide_by = None
        if guide is not None and omega:
            params, guide_by = guide.join(params), (guide.params is None, guide.denoise)
        then = then or Then(_unchanged)
        extra = then.params
        if self._whole is not None:
            params, extra = jax.device_put((params, extra), self._whole)
        options = {"noise": noise or self._sampling.noise, "guide_by": guide_by, "then": then.run}
        times = np.asarray(levels, np.float32)  # an argument of the program: other levels are not compiled anew
        return one_ahead(
            (self._compiled(params, extra, index, label, seed, omega, times, **options), valid)
            for index, label, valid in self._indices(first, num, labels, min(batch_size, num))
        )

    def program(self, steps: int) -> Callable[..., Array]:
        """The pure function ``(params, seed, index, labels=None) -> images`` behind a call, what an export writes down.

        The noise levels that ``steps`` stand for are fixed, as are the config's options; images ``index`` of the seed
        are those of a call.
        """
        levels = np.asarray(self._stated_times(steps), np.float32)
        options = {"noise": self._sampling.noise, "guide_by": None}

        def draw(params: Any, seed: Array, index: Array, labels: Array | None = None) -> Array:
            times = jax.lax.optimization_barrier(jnp.asarray(levels))  # not folded: the arithmetic is that of a call
            return self._sample(params, index, labels, seed, 0.0, times=times, **options)

        return draw

    def _indices(
        self, first: int, num: int, labels: Sequence[int] | None, batch_size: int
    ) -> Iterator[tuple[Array, Array | None, int]]:
        """Full batches of indices and labels (the last padded), and how many of each are wanted."""
        if self._sharding is not None:
            devices = self._sharding.mesh.size
            batch_size = -(-batch_size // devices) * devices
        for start in range(first, first + num, batch_size):
            index = np.arange(start, start + batch_size, dtype=np.int32)
            label = None if labels is None else np.asarray(labels, np.int32)[index % len(labels)]
            if self._sharding is not None:
                index = jax.device_put(index, self._sharding)
                label = None if label is None else jax.device_put(label, self._sharding)
            yield index, label, min(batch_size, first + num - start)

    def _batch(
        self,
        params: Any,
        extra: Any,
        index: Array,
        labels: Array | None,
        seed: Array,
        omega: Array,
        times: Array,
        *,
        noise: str,
        guide_by: tuple[bool, Any] | None,
        then: Callable[[Any, Array], Any],
    ) -> Any:
        images = self._sample(params, index, labels, seed, omega, times=times, noise=noise, guide_by=guide_by)
        return then(extra, images)

    def _sample(
        self,
        params: Any,
        index: Array,
        labels: Array | None,
        seed: Array,
        omega: Array,
        *,
        times: Sequence[float] | Array,
        noise: str,
        guide_by: tuple[bool, Any] | None,
    ) -> Array:
        denoise = self._denoise
        if guide_by is not None:
            unconditional, bad_denoise = guide_by
            denoise = guided_denoise(denoise, omega, unconditional=unconditional, bad_denoise=bad_denoise)
        kind, share = parse_noise(noise, self._sampling)
        addim = functools.partial(samplers.adjusted, share=share, sigma_data=self._sigma_data)
        multistep = {"fresh": samplers.consistency, "none": samplers.deterministic, "adjusted": addim}[kind]
        # The times of a phased model have stepped past its edges already.
        sampler = {"diffusion": samplers.heun, "phased": samplers.deterministic}.get(self._kind, multistep)
        keys = samplers.image_keys(seed, index)
        x = times[0] * samplers.image_noise(keys, 0, self._shape)

        def predict(x: Array, t: Array, s: Array | None = None) -> Array:
            return denoise(params, x, t, Condition(labels, s=s if self._kind == "two-time" else None))

        images = sampler(predict, x, times, keys)
        return jnp.clip(images, -1.0, 1.0) if self._clip else images

    def _stated_times(self, steps: int, eta: float | None = None) -> tuple[float, ...]:
        """:meth:`times`; where they are not of the config, what they are is said."""
        levels, mid = self.times(steps, eta), self._sampling.mid_times
        if self._kind in MULTISTEP and steps > 1 and len(mid) != steps - 1:
            listed, what = ",".join(f"{t:.3g}" for t in levels), "noise level" if len(mid) == 1 else "noise levels"
            warnings.warn(
                f"--steps {steps}: config.sampling.mid_times has {len(mid)} {what}, not {steps - 1}: taken are "
                f"{listed}, even in ln t and not tuned; choose them with --times",
                SamplingWarning,
                stacklevel=3,
            )
        return levels

    def _warn_of_start(self, levels: tuple[float, ...], origin: str) -> None:
        usual = min(self._sampling.t_max, self._trained_to)
        if levels[0] > usual * ROUNDING:
            warnings.warn(
                f"{origin} starts at {levels[0]:g}, above {usual:g}, where samples of this model start: training draws "
                "such noise levels seldom or never",
                SamplingWarning,
                stacklevel=3,
            )

    def _checked_times(self, times: Sequence[float]) -> tuple[float, ...]:
        levels, given = tuple(float(t) for t in times), _given(times)
        falling = all(later < earlier for earlier, later in itertools.pairwise(levels))
        if not levels or not falling or not all(0 < t < math.inf for t in levels):
            raise UserError(f"{given}: needs descending positive noise levels, such as 80,0.8")
        if levels[0] > self._trained_to * ROUNDING:
            raise UserError(
                f"{given}: this model was trained at noise levels up to {self._trained_to:g} only (its "
                "config.objective.t_max); start there"
            )
        if self._kind == "phased":
            self._check_phases(levels, given)
        self._check_lowest(levels, given)
        return levels

    def _check_lowest(self, levels: tuple[float, ...], origin: str) -> None:
        if levels[-1] < self._lowest:
            raise UserError(
                f"{origin} asks this model (TCM, stage 2) at noise level {levels[-1]:g}: below "
                f"objective.dividing_time = {self._lowest:g} it is not trained; its stage 1 answers there"
            )

    def _check_phases(self, levels: tuple[float, ...], origin: str) -> None:
        """An evaluation takes a phased model no further than the phase below its own: one in each is the least."""
        phase = np.minimum(np.searchsorted(self._edges, np.float32(levels)), len(self._edges) - 1)
        if phase[-1] > 1 or (np.diff(phase) < -1).any():
            edges = ", ".join(f"{edge:.3g}" for edge in self._edges[::-1])
            raise UserError(f"{origin} leaves out a whole phase of this model; the edges of its phases are {edges}")


def one_ahead(dispatched: Iterable[tuple[Any, int]]) -> Iterator[Any]:
    """On the host, the rows wanted of each batch: ``(arrays on the device, how many rows)``.

    The next batch is dispatched before the caller gets one, and the device works on it meanwhile.
    """
    waiting: tuple[Any, int] | None = None
    for batch in dispatched:
        for leaf in jax.tree.leaves(batch[0]):
            leaf.copy_to_host_async()
        if waiting is not None:
            yield _to_host(*waiting)
        waiting = batch
    if waiting is not None:
        yield _to_host(*waiting)


def _given(times: Sequence[float]) -> str:
    return f"--times {','.join(map(str, times))}"


def _to_host(outputs: Any, rows: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:rows], outputs)


def _unchanged(_: Any, images: Array) -> Array:
    return images


NOISES = ("fresh", "none", "adjusted")
MULTISTEP = ("consistency", "two-time")  # kinds of models whose further steps take the noise of ``sampling.noise``
ROUNDING = 1 + 1e-4  # a level that is a bound but for float32 is within it


def parse_noise(text: str, sampling: Any) -> tuple[str, float]:
    """One of NOISES and the share of adjusted noise, of a text such as ``adjusted:0.3``; without it, the config's."""
    kind, colon, share = text.partition(":")
    try:
        value = float(share) if colon else float(sampling.adjusted_share)
    except ValueError:
        value = math.nan
    if kind not in NOISES or (colon and kind != "adjusted") or not 0 <= value <= 1:
        raise UserError(f"--noise {text}: must be fresh, none, adjusted, or adjusted:SHARE with a share from 0 to 1")
    return kind, value


def sampler_kind(config: Any) -> str:
    """Which sampler suits a model: ``"diffusion"`` (pre-trained denoisers), or one that jumps along the path.

    ``"consistency"``: to its end; ``"phased"``: to the edge below; ``"two-time"``: to any time, which it is told.
    """
    if config.model.target_time:
        return "two-time"
    if config.objective.method in DENOISING:
        return "diffusion"
    return "phased" if config.objective.phases > 1 else "consistency"


def largest_time(config: Any) -> float:
    """The largest noise level that training draws: the end of a grid or of truncated times; inf where there is none."""
    objective = config.objective
    grid = objective.method not in DENOISING and objective.pair == "grid"
    return float(objective.t_max) if grid or objective.times.startswith("truncated") else math.inf


def lowest_time(config: Any) -> float:
    """The noise level from which a model answers: 0, or the dividing time of a second stage."""
    objective = config.objective
    second = objective.method not in DENOISING and objective.bootstrap == "divided"
    return objective.dividing_time if second else 0.0


def phase_edges(config: Any) -> np.ndarray:
    """Edges of a model's phases, ascending, the first 0: two where it has one phase."""
    objective = config.objective
    return diffusion_times.phase_edges(num_phases(config), objective.t_min, objective.t_max, objective.rho)


def num_phases(config: Any) -> int:
    """Evaluations that a sample of a model takes at least."""
    return config.objective.phases if sampler_kind(config) == "phased" else 1


def steps_of_a_sample(config: Any) -> int:
    """Steps where none are asked for: one, one for each phase, or the first of a diffusion model's config."""
    return int(config.sampling.steps[0]) if sampler_kind(config) == "diffusion" else num_phases(config)


def default_steps(config: Any) -> tuple[int, ...]:
    """Numbers of steps to show a model with: ``config.sampling.steps``, or as many as it has phases."""
    return (num_phases(config),) if sampler_kind(config) == "phased" else tuple(config.sampling.steps)


def to_uint8(images: Any) -> Any:
    """Float images in [-1, 1] to uint8, rounded to nearest; numpy arrays on the host, JAX's where they lie."""
    xp = jnp if isinstance(images, Array) else np
    return xp.clip(xp.rint((images + 1.0) * 127.5), 0, 255).astype(np.uint8)


def default_labels(num_classes: int, conditional: bool) -> tuple[int, ...] | None:
    """Every class in turn for a conditional model, else None."""
    return tuple(range(num_classes)) if conditional else None
