"""What the originals' classes mean here: preconditioners, the options of networks, losses, as fields of a config."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from sct_jax.errors import UserError
from sct_jax.interop.allowed import Inert, quoted
from sct_jax.interop.architecture import Architecture
from sct_jax.interop.modules import class_name, submodule
from sct_jax.objectives.table import ROWS
from sct_jax.schema import DENOISING, SCHEMA

# The method that trained what a class preconditions: EDM and STF, ECT and TCM, EDM2 (but see _without_head).
PRECONDITIONERS = {"EDMPrecond": "edm", "ECMPrecond": "ect", "Precond": "edm"}
OTHER_PRECONDITIONERS = {"VPPrecond": "VP", "VEPrecond": "VE", "iDDPMPrecond": "iDDPM"}
NETWORKS = ("SongUNet", "DhariwalUNet", "EDM2UNet", "UNet")
LOSSES = {"EDMLoss": "edm", "EDM2Loss": "edm", "ECMLoss": "ect"}
METHODS = SCHEMA["objective.method"].choices

# Options of the originals' networks that leave no trace in the weights, as our fields.
_OPTIONS = {
    "dropout": "dropout",
    "label_dropout": "label_dropout",
    "label_balance": "label_balance",
    "concat_balance": "concat_balance",
    "res_balance": "residual_balance",
    "attn_balance": "attention_balance",
}
_EDM_DROPOUT = 0.10  # of EDM's networks, unless they were made with another; all other defaults are ours too
# Options that must be what they are by default.
_FIXED = {"emb_norm": False, "learnable_scale": False, "clip_act": 256, "decoder_type": "standard"}
# Second noise levels of two-step sampling that the authors publish: ECT (CIFAR-10; ImageNet-64), CM (ImageNet-64).
_MID_TIMES = {"ect": 0.821, "sct": 0.821, "ict": 0.821, "ct": 1.91, "cd": 1.38}
_MID_TIMES |= {"tcm1": 0.821, "tcm": 1.0, "gc": 0.821}  # tcm: FastGen's; its authors' 0.821 is stage 1's
_MID_TIME_EDM2 = 1.526
_TCM_RATIO_LIMIT = (0.999, 1 - 1 / 256)  # on CIFAR-10, on ImageNet-64
_ECT_SIGMA_MIN = 0.003  # the shift with which ECT evaluates CIFAR-10


class Meaning(NamedTuple):
    """What a file says beside the weights: fields of ``config.model``, ``.objective``, ``.sampling``, and remarks."""

    model: dict[str, Any]
    objective: dict[str, Any]
    sampling: dict[str, Any]
    notes: list[str]


def describe(module: Inert | None, loss: Any, network: Architecture, method: str, file_name: str) -> Meaning:
    """What the classes of a file, or for a mere state_dict its name and ``method``, say about a network.

    Args:
      module: the description of the network with its preconditioner; None for a state_dict.
      loss: that of the loss, where the file has one.
      network: what the weights alone tell.
      method: what the user says trained it; empty: what the file says.
      file_name: of the file; OpenAI's tell the method by it.

    Raises:
      UserError: for a preconditioner or an option that is not supported, and an unknown ``method``.
    """
    if method and method not in METHODS:
        raise UserError(f"--method {method}: must be one of {', '.join(METHODS)}")
    notes: list[str] = []
    name = class_name(module)
    if name in OTHER_PRECONDITIONERS:
        raise UserError(
            f"the network is preconditioned by {name} ({OTHER_PRECONDITIONERS[name]}): only EDM's preconditioning, "
            "and the shifted one of consistency models, are supported"
        )
    if name and name not in (*PRECONDITIONERS, *NETWORKS):
        raise UserError(f"the network is of class {quoted(name)}, which is not known; known are {_known()}")
    family = network.family
    chosen = method or LOSSES.get(class_name(loss)) or _without_head(name, network, notes)
    chosen = chosen or PRECONDITIONERS.get(name) or _guess(family, file_name, notes)
    model = _options(module, family) | _preconditioning(module, family, chosen, notes)
    sampling = _sampling(chosen, family, network.image_size) | _evaluation(module, family, chosen, notes)
    objective = _objective(chosen, loss, notes)
    if chosen == "ect" and class_name(module) == "ECMPrecond" and not _is_shifted(module.source):
        objective["ratio_limit"] = _TCM_RATIO_LIMIT[family == "edm2"]
    return Meaning(model, objective, sampling, notes)


def _without_head(name: str, network: Architecture, notes: list[str]) -> str:
    """ECT on ImageNet-64 keeps the name of EDM2's preconditioner, but not its head, and no loss in its snapshots."""
    if name != "Precond" or network.fields.get("uncertainty_channels"):
        return ""
    notes.append("EDM2's preconditioner without its uncertainty head: taken as ect; otherwise give --method edm")
    return "ect"


def _guess(family: str, file_name: str, notes: list[str]) -> str:
    """The method behind a state_dict. OpenAI's files are edm_….pt, ct_….pt, cd_….pt; else it is a diffusion model."""
    begins = file_name.partition("_")[0].lower()
    method = begins if family == "openai" and begins in ("edm", "ct", "cd") else ("cd" if family == "openai" else "edm")
    notes.append(f"the weights do not say what trained them: taken as {method}; another one is given with --method")
    return method


