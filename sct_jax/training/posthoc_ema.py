"""Post-hoc EMA: averages of any width from kept checkpoints (EDM2, arXiv 2312.02696, sec. 3.2 and app. C).

A run that tracks power profiles (``power:0.05``, say) weighs the parameters of step ``τ ≤ t`` by
``p(τ) = (γ + 1) τ^γ / t^{γ+1}`` in the snapshot of step ``t``. The profile of another width is a combination of those
stored, nearest in the least-squares sense, and the average of that width is the same combination of the snapshots.
All of the mathematics is numpy in float64.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from sct_jax import cards, files
from sct_jax import config as config_lib
from sct_jax.errors import UserError
from sct_jax.training import checkpoint
from sct_jax.training.ema import power_exponent

WIDEST = 0.288  # the plain average of all steps has 1/√12
POOR = 0.1  # a residual above this is worth a word


class Snapshot(NamedTuple):
    """A stored average: of the first ``step`` updates, with the power profile of width ``std``."""

    step: int
    std: float
    profile: str = ""
    place: Path = Path()


class Fit(NamedTuple):
    """How one average is made of snapshots.

    Attributes:
      coefficients: float64, one for each snapshot; their sum is 1.
      residual: the L2 norm of the profile's error over the profile's own. Parameters that move as white noise about
        a mean leave this share of their average's noise as the error of the reconstruction; smoother ones less.
    """

    coefficients: np.ndarray
    residual: float


def inner_products(
    steps: Sequence[float], stds: Sequence[float], other_steps: Sequence[float], other_stds: Sequence[float]
) -> np.ndarray:
    """``∫ p_i q_j dτ`` of power profiles ``p`` and ``q``, ``[len(steps), len(other_steps)]``.

    With ``t`` the later of the two ends, ``s`` the earlier and ``γ_t`` the exponent of the profile that ends at ``t``:
    ``(γ_i + 1)(γ_j + 1) / (γ_i + γ_j + 1) · (s/t)^{γ_t} / t``.
    """
    end_i, end_j = np.asarray(steps, np.float64)[:, None], np.asarray(other_steps, np.float64)[None, :]
    gamma_i = np.array([power_exponent(std) for std in stds])[:, None]
    gamma_j = np.array([power_exponent(std) for std in other_stds])[None, :]
    later, earlier = np.maximum(end_i, end_j), np.minimum(end_i, end_j)
    gamma_later = np.where(end_i > end_j, gamma_i, gamma_j)
    scale = (gamma_i + 1) * (gamma_j + 1) / (gamma_i + gamma_j + 1)
    return scale * (earlier / later) ** gamma_later / later


def fit(snapshots: Sequence[Snapshot], std: float, step: int) -> Fit:
    """The combination of snapshots nearest to the profile of width ``std`` that ends at ``step``.

    The normal equations of the least-squares problem, for profiles scaled to unit norm, which conditions them best;
    then the coefficients are scaled to sum 1, as a mean has to. A snapshot of that profile itself is taken alone.
    """
    same = [snapshot.step == step and np.isclose(snapshot.std, std, rtol=1e-9, atol=0) for snapshot in snapshots]
    if any(same):
        return Fit(np.eye(len(snapshots))[same.index(True)], 0.0)
    ends, widths = [s.step for s in snapshots], [s.std for s in snapshots]
    between = inner_products(ends, widths, ends, widths)
    with_target = inner_products(ends, widths, [step], [std])[:, 0]
    target = inner_products([step], [std], [step], [std])[0, 0]
    norms = np.sqrt(np.diag(between))
    coefficients = np.linalg.solve(between / np.outer(norms, norms), with_target / norms) / norms
    coefficients /= coefficients.sum()
    error = target - 2 * coefficients @ with_target + coefficients @ between @ coefficients
    return Fit(coefficients, float(np.sqrt(max(error, 0.0) / target)))


def reconstruct(snapshots: Sequence[Snapshot], coefficients: np.ndarray, read: Callable[[Snapshot], Any]) -> Any:
    """``Σ c_i θ_i`` over the trees that ``read`` gives, summed in float64, as float32.

    One snapshot is in memory at a time, beside the sum; one with coefficient 0 is not read.
    """
    total = None
    for snapshot, coefficient in zip(snapshots, coefficients, strict=True):
        if coefficient:
            term = jax.tree.map(lambda leaf, c=coefficient: c * np.asarray(leaf, np.float64), read(snapshot))
            total = term if total is None else jax.tree.map(np.add, total, term)
    return jax.tree.map(lambda leaf: leaf.astype(np.float32), total)


def find_snapshots(workdir: str | Path) -> list[Snapshot]:
    """The power profiles in all checkpoints of a workdir, oldest first.

    Raises:
      UserError: when there are none.
    """
    found, others = [], set()
    for place in checkpoint.places(workdir):
        meta = checkpoint.read_meta(place)
        for profile in checkpoint.averages_in(meta):
            kind, _, width = profile.partition(":")
            if kind == "power":
                found.append(Snapshot(meta["step"], float(width), profile, place))
            else:
                others.add(profile)
    if not found:
        raise UserError(
            f"{workdir} has no power profiles to make others from (it has {', '.join(sorted(others)) or 'raw'}): train "
            "with --config.ema.profiles=power:0.05,power:0.1 and --config.checkpoint.keep_every_steps"
        )
    distinct = {(snapshot.step, snapshot.std): snapshot for snapshot in reversed(found) if snapshot.step > 0}
    return [distinct[key] for key in sorted(distinct)]


def write_averages(
    workdir: str | Path, stds: Sequence[float], out: str | Path, step: int | None = None
) -> dict[str, Fit]:
    """Writes averages of the widths ``stds`` at ``step`` (None: the last) as a workdir with one EMA profile each.

    Returns:
      The fit of each profile.

    Raises:
      UserError: for a width out of range, a step that was not kept, no power profiles or too few snapshots.
    """
    for std in stds:
        if not 0 < std <= WIDEST:
            raise UserError(f"--std {std:g}: the width is a share of the training, above 0 and at most {WIDEST}")
    snapshots = find_snapshots(workdir)
    step = _end(snapshots, step)
    snapshots = [snapshot for snapshot in snapshots if snapshot.step <= step]
    _check_enough(snapshots, stds, step, workdir)
    meta = checkpoint.read_meta(snapshots[-1].place)
    config = config_lib.from_dict(meta["config"])
    fits = {f"power:{std:g}": fit(snapshots, std, step) for std in stds}
    with config.unlocked():
        config.ema.profiles = tuple(fits)
    with files.new_folder(out) as aside:
        averages = {
            profile: reconstruct(snapshots, plan.coefficients, lambda s: checkpoint.read_weights(s.place, s.profile)[0])
            for profile, plan in fits.items()
        }
        raw, _ = checkpoint.read_weights(snapshots[-1].place, "raw")
        checkpoint.write_weights(aside, raw, config, checkpoint.spec_in(meta), step, averages)
        cards.write(aside, cards.make(_source(workdir, step, snapshots, fits), config, raw))
    return fits


def _source(workdir: str | Path, step: int, snapshots: Sequence[Snapshot], fits: dict[str, Fit]) -> dict[str, Any]:
    """What the model card says about the averages."""
    return {
        "format": "sct_jax post-hoc EMA",
        "path": str(workdir),
        "step": step,
        "snapshots": [[snapshot.step, snapshot.profile] for snapshot in snapshots],
        "profiles": {
            profile: {"residual": plan.residual, "coefficients": plan.coefficients.tolist()}
            for profile, plan in fits.items()
        },
        "card": cards.read(workdir),
    }


def describe(profile: str, plan: Fit) -> str:
    """One line on how near a profile was come to."""
    if not plan.residual:
        return f"{profile}: as it was tracked"
    used = np.count_nonzero(plan.coefficients)
    hint = "; keep more checkpoints, or take a width nearer to those tracked" if plan.residual > POOR else ""
    return f"{profile}: from {used} snapshots; its profile is fitted with an error of {plan.residual:.2%}{hint}"


def _end(snapshots: Sequence[Snapshot], step: int | None) -> int:
    kept = sorted({snapshot.step for snapshot in snapshots})
    if step is not None and step not in kept:
        raise UserError(f"--step {step}: no checkpoint of that step; there are {', '.join(map(str, kept))}")
    return kept[-1] if step is None else step


def _check_enough(snapshots: Sequence[Snapshot], stds: Sequence[float], step: int, workdir: str | Path) -> None:
    stored = [snapshot.std for snapshot in snapshots if snapshot.step == step]
    if len(snapshots) < 2 and not all(np.isclose(std, stored, rtol=1e-9, atol=0).any() for std in stds):
        raise UserError(
            f"{workdir} has only the average {snapshots[0].profile} of step {step}: another width needs at least two; "
            "keep more with --config.checkpoint.keep_every_steps, and track two power profiles"
        )
