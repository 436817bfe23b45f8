"""Configs: loaded from a Python file, overridden on the command line, validated before anything is compiled."""

import contextlib
import difflib
import importlib.util
import json
import math
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

from sct_jax.errors import UserError
from sct_jax.schema import AUGMENT_LABELS, BOUNDARIES, DENOISING, SCHEMA, Field

Config = ml_collections.ConfigDict

# What other code bases call some fields; an unknown key of these names is answered with ours.
SYNONYMS = {
    "learning_rate": "lr",
    "beta1": "b1",
    "beta2": "b2",
    "epsilon": "eps",
    "grad_clip": "clip_norm",
    "max_grad_norm": "clip_norm",
    "warmup_steps": "ramp_steps",
    "num_steps": "total_steps",
    "max_steps": "total_steps",
    "train_steps": "total_steps",
    "global_batch_size": "batch_size",
    "model_channels": "channels",
    "resolution": "image_size",
    "dtype": "compute_dtype",
}


def default_config() -> Config:
    """A config with every field of the schema at its default; unlocked, for ``get_config()`` to fill in."""
    config = Config()
    for key, field in SCHEMA.items():
        *rooms, name = key.split(".")
        node = config
        for room in rooms:
            if room not in node:
                node[room] = Config()
            node = node[room]
        node[name] = field.default
    return config.lock()