def _options(module: Inert | None, family: str) -> dict[str, Any]:
    arguments = _arguments(module)
    for name, expected in _FIXED.items():
        given = arguments.get(name, expected)
        if type(given) not in (bool, int, float, str) or given != expected:
            raise UserError(f"the network was made with {name}={_shown(given)}: only {expected} is supported")
    fields: dict[str, Any] = {"dropout": _EDM_DROPOUT} if module is not None and family == "edm" else {}
    fields |= {ours: _number(theirs, arguments[theirs]) for theirs, ours in _OPTIONS.items() if theirs in arguments}
    if family == "edm2":
        (fields["attention_head_channels"],) = _integers("channels_per_head", (arguments.get("channels_per_head", 64),))
        fields["resample_filter"] = _integers("resample_filter", arguments.get("resample_filter", (1, 1)))
        resolutions = _integers("dout_resolutions", arguments.get("dout_resolutions", ()))
        fields["dropout_max_resolution"] = max(resolutions, default=0)
    return fields


def _shown(value: Any) -> str:
    """A value of the file for a message: a scalar as it is, of all else the type."""
    if type(value) in (bool, float, str) or (type(value) is int and abs(value) < 2**64):
        return quoted(value) if type(value) is str else str(value)
    return f"an object of type {type(value).__name__}"


def _arguments(module: Inert | None) -> dict[str, Any]:
    """What preconditioner and network were made with, in plain numbers; the network's own arguments win."""
    merged: dict[str, Any] = {}
    for part in (module, *(submodule(module, name) for name in ("model", "unet") if module is not None)):
        given = part.state.get("_init_kwargs") if part is not None else None
        for name, value in given.items() if type(given) is dict else ():
            merged[name] = value.item() if isinstance(value, np.generic) else value
    return merged


def _preconditioning(module: Inert | None, family: str, method: str, notes: list[str]) -> dict[str, Any]:
    state: Mapping[str, Any] = module.state if module is not None else {}
    fields: dict[str, Any] = {"sigma_data": 0.5, "boundary": "zero"}
    if "sigma_data" in state:
        fields["sigma_data"] = _number("sigma_data", state["sigma_data"])
    else:
        notes.append("sigma_data is not in the file: taken as 0.5")
    if family == "openai" and method != "edm":
        return fields | {"boundary": "sigma_min", "sigma_min": 0.002}
    if module is None and method in ("ct", "cd", "ict", "gc"):
        notes.append(f"boundary is not in the file: taken as 'sigma_min' at 0.002, with which {method} trains")
        return fields | {"boundary": "sigma_min", "sigma_min": 0.002}
    if module is None and method in ("tcm1", "tcm"):
        notes.append("boundary is not in the file: taken as 'zero', with which TCM trains and samples")
    return fields


def _evaluation(module: Inert | None, family: str, method: str, notes: list[str]) -> dict[str, Any]:
    """The boundary of sampling where it is not that of training: ECT's CIFAR-10 class shifts it in evaluation only."""
    if method in DENOISING:
        return {}
    if class_name(module) == "ECMPrecond" and _is_shifted(module.source):
        shift = _number("sigma_min", module.state.get("sigma_min", _ECT_SIGMA_MIN))
        return {"boundary": "sigma_min", "sigma_min": shift}
    if module is not None or family == "openai" or method not in ("ect", "sct"):
        return {}
    if family == "edm2":
        notes.append("boundary is not in the file: taken as 'zero', as ECT has it on ImageNet-64")
        return {}
    notes.append(
        f"boundary is not in the file: taken as 'zero', for sampling as 'sigma_min' at {_ECT_SIGMA_MIN}, as ECT on "
        "CIFAR-10"
    )
    return {"boundary": "sigma_min", "sigma_min": _ECT_SIGMA_MIN}


def _is_shifted(source: str) -> bool:
    """Whether the text of the class shifts the boundary in evaluation: ECT's does, TCM's of the same name does not."""
    return "sigma-self.sigma_min" in source.replace(" ", "") or not source


def _objective(method: str, loss: Any, notes: list[str]) -> dict[str, Any]:
    fields = dict(ROWS[method])
    if fields.get("transition", "").startswith("teacher"):
        fields["teacher"] = "unknown"
    if fields.get("bootstrap") == "divided":
        fields["stage1"] = "unknown"
    if type(loss) is not Inert or class_name(loss) not in LOSSES:
        return fields
    names = {"P_mean": "time_mean", "P_std": "time_std"}
    if LOSSES[class_name(loss)] == "ect":
        names |= {"q": "q", "k": "k", "b": "b"}
    for theirs, ours in names.items():
        if theirs in loss.state:
            fields[ours] = float(_number(theirs, loss.state[theirs]))
    if loss.state.get("tdist") == "t":
        notes.append("a second-stage TCM student: below its transition time (1 as published) the first stage answers")
    return fields


def _sampling(method: str, family: str, image_size: int) -> dict[str, Any]:
    if method in DENOISING:
        return {"steps": (18,) if image_size <= 32 else (32,)}
    late = family == "edm2" and method in ("ect", "sct", "ict", "tcm1", "tcm", "gc")
    return {"mid_times": (_MID_TIME_EDM2 if late else _MID_TIMES[method],)}


def _number(name: str, value: Any) -> float:
    value = value.item() if isinstance(value, np.generic) else value
    if type(value) not in (int, float) or not math.isfinite(value):
        raise UserError(f"the file has no number for {name}: it is damaged or of an unknown variant")
    return float(value)


def _integers(name: str, values: Any) -> tuple[int, ...]:
    if type(values) not in (list, tuple) or len(values) > 64 or any(type(value) is not int for value in values):
        raise UserError(f"the file has no whole numbers for {name}: it is damaged or of an unknown variant")
    return tuple(values)


def _known() -> str:
    return ", ".join((*PRECONDITIONERS, *NETWORKS))
