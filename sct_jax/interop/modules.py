"""PyTorch modules as a pickle describes them: which object of a file is the network, and its state_dict."""

from typing import Any, NamedTuple

import numpy as np

from sct_jax.errors import UserError
from sct_jax.interop.allowed import Inert, quoted
from sct_jax.interop.names import without_prefix

# Where training scripts keep the network: averages first, then what may be either, then the weights being trained.
AVERAGES = ("ema", "ema_model", "ema_state", "online_ema_state", "emas")
TRAINED = ("net", "model", "network")
PARTS = (*AVERAGES, "state_dict", "model_state_dict", *TRAINED)
MOST_PARTS = 100_000  # modules, parameters and buffers of a network; the largest have some thousands
DEEPEST_MODULE = 32
LONGEST_NAME = 300
ENDLESS = "the modules of the file contain each other without end: it is damaged or no checkpoint"


class Found(NamedTuple):
    """A network in a file.

    Attributes:
      state_dict: its arrays by name, without prefixes that wrappers put before all names.
      module: its description; None for a mere state_dict.
      part: where in the file it was.
      notes: what the file has beside it, as far as that was a choice.
    """

    state_dict: dict[str, np.ndarray]
    module: Inert | None
    part: str
    notes: tuple[str, ...] = ()


def find_network(content: Any, part: str = "") -> Found | None:
    """The network in what a file holds: itself, or at one of PARTS; None when there is none."""
    if type(content) is Inert and type(content.state.get("_modules")) is dict:
        module = _unwrapped(content)
        return Found(without_prefix(state_dict(module)), module, part)
    if type(content) is dict and content and all(_is_parameter(item) for item in content.items()):
        _check_names("", content)
        arrays = {name.replace("_orig_mod.", ""): value for name, value in content.items()}
        return Found(without_prefix(arrays), None, part)
    if part.count(".") > 2:
        return None
    if type(content) is list and content:
        found = find_network(content[0], f"{part}.0")
        return _noted(found, f"the first of {len(content)} averages") if found and len(content) > 1 else found
    for name in PARTS if type(content) is dict else ():
        found = find_network(content.get(name), f"{part}.{name}".lstrip("."))
        if found is not None:
            if name in TRAINED and not part:
                found = _noted(found, f"the weights are {name!r}: those being trained, the file has no average of them")
            return found._replace(module=found.module or _module_of(content, found.state_dict))
    return None


def _noted(found: Found, note: str) -> Found:
    return found._replace(notes=(*found.notes, note))


def _module_of(content: dict, arrays: dict[str, np.ndarray]) -> Inert | None:
    """The description of the network whose averages are a mere state_dict beside it."""
    for name in TRAINED:
        module = content.get(name)
        if type(module) is Inert and type(module.state.get("_modules")) is dict:
            module = _unwrapped(module)
            if without_prefix(state_dict(module)).keys() == arrays.keys():
                return module
    return None


def class_name(description: Any) -> str:
    """The class of an object without its module; empty for what is no description."""
    return description.name.rsplit(".", 1)[-1] if type(description) is Inert else ""


def submodule(module: Inert, name: str) -> Inert | None:
    """A module inside a module."""
    inner = _dict(module, "_modules").get(name)
    return inner if type(inner) is Inert else None


def state_dict(module: Inert) -> dict[str, np.ndarray]:
    """Parameters and persistent buffers by name, as PyTorch's ``state_dict`` names them.

    Raises:
      UserError: for modules that contain themselves or are no modules.
    """
    arrays: dict[str, np.ndarray] = {}
    waiting, seen = [("", module)], 0
    while waiting:
        prefix, node = waiting.pop()
        parts = [_dict(node, kind) for kind in ("_parameters", "_buffers", "_modules")]
        seen += 1 + sum(map(len, parts))
        if seen > MOST_PARTS or prefix.count(".") > DEEPEST_MODULE:
            raise UserError(ENDLESS)
        parameters, buffers, modules = parts
        _check_names(prefix, *parts)
        transient = node.state.get("_non_persistent_buffers_set")
        transient = transient if type(transient) is set else ()
        own = parameters | {name: value for name, value in buffers.items() if name not in transient}
        for name, value in own.items():
            if type(value) is np.ndarray:
                arrays[f"{prefix}{name}"] = value
        for name, inner in modules.items():
            if type(inner) is Inert:
                waiting.append((f"{prefix}{name}.", inner))
    return arrays


def script_state_dict(module: Inert) -> dict[str, np.ndarray]:
    """The same of a TorchScript program, whose modules have parameters and modules among their attributes.

    Raises:
      UserError: for modules that contain themselves.
    """
    arrays: dict[str, np.ndarray] = {}
    waiting, seen = [("", module)], 0
    while waiting:
        prefix, node = waiting.pop()
        seen += 1 + len(node.state)
        if seen > MOST_PARTS or prefix.count(".") > DEEPEST_MODULE:
            raise UserError(ENDLESS)
        named = {name: value for name, value in node.state.items() if type(name) is str}
        _check_names(prefix, named)
        arrays |= {f"{prefix}{name}": value for name, value in named.items() if type(value) is np.ndarray}
        waiting += [(f"{prefix}{name}.", value) for name, value in named.items() if type(value) is Inert]
    return arrays


def _check_names(prefix: str, *parts: dict[str, Any]) -> None:
    longest = max((len(name) for part in parts for name in part), default=0)
    if len(prefix) + longest > LONGEST_NAME:
        raise UserError(f"the weights have names of more than {LONGEST_NAME} characters: the file is no checkpoint")


def _is_parameter(item: tuple[Any, Any]) -> bool:
    return type(item[0]) is str and type(item[1]) is np.ndarray


def _unwrapped(module: Inert) -> Inert:
    """The module inside of what only wraps one (data parallelism)."""
    for _ in range(4):
        inner = submodule(module, "module")
        if inner is None or len(_dict(module, "_modules")) > 1:
            break
        module = inner
    return module


def _dict(module: Inert, name: str) -> dict[str, Any]:
    value = module.state.get(name, {})
    if type(value) is not dict or not all(type(key) is str for key in value):
        raise UserError(f"the file describes a module {quoted(module.name)} without {name}: it is damaged")
    return value
