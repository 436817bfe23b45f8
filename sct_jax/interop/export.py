"""Export: a model's weights as safetensors with the original's names, or its sampler as a StableHLO program."""

from pathlib import Path
from typing import Any

from sct_jax import cards, files
from sct_jax import config as config_lib
from sct_jax.errors import UserError
from sct_jax.interop import classes, metadata, own_names, weights
from sct_jax.model import Model, from_weights
from sct_jax.sampling import generate

FORMATS = ("safetensors", "stablehlo")
PRECONDITIONING = ("sigma_data", "boundary", "sigma_min", "time_scale")


def export_checkpoint(
    checkpoint: str | Path,
    kind: str,
    out: str | Path,
    profile: str = "",
    steps: int | None = None,
    *,
    boundary: str | None = None,
    sigma_min: float | None = None,
) -> list[Path]:
    """Writes a checkpoint for others, with a model card beside it.

    Args:
      checkpoint: what :func:`sct_jax.load` reads.
      kind: one of ``FORMATS``.
      out: the file.
      profile: the EMA profile; empty: the first.
      steps: of the sampler (stablehlo); None: as :meth:`sct_jax.model.Model.sample` takes.
      boundary: as ``sigma_min``, see :func:`sct_jax.load`.

    Returns:
      The files written.

    Raises:
      UserError: for another format, a file that cannot be written, a checkpoint that cannot be read.
    """
    out = Path(out)
    if kind not in FORMATS:
        raise UserError(f"--format {kind}: must be one of {', '.join(FORMATS)}")
    if kind == "safetensors" and steps is not None:
        raise UserError("--steps belongs to --format stablehlo: weights are the same for any number of steps")
    if kind == "stablehlo" and out.suffix == ".safetensors":
        raise UserError(f"--out {out}: the weights go beside the program as .safetensors; name it .stablehlo")
    if kind == "stablehlo" and _beside(out).exists() and not out.exists():
        raise UserError(f"--out {out}: its weights go to {_beside(out)}, which holds others: choose another name")
    files.check_writable(out)
    found = weights.load(checkpoint, profile)
    model = from_weights(found, str(checkpoint), boundary=boundary, sigma_min=sigma_min)
    if kind == "safetensors":
        facts = write_weights(model, out)
    else:
        facts = write_sampler(model, out, generate.steps_of_a_sample(model.config) if steps is None else steps)
    card = cards.make(weights.source(found), model.config) | {"export": facts}
    place = _card_place(out)
    files.write_json(place, card, allow_nan=False)
    return [*(out.parent / name for name in facts["files"]), place]


def write_weights(model: Model, out: Path) -> dict[str, Any]:
    """Writes the weights, named as the class of another project that the network is names them.

    The file's metadata says which class that is, what it is made with, how the network is preconditioned where it is
    sampled (``config.sampling.boundary``), and our config, by which an import gives the same model again.

    Returns:
      What the card says about it.
    """
    sampled = config_lib.sampled_model(model.config)
    original = classes.original_of(sampled, model.spec)
    facts: dict[str, Any] = {
        "format": "safetensors",
        "names": "sct_jax" if original is None else original.repository,
        "preconditioning": {key: sampled[key] for key in PRECONDITIONING},
    }
    if original is not None:
        facts |= {"class": original.name, "kwargs": original.kwargs, "preconditioned": original.preconditioned}
    described = facts | metadata.describe(model.config, model.spec) | {"format": "pt"}
    _save(classes.state_dict(sampled, model.spec, model.params), out, described)
    return facts | {"files": [out.name]}


def write_sampler(model: Model, out: Path, steps: int) -> dict[str, Any]:
    """Writes the sampler of ``steps`` steps, and its weights beside it with the ending ``.safetensors``.

    Returns:
      What the card says about it.
    """
    from sct_jax.interop import stablehlo

    times, sampled = model.times(steps), config_lib.sampled_model(model.config)
    beside = _beside(out)
    program = stablehlo.serialize(model, steps)
    described = {"names": "sct_jax"} | metadata.describe(model.config, model.spec)
    _save(own_names.state_dict(model.params), beside, described)
    files.write(out, lambda aside: aside.write_bytes(program))
    return {
        "format": "stablehlo, serialised by jax.export",
        "platforms": stablehlo.PLATFORMS,
        "inputs": stablehlo.inputs(model),
        "output": f"float32 [b, {model.spec.image_size}, {model.spec.image_size}, {model.spec.channels}]",
        "sampler": model.kind,
        "steps": steps,
        "times": times,
        "boundary": sampled.boundary,
        **({"sigma_min": sampled.sigma_min} if sampled.boundary == "sigma_min" else {}),
        "files": [out.name, beside.name],
    }


def _beside(out: Path) -> Path:
    """Where the weights of a sampler lie."""
    return out.with_suffix(".safetensors")


def _save(arrays: dict[str, Any], out: Path, described: dict[str, Any]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        files.write(out, lambda aside: save_file(arrays, aside, metadata.texts(described)))
    except SafetensorError as error:
        raise UserError(f"cannot write {out}: {error}") from error


def _card_place(out: Path) -> Path:
    """``model_card.json``; where that is something else's card (a run's, another export's), with the file's name."""
    place = out.parent / cards.FILE
    other = place.exists() and out.name not in ((cards.read(out.parent) or {}).get("export") or {}).get("files", ())
    return out.with_name(f"{out.stem}.{cards.FILE}") if other else place
