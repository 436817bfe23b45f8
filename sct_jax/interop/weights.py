"""Weights from wherever they are: a run's workdir, one of its checkpoints, or a file of another project."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from sct_jax import cards
from sct_jax import config as config_lib
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.interop.imports import import_model
from sct_jax.training import checkpoint

# Parts that add nothing where the network lacks them: a bias-free map of labels that are zero, a head of the loss.
OPTIONAL_PARTS = ("map_augment", "uncertainty")

# The parts of a network that its further inputs have, by the fields of config.model; at first they add nothing.
INPUT_PARTS = {"map_target": "target_time", "map_guidance": "guidance_input"}

# Fields of config.model that change what weights of the same shapes compute.
FUNCTION = {
    "ddpmpp": ("resample_filter",),
    "adm": ("time_scale", "attention_head_channels"),
    "edm2": ("attention_head_channels", "label_balance", "concat_balance", "residual_balance", "attention_balance"),
}


class Weights(NamedTuple):
    """Parameters with all that describes them.

    Attributes:
      config: that they were trained with.
      spec: of their data.
      params: nested dict.
      step: training steps behind them; 0 where that is not known.
      profile: their EMA profile, or ``"raw"``.
      origin: the checkpoint folder or file.
      card: their model card; None where there is none.
    """

    config: config_lib.Config
    spec: DataSpec
    params: Any
    step: int
    profile: str
    origin: str
    card: dict[str, Any] | None


def load(path: str | Path, profile: str = "") -> Weights:
    """Reads weights; a file is imported in memory (:func:`sct_jax.interop.import_model`).

    Args:
      path: a workdir (its newest checkpoint), ``WORKDIR/checkpoints/STEP``, or a file of another project.
      profile: EMA profile; empty: the first; ``"raw"``: the raw weights.

    Raises:
      UserError: when there are none, they are damaged, or lack the profile.
    """
    path = Path(path)
    if path.is_file():
        if profile not in ("", "raw"):
            raise UserError(
                f"{path} has no EMA profile {profile!r}; the weights of a file are taken as they are ('raw')"
            )
        config, spec, params, card = import_model(path)
        return Weights(config, spec, params, 0, "raw", str(path), card)
    place = checkpoint.resolve(path)
    meta = checkpoint.read_meta(place)
    params, name = checkpoint.read_weights(place, profile)
    card = cards.read(place.parent.parent)
    return Weights(
        config_lib.from_dict(meta["config"]), checkpoint.spec_in(meta), params, meta["step"], name, str(place), card
    )


def start_from(weights: Weights, expected: Any, model: Any, init: Callable[[], Any] | None = None) -> Any:
    """The parameters to begin training ``config.model`` with, of shapes ``expected``, without OPTIONAL_PARTS it lacks.

    INPUT_PARTS that ``model`` has and the weights lack are those of ``init()``, the network's initial parameters: it
    begins as the same function. None: they are asked of the weights.

    Raises:
      UserError: when they are of another architecture, or make another function in this one.
    """
    params = {name: part for name, part in weights.params.items() if name in expected or name not in OPTIONAL_PARTS}
    new = [part for part in INPUT_PARTS if part in expected and part not in params]
    if init is not None and new:
        params |= jax.jit(lambda: {part: value for part, value in init().items() if part in new})()
    check_inputs(weights._replace(params=params), expected)
    checkpoint.check_weights(params, expected, weights.origin)
    for name in ("sigma_data", *FUNCTION.get(model.name, ())):
        theirs, ours = weights.config.model[name], model[name]
        if theirs != ours:
            raise UserError(
                f"{weights.origin} was trained with model.{name} = {theirs!r}, not {ours!r}: set it so here"
            )
    return params


def check_inputs(weights: Weights, expected: Any) -> None:
    """Raises a UserError where the weights' network has an input that the one of shapes ``expected`` lacks, or not."""
    for part, field in INPUT_PARTS.items():
        theirs, ours = part in weights.params, part in expected
        if theirs != ours:
            raise UserError(
                f"{weights.origin} holds the weights of a network with model.{field} = {theirs}, and this one has "
                f"{ours}: set config.model.{field} = {theirs}"
            )


def source(weights: Weights) -> dict[str, Any]:
    """What a model card says about the weights that a run began with."""
    return {
        "path": weights.origin,
        "weights_sha256": cards.hash_weights(weights.params),
        "step": weights.step,
        "ema_profile": weights.profile,
        "card": weights.card,
    }