def load_config(path: str | Path, overrides: dict[str, str] | None = None) -> Config:
    """The locked, validated config of a file with ``get_config()``, overridden by, say, ``{"optimizer.lr": "1e-4"}``.

    Raises:
      UserError: for a missing or broken file, an unknown key, a wrong type or a value out of range.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        raise UserError(f"no config file {path}" + (f"; did you mean {path.parent / near[0]}?" if near else ""))
    try:
        with _folder_on_path(path):
            config = _import_file(path).get_config()
    except UserError:
        raise
    except Exception as error:
        unknown = re.search(r'[Kk]ey "(\w+)" does not exist', str(error))  # a locked ConfigDict refuses it
        if unknown:
            near = re.search(r'Did you mean "(\w+)"', str(error))
            hint = f"; did you mean {near[1]}?" if near else "; `sct-jax train --help-config` lists the fields"
            raise UserError(f"config {path}: unknown key {unknown[1]}{hint}") from error
        raise UserError(f"config {path} does not load: {type(error).__name__}: {_first_line(error)}") from error
    if not isinstance(config, Config):
        raise UserError(
            f"config {path}: get_config() must return an ml_collections.ConfigDict, got {type(config).__name__}"
        )
    for key, text in (overrides or {}).items():
        _set(config, key, parse_value(key, text))
    return validate(config)


def parse_value(key: str, text: str) -> Any:
    """The value that ``text`` means for field ``key``.

    Raises:
      UserError: when the key is unknown or the text is not of the field's type.
    """
    field = _field(key)
    try:
        if isinstance(field.default, tuple):
            parts = [part.strip().strip("'\"") for part in text.strip("()[] ").split(",") if part.strip()]
            return tuple(_parse_scalar(part, type(_item(field))) for part in parts)
        return _parse_scalar(text, type(field.default))
    except ValueError:
        raise UserError(f"config.{key}={text!r}: needs {_type_name(field)} ({field.help})") from None


def validate(config: Config) -> Config:
    """Checks every field's key, type and range, then what fields demand of each other; returns it locked.

    Raises:
      UserError: naming the field, its value, what is allowed and, for an unknown key, the nearest known one.
    """
    flat = flatten(config)
    for key in flat:
        _field(key)
    missing = [key for key in SCHEMA if key not in flat]
    if missing:
        raise UserError(f"config.{missing[0]} is missing; start get_config() from sct_jax.config.default_config()")
    for key, field in SCHEMA.items():
        value = flat[key]
        if isinstance(field.default, float) and type(value) is int:
            _set(config, key, float(value))
        elif isinstance(field.default, tuple):
            value = tuple(value) if isinstance(value, (tuple, list)) else (value,)
            if isinstance(_item(field), float):
                value = tuple(float(v) if type(v) is int else v for v in value)
            _set(config, key, value)
        _check(key, field, value)
    _check_relations(config)
    return config.lock()


def flatten(config: Config | dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"optimizer.lr": 1e-4, ...}``."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, (Config, dict)):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def sampled_model(config: Config) -> Config:
    """``config.model`` as samples are drawn and measured: with the boundary of ``config.sampling`` where it has one."""
    model = config.model.copy_and_resolve_references()
    with model.unlocked():
        model.boundary = config.sampling.boundary or model.boundary
        if model.boundary == "sigma_min":
            model.sigma_min = config.sampling.sigma_min or model.sigma_min
    return model


def with_boundary(config: Config, boundary: str | None = None, sigma_min: float | None = None) -> Config:
    """The config with another ``sampling.boundary`` and ``sampling.sigma_min``; None: as they are.

    Raises:
      UserError: for an unknown boundary, a shift that is not positive or shifts nothing, and a diffusion model.
    """
    if boundary is None and sigma_min is None:
        return config
    given = f"--boundary {boundary}" if boundary is not None else f"--sigma-min {sigma_min:g}"
    if config.objective.method in DENOISING:
        raise UserError(f"{given}: a diffusion model is sampled with the boundary it was trained with; leave it out")
    if boundary is not None and boundary not in BOUNDARIES:
        raise UserError(f"{given}: must be {' or '.join(BOUNDARIES)}")
    if sigma_min is not None and not 0 < sigma_min < math.inf:
        raise UserError(f"--sigma-min {sigma_min:g}: must be above 0 and finite")
    boundary = boundary or sampled_model(config).boundary
    if sigma_min is not None and boundary == "zero":
        raise UserError(f"--sigma-min {sigma_min:g} needs --boundary sigma_min: with boundary zero nothing is shifted")
    shift = config.sampling.sigma_min if sigma_min is None else sigma_min
    return replaced(config, {"sampling.boundary": boundary, "sampling.sigma_min": float(shift)})


def replaced(config: Config, values: dict[str, Any]) -> Config:
    """A copy of the config with other values of some fields, ``{"model.compute_dtype": "float32"}``, validated.

    Raises:
      UserError: as :func:`validate`.
    """
    copy = config.copy_and_resolve_references()
    for key, value in values.items():
        _set(copy, key, value)
    return validate(copy)


def to_dict(config: Config) -> dict[str, Any]:
    """A plain nested dict that JSON can hold (tuples become lists)."""
    return json.loads(json.dumps(config.to_dict()))


def from_dict(values: dict[str, Any]) -> Config:
    """The config that :func:`to_dict` wrote; fields added to the schema since then take their default.

    Raises:
      UserError: when a value is not valid here (say, a config of a newer version).
    """
    config = default_config()
    for key, value in flatten(values).items():
        _set(config, key, tuple(value) if isinstance(value, list) else value)
    return validate(config)


def describe_schema() -> str:
    """The table of all fields with defaults, ranges and meanings, as text."""
    lines = []
    for key, field in SCHEMA.items():
        allowed = " | ".join(map(str, field.choices))
        lines.append(f"{key} = {field.default!r}\n    {field.help}" + (f" [{allowed}]" if allowed else ""))
    return "\n".join(lines)


def _field(key: str) -> Field:
    if key in SCHEMA:
        return SCHEMA[key]
    name = key.rsplit(".", 1)[-1]
    name = SYNONYMS.get(name, name)
    near = [known for known in SCHEMA if known.rsplit(".", 1)[-1] == name]  # in the wrong room, or by another name
    near = near or difflib.get_close_matches(key, SCHEMA, n=1, cutoff=0.5)
    hint = f"; did you mean config.{near[0]}?" if near else "; `sct-jax train --help-config` lists the fields"
    raise UserError(f"unknown config key config.{key}{hint}")


def _check(key: str, field: Field, value: Any) -> None:
    expected, items = field.default, (value,)
    if isinstance(expected, tuple):
        expected, items = _item(field), value
        if not value and not field.may_be_empty:
            raise UserError(f"config.{key} is empty: needs {_type_name(field)} ({field.help})")
    for item in items:
        is_float = isinstance(expected, float) and type(item) in (int, float)
        if type(item) is not type(expected) and not is_float:
            raise UserError(f"config.{key} = {value!r}: needs {_type_name(field)} ({field.help})")
        if field.choices and item not in field.choices:
            near = difflib.get_close_matches(str(item), map(str, field.choices), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"config.{key} = {item!r}: must be one of {', '.join(map(repr, field.choices))}{hint}")
        if isinstance(item, (int, float)) and not isinstance(item, bool):
            _check_range(key, field, item)


def _check_range(key: str, field: Field, item: float) -> None:
    if not math.isfinite(item):
        raise UserError(f"config.{key} = {item!r}: must be finite")
    for bad, text in (
        (field.low is not None and item < field.low, f">= {field.low:g}" if field.low is not None else ""),
        (
            field.high is not None and item > field.high,
            f"<= {field.high:g}" if field.high is not None else "",
        ),
        (
            field.above is not None and item <= field.above,
            f"> {field.above:g}" if field.above is not None else "",
        ),
    ):
        if bad:
            raise UserError(f"config.{key} = {item!r}: must be {text} ({field.help})")


def _check_relations(config: Config) -> None:
    from sct_jax.training.ema import parse_profile  # the grammar of profiles lives with the EMA

    batch, parts, sampling = config.batch_size, config.optimizer.accumulate, config.sampling
    if batch % parts:
        raise UserError(f"config.batch_size = {batch} must be divisible by config.optimizer.accumulate = {parts}")
    for name in ("t_min", "mid_times"):
        levels = sampling[name] if name == "mid_times" else (sampling[name],)
        if any(t >= sampling.t_max for t in levels):
            raise UserError(
                f"config.sampling.{name} = {sampling[name]} must be below sampling.t_max = {sampling.t_max}"
            )
    _check_boundary(config)
    if config.model.label_dropout and not config.model.conditional:
        raise UserError("config.model.label_dropout needs config.model.conditional = True")
    _check_objective(config)
    if config.data.augment:
        _check_augmentation(config)
    _check_warped_rows(config)
    for profile in config.ema.profiles:
        parse_profile(profile)


def _check_boundary(config: Config) -> None:
    sampling = config.sampling
    if sampling.boundary and config.objective.method in DENOISING:
        raise UserError(
            f"config.sampling.boundary = {sampling.boundary!r}: a diffusion model (objective.method = "
            f"{config.objective.method!r}) is sampled with the boundary it was trained with; leave it empty"
        )
    if sampling.sigma_min and not sampling.boundary and config.model.boundary == "zero":
        raise UserError(
            f"config.sampling.sigma_min = {sampling.sigma_min:g} shifts nothing: the model has boundary 'zero'; set "
            "config.sampling.boundary = 'sigma_min'"
        )


def _check_objective(config: Config) -> None:
    from sct_jax.objectives.table import TRANSITIONS

    objective = config.objective
    allowed = TRANSITIONS.get(objective.method)
    if allowed and objective.transition not in allowed:
        raise UserError(
            f"config.objective.method = {objective.method!r} goes with objective.transition = "
            f"{' or '.join(map(repr, allowed))}, not {objective.transition!r}; set both, or take the row of "
            "sct_jax/objectives/table.py"
        )
    if objective.uncertainty and (objective.method not in DENOISING or config.model.name != "edm2"):
        raise UserError(
            f"config.objective.uncertainty = True needs model.name = 'edm2' and objective.method = "
            f"{' or '.join(map(repr, DENOISING))}, not {config.model.name!r} and {objective.method!r}"
        )
    consistency = objective.method not in DENOISING
    grid = consistency and objective.pair == "grid"
    if (objective.times == "uniform") > grid or (grid and objective.times.startswith("truncated")):
        fitting = "uniform or lognormal" if grid else "lognormal, truncated_lognormal or truncated_student"
        raise UserError(f"config.objective.times = {objective.times!r}: with this pair it must be {fitting}")
    for low, high, wrong in (
        ("t_min", "t_max", objective.t_min >= objective.t_max),
        ("s_0", "s_1", objective.s_0 > objective.s_1),
    ):
        if wrong:
            raise UserError(f"config.objective.{low} = {objective[low]} must be below {high} = {objective[high]}")
    if consistency and objective.normalize_stage and (grid or objective.weight != "inverse_gap"):
        raise UserError(
            "config.objective.normalize_stage = True needs pair = 'mapping' and weight = 'inverse_gap', whose scale "
            f"grows with the stage, not {objective.pair!r} and {objective.weight!r}"
        )
    if consistency and objective.bootstrap == "ema" and objective.target_decay_adaptive and not grid:
        raise UserError(
            "config.objective.target_decay_adaptive = True needs objective.pair = 'grid', whose size it follows"
        )
    if consistency and objective.difference == "tangent" and objective.bootstrap == "ema":
        raise UserError(
            "config.objective.difference = 'tangent' needs objective.bootstrap = 'online': the difference of two "
            "networks is no derivative of one; set it to 'evaluated' or 'auto'"
        )
    if objective.transition.startswith("teacher") and not objective.teacher:
        raise UserError("config.objective.teacher is empty: name the run of the diffusion model to distil")
    if consistency and objective.transition == "generated" and objective.phases > 1:
        raise UserError(
            f"config.objective.transition = 'generated' needs objective.phases = 1, not {objective.phases}: a model "
            "with phases makes no image in one step"
        )
    if consistency and (objective.method == "tcm" or objective.bootstrap == "divided"):
        _check_divided(config)


def _check_divided(config: Config) -> None:
    objective, sampling = config.objective, config.sampling
    t, wrong = objective.dividing_time, ""
    if objective.bootstrap != "divided":
        wrong = f"method = 'tcm' needs bootstrap = 'divided', not {objective.bootstrap!r}; take the row of the table"
    elif objective.pair != "mapping" or not objective.times.startswith("truncated"):
        wrong = (
            "bootstrap = 'divided' needs pair = 'mapping' and times = 'truncated_student' or 'truncated_lognormal', "
            f"not {objective.pair!r} and {objective.times!r}"
        )
    elif objective.phases > 1:
        wrong = f"bootstrap = 'divided' needs phases = 1, not {objective.phases}"
    elif not objective.t_min <= t < objective.t_max:
        wrong = f"dividing_time = {t:g} must be from t_min = {objective.t_min:g} to below t_max = {objective.t_max:g}"
    elif not objective.stage1:
        wrong = "stage1 is empty: name the run of the consistency model that answers below dividing_time"
    if wrong:
        raise UserError(f"config.objective.{wrong}")
    low = min((sampling.t_max, *sampling.mid_times))
    if low < t:
        name = "t_max" if low == sampling.t_max else "mid_times"
        raise UserError(
            f"config.sampling.{name} = {sampling[name]}: below objective.dividing_time = {t:g} stage 1 answers, not "
            "this model; sample from there up"
        )


def _check_augmentation(config: Config) -> None:
    method, reference = config.objective.method, config.reference
    wrong = ""
    if method not in DENOISING:
        wrong = f"goes with the methods {' and '.join(DENOISING)}; objective.method = {method!r} needs 0"
    elif config.model.augment_dim != AUGMENT_LABELS:
        wrong = f"needs model.augment_dim = {AUGMENT_LABELS}, the number of its labels, not {config.model.augment_dim}"
    elif config.data.flip:
        wrong = "flips each image already, and labels it: set data.flip = False"
    elif method == "stf" and reference.source != "batch":
        wrong = f"needs reference.source = 'batch': the rows of {reference.source!r} are not augmented"
    if wrong:
        raise UserError(f"config.data.augment = {config.data.augment:g} {wrong}")


def _check_warped_rows(config: Config) -> None:
    rows = config.reference.warped_rows
    if rows and not (config.objective.method == "stf" and config.data.augment):
        raise UserError(
            f"config.reference.warped_rows = {rows} needs objective.method = 'stf' and data.augment > 0: nothing else "
            "looks at warped images"
        )
    if rows and rows >= config.batch_size:
        raise UserError(
            f"config.reference.warped_rows = {rows} must be below config.batch_size = {config.batch_size}: they are "
            "the other images of the batch"
        )


def _set(config: Config, key: str, value: Any) -> None:
    _field(key)
    *rooms, name = key.split(".")
    node = config
    for room in rooms:
        node = node[room]
    with node.unlocked(), node.ignore_type():
        node[name] = value


def _parse_scalar(text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(text)
        return text.lower() in ("true", "1")
    if kind is int:
        try:
            return int(text.replace("_", ""))
        except ValueError:  # 1e3 and 16.0 are whole numbers too
            number = float(text)
            if not number.is_integer():
                raise ValueError(text) from None
            return int(number)
    return kind(text)


def _item(field: Field) -> Any:
    """An item of a tuple's, or the default itself: what tells the type."""
    if not isinstance(field.default, tuple):
        return field.default
    return field.default[0] if field.default else field.item


def _type_name(field: Field) -> str:
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "a string"}
    several = " or several with commas" if isinstance(field.default, tuple) else ""
    return names[type(_item(field))] + several


@contextlib.contextmanager
def _folder_on_path(path: Path) -> Iterator[None]:
    """A config may import its neighbours."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _import_file(path: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"sct_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"config {path} is not a .py file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError(f"config {path} has no get_config()")
    return module


def _first_line(error: Exception) -> str:
    text = str(error.args[0] if error.args else error).strip()
    return text.splitlines()[0] if text else type(error).__name__
