"""Gaussian mixtures: data whose noisy densities, scores and posterior means are known in closed form.

Noise of level ``t`` added to ``Σ_k π_k N(μ_k, Σ_k)`` gives ``p_t = Σ_k π_k N(μ_k, Σ_k + t² I)``. The source ``gmm``
draws from two such mixtures; ``evaluation.oracle`` has what follows from the closed forms.
"""

import dataclasses
from typing import Any, NamedTuple, Self

import numpy as np

from sct_jax.data.spec import ArraySource, check_split
from sct_jax.errors import UserError

Array = Any  # of numpy or JAX


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
    """``Σ_k π_k N(μ_k, V_k diag(σ_k²) V_kᵀ)`` of any dimension ``D``.

    Methods take states ``x [B, ...]`` (flattened to ``[B, D]`` and given back in their shape), noise levels ``t``, one
    for all (which is cheaper) or ``[B]``, and optionally the ``component [B]`` that each state is known to come from.
    Given numpy arrays they compute in float64; given JAX arrays, in the precision of JAX, and they can be traced.

    Attributes:
      weights: ``[K]``, positive, of sum 1.
      means: ``[K, D]``.
      variances: ``[K, D]`` along the axes of ``basis``, at least 0.
      basis: orthonormal axes as columns, ``[K, D, D]`` or, where the components share them, ``[1, D, D]``; None: those
        of the coordinates.

    Raises:
      ValueError: when the parameters do not fit together.
    """

    weights: np.ndarray
    means: np.ndarray
    variances: np.ndarray
    basis: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("weights", "means", "variances", "basis"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else np.asarray(value, np.float64))
        count, size = self.means.shape
        if self.weights.shape != (count,) or (self.weights <= 0).any() or abs(self.weights.sum() - 1) > 1e-9:
            raise ValueError(f"weights must be [{count}], positive and of sum 1, got {self.weights}")
        if self.variances.shape != (count, size) or (self.variances < 0).any():
            raise ValueError(f"variances must be [{count}, {size}] and at least 0, got {self.variances.shape}")
        if self.basis is not None:
            if self.basis.shape not in ((1, size, size), (count, size, size)):
                raise ValueError(f"basis must be [1 or {count}, {size}, {size}], got {self.basis.shape}")
            if np.abs(self.basis.swapaxes(1, 2) @ self.basis - np.eye(size)).max() > 1e-9:
                raise ValueError("the axes of basis must be orthonormal")

    @classmethod
    def isotropic(cls, means: np.ndarray, std: float, weights: np.ndarray | None = None) -> Self:
        """Round components of one standard deviation; equally likely unless ``weights`` says otherwise."""
        count = len(means)
        weights = np.full(count, 1 / count) if weights is None else weights
        return cls(weights, means, np.full(np.shape(means), std**2))

    def log_density(self, x: Array, t: Array, component: Array | None = None) -> Array:
        """``ln p_t(x)`` (``ln p_t(x | component)``), ``[B]``."""
        return self._at(x, t, component).log_density

    def responsibilities(self, x: Array, t: Array) -> Array:
        """``p(k | x_t)``, ``[B, K]``."""
        return self._at(x, t, None).share.T

    def posterior_mean(self, x: Array, t: Array, component: Array | None = None) -> Array:
        """``E[x_0 | x_t]``: ``Σ_k p(k|x) (μ_k + Σ_k (Σ_k + t² I)⁻¹ (x − μ_k))``, as ``x``."""
        at = self._at(x, t, component)
        xp = at.share.__array_namespace__()
        shrunk = self._pull(at, 1 - at.precision * xp.asarray(t, dtype=at.share.dtype)[..., None] ** 2)
        return (at.share.T @ xp.asarray(self.means) + shrunk).reshape(x.shape)

    def score(self, x: Array, t: Array, component: Array | None = None) -> Array:
        """``∇ ln p_t(x)``, as ``x``; ``(posterior_mean − x)/t²`` without its cancellation at small ``t``."""
        at = self._at(x, t, component)
        return -self._pull(at, at.precision).reshape(x.shape)

    def component_flow(self, x: np.ndarray, t: np.ndarray, s: np.ndarray, component: np.ndarray) -> np.ndarray:
        """Where the probability-flow ODE of a single ``component [B]`` takes ``x`` from ``t`` to ``s``; float64.

        Along each axis of a Gaussian ``x − μ`` shrinks by ``√((σ² + s²)/(σ² + t²))``.
        """
        rows = np.asarray(x, np.float64).reshape(len(x), -1)
        t, s = (np.broadcast_to(np.asarray(time, np.float64), len(rows))[:, None] for time in (t, s))
        result = np.empty_like(rows)
        for k in np.unique(component):
            own = component == k
            ratio = np.sqrt((self.variances[k] + s[own] ** 2) / (self.variances[k] + t[own] ** 2))
            result[own] = self.means[k] + self._outward(k, ratio * self._inward(k, rows[own] - self.means[k]))
        return result.reshape(x.shape)

    def aligned(self) -> tuple[np.ndarray, Self]:
        """Axes ``[D, D]`` as columns, and the mixture as it is along them, with no basis to turn to where it is shared.

        Densities and flows turn with the axes: exact solutions are cheaper there.
        """
        if self.basis is None or len(self.basis) > 1:
            return np.eye(self.means.shape[1]), self
        axes = self.basis[0]
        return axes, dataclasses.replace(self, means=self.means @ axes, basis=None)

    def sample(
        self, rng: np.random.Generator, num: int, component: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws ``x_0 [num, D]``, float64, and its component, int32 ``[num]`` (as given, if given)."""
        if component is None:
            component = rng.choice(len(self.weights), num, p=self.weights)
        component = np.asarray(component, np.int32)
        spread = np.sqrt(self.variances[component]) * rng.standard_normal((num, self.means.shape[1]))
        return self.means[component] + self._outward_each(component, spread), component

    def sample_posterior(self, rng: np.random.Generator, x: np.ndarray, t: float, num: int) -> np.ndarray:
        """Draws ``x_0`` given ``x_t = x``, one state ``[D]``: ``[num, D]``, float64."""
        share = self.responsibilities(x[None], t)[0]
        component = rng.choice(len(share), num, p=share / share.sum())
        total = self.variances + t**2
        centre = np.stack(
            [
                self.means[k] + self._outward(k, self.variances[k] / total[k] * self._inward(k, (x - self.means[k])))
                for k in range(len(share))
            ]
        )
        std = np.sqrt(self.variances / total) * t
        return centre[component] + self._outward_each(component, std[component] * rng.standard_normal((num, x.size)))

    def _at(self, x: Array, t: Array, component: Array | None) -> "_At":
        """The components as ``x`` at noise level ``t`` sees them."""
        xp = x.__array_namespace__()
        rows = (np.asarray(x, np.float64) if xp is np else x).reshape(x.shape[0], -1)
        place, centre = rows[None], xp.asarray(self.means)[:, None]
        if self.basis is not None:
            place, centre = place @ xp.asarray(self.basis), centre @ xp.asarray(self.basis)
        offset = place - centre
        t = xp.asarray(t, dtype=rows.dtype)
        variances = xp.asarray(self.variances)
        total = variances + t**2 if t.ndim == 0 else variances[:, None] + t[:, None] ** 2
        axes = "kd" if t.ndim == 0 else "kbd"
        squared = xp.einsum(f"kbd,kbd,{axes}->kb", offset, offset, 1 / total)
        log_volume = xp.sum(xp.log(2 * np.pi * total), axis=-1)
        log_normal = -0.5 * (squared + (log_volume[:, None] if t.ndim == 0 else log_volume))
        log_joint = log_normal + xp.log(xp.asarray(self.weights))[:, None]
        if component is not None:
            own = xp.arange(len(self.weights))[:, None] == xp.asarray(component)[None]
            log_joint = xp.where(own, log_normal, -np.inf)
        highest = log_joint.max(axis=0)
        joint = xp.exp(log_joint - highest)
        evidence = joint.sum(axis=0)
        return _At(highest + xp.log(evidence), joint / evidence, offset, 1 / total)

    def _pull(self, at: "_At", factor: Array) -> Array:
        """``Σ_k p(k|x) V_k diag(factor_k) V_kᵀ (x − μ_k)``, ``[B, D]``; one rotation where the axes are shared."""
        xp = at.share.__array_namespace__()
        axes, shared = "kd" if factor.ndim == 2 else "kbd", self.basis is None or len(self.basis) == 1
        vectors = xp.einsum(f"kb,kbd,{axes}->{'bd' if shared else 'kbd'}", at.share, at.offset, factor)
        if self.basis is None:
            return vectors
        outward = xp.asarray(self.basis).swapaxes(1, 2)
        return vectors @ outward[0] if shared else (vectors @ outward).sum(axis=0)

    def _axes(self, k: int) -> np.ndarray:
        return self.basis[k if len(self.basis) > 1 else 0]

    def _inward(self, k: int, vectors: np.ndarray) -> np.ndarray:
        return vectors if self.basis is None else vectors @ self._axes(k)

    def _outward(self, k: int, vectors: np.ndarray) -> np.ndarray:
        return vectors if self.basis is None else vectors @ self._axes(k).T

    def _outward_each(self, component: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        result = np.empty_like(vectors)
        for k in np.unique(component):
            result[component == k] = self._outward(k, vectors[component == k])
        return result


class _At(NamedTuple):
    """The components at states ``[B, D]``, along each component's axes."""

    log_density: Array  # [B]
    share: Array  # [K, B], p(k | x_t)
    offset: Array  # [K, B, D], x − μ_k
    precision: Array  # [K, D] or, where each state has its t, [K, B, D]: 1 / (σ_k² + t²)


def ring() -> GaussianMixture:
    """Eight round components of standard deviation 0.08 on a circle; each coordinate has standard deviation 0.5."""
    angle = 2 * np.pi * np.arange(8) / 8
    radius = np.sqrt(2 * (0.5**2 - 0.08**2))
    return GaussianMixture.isotropic(radius * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.08)


def textures() -> GaussianMixture:
    """Ten kinds of 8x8 textures: smooth random means, and Gaussian fields whose spectra differ in scale and direction.

    The axes are those of the discrete cosine transform. Means take 40 % of the variance, which is 0.5² a pixel over the
    mixture; a component's standard deviations run from 0.04 to 2.4 along its axes.
    """
    count, side = 10, 8
    rng = np.random.default_rng(0)
    basis = np.kron(cosine_basis(side), cosine_basis(side))
    row, column = np.divmod(np.arange(side**2), side)  # the frequencies of each axis
    means = rng.standard_normal((count, side**2)) / (1 + row**2 + column**2)
    means -= means.mean(axis=0)
    means *= np.sqrt(0.4 * 0.5**2 / np.mean(means**2))
    scale = np.exp(rng.uniform(np.log(0.4), np.log(1.6), (2, count, 1)))
    variances = (1 + (scale[0] * row) ** 2 + (scale[1] * column) ** 2) ** -1.5
    variances *= 0.6 * 0.5**2 / variances.mean(axis=1, keepdims=True)
    return GaussianMixture(np.full(count, 1 / count), means @ basis.T, variances, basis[None])


def cosine_basis(size: int) -> np.ndarray:
    """The orthonormal discrete cosine transform (type II), ``[size, size]``; columns are the waves by frequency."""
    place, frequency = np.arange(size)[:, None], np.arange(size)[None]
    waves = np.cos(np.pi * (place + 0.5) * frequency / size)
    return waves / np.linalg.norm(waves, axis=0)


class KnownData(NamedTuple):
    """A mixture by name, and the images ``(H, W, C)`` that its samples are."""

    mixture: GaussianMixture
    image_shape: tuple[int, int, int]


MIXTURES = {"2d": (ring, (1, 1, 2)), "64d": (textures, (8, 8, 1))}
SPLITS = {"train": (0, 65_536), "test": (1, 8_192)}  # seed and number of images


def known_data(path: str) -> KnownData:
    """The mixture that the source ``gmm`` knows by the name ``path``."""
    if path not in MIXTURES:
        raise UserError(f"no Gaussian mixture {path!r}: set data.path to one of {', '.join(MIXTURES)}")
    make, image_shape = MIXTURES[path]
    return KnownData(make(), image_shape)


def open_gmm(path: str, split: str, image_size: int) -> ArraySource:
    """Opens samples of a Gaussian mixture, float32, the label being the component."""
    mixture, image_shape = known_data(path)
    check_split(split, gmm_splits(path), f"the Gaussian mixture {path}")
    if image_size not in (0, image_shape[0]):
        raise UserError(f"image_size={image_size}: samples of {path} are not pixels to pad; use 0 (as they are)")
    seed, num = SPLITS[split]
    rows, component = mixture.sample(np.random.default_rng(seed), num)
    names = tuple(f"component {k}" for k in range(len(mixture.weights)))
    return ArraySource(rows.reshape(num, *image_shape).astype(np.float32), component, len(names), names)


def gmm_splits(path: str) -> tuple[str, ...]:
    """Returns the splits of a Gaussian mixture: independent samples."""
    return tuple(SPLITS)
