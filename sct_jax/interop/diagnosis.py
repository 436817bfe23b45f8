"""Why weights do not fit a network: one line for the user, with the likely cause first."""

import re
from collections.abc import Callable, Sequence

from sct_jax.interop.allowed import shown

Names = Sequence[str]
# (name, its shape there, the shape it should have had)
WrongShape = tuple[str, tuple[int, ...], tuple[int, ...] | None]

# Whose names these are: a name that only this kind of network has.
_OWNERS = (
    ("EDM2's (model.name='edm2')", re.compile(r"(unet\.)?(emb_noise|enc\..*conv_res0)\.weight|(unet\.)?out_gain")),
    ("OpenAI's ADM (model.name='adm')", re.compile(r"input_blocks\.0\.0\.weight|time_embed\.0\.weight")),
    ("NVIDIA's ADM (model.name='adm')", re.compile(r"out_norm\.weight")),
    ("NVIDIA's NCSN++ (model.name='ddpmpp', its encoder residual)", re.compile(r"enc\..*aux_residual\.weight")),
    ("NVIDIA's DDPM++ (model.name='ddpmpp')", re.compile(r"dec\..*aux_norm\.weight")),
)
_LABEL = re.compile(r"(.*\.)?(map_label|label_emb|emb_label)\.")
_AUGMENT = re.compile(r"map_augment\.")
_UNCERTAINTY = re.compile(r"(.*\.)?logvar")
_ATTENTION = re.compile(r".*(qkv|attn|\.norm2\.|\.proj)")
_RESOLUTION = re.compile(r"(?:.*\.)?(?:enc|dec)\.(\d+)x")


def explain(missing: Names, extra: Names, wrong: Sequence[WrongShape], there: Names) -> str:
    """One line: the likely cause, then how many names are missing, too many, of another shape, with examples.

    Args:
      missing: names the network needs that the weights lack.
      extra: names the weights have that the network does not.
      wrong: arrays of another shape.
      there: all names of the weights.
    """
    cause = _cause(missing, extra, wrong, there)
    found = [list_names("missing", missing), list_names("too many", extra), list_shapes(wrong)]
    return f"the weights do not fit the config: {cause + '; ' if cause else ''}{', '.join(filter(None, found))}"


def _cause(missing: Names, extra: Names, wrong: Sequence[WrongShape], there: Names) -> str:
    for owner, pattern in _OWNERS:
        if any(map(pattern.match, extra)) and not any(map(pattern.match, missing)):
            return f"these names are {owner}"
    for test in (_labels, _augmentation, _resolution, _blocks, _attention):
        if cause := test(missing, extra):
            return cause
    if wrong:
        return _width(wrong)
    return "" if there else "there are no weights in it"


def _labels(missing: Names, extra: Names) -> str:
    if _all(_LABEL, extra) and not missing:
        return "the weights are class-conditional but the config is not (model.conditional=True)"
    if _all(_LABEL, missing) and not extra:
        return "the config is class-conditional but the weights are not (model.conditional=False)"
    return ""


def _augmentation(missing: Names, extra: Names) -> str:
    if _all(_AUGMENT, extra) and not missing:
        return "the weights have augmentation labels but the config has none (model.augment_dim=9)"
    if _all(_AUGMENT, missing) and not extra:
        return "the config has augmentation labels but the weights have none (model.augment_dim=0)"
    if _all(_UNCERTAINTY, missing) and not extra:
        return "the weights lack the uncertainty head of EDM2's training"
    return ""


def _resolution(missing: Names, extra: Names) -> str:
    here, there = _largest_resolution(missing), _largest_resolution(extra)
    if here and there and here != there:
        return f"another image size or number of levels: {there} there, {here} here"
    return ""


def _blocks(missing: Names, extra: Names) -> str:
    return _one_sided(missing, extra, lambda name: re.search(r"_block\d+\.", name), "another model.num_blocks")


def _attention(missing: Names, extra: Names) -> str:
    return _one_sided(missing, extra, _ATTENTION.match, "another model.attention_resolutions")


def _one_sided(missing: Names, extra: Names, test: Callable[[str], object], cause: str) -> str:
    """`cause` where all that is missing or all that is too many passes the test, and nothing is on the other side.

    Attention inside a block is the attention's fault: names of blocks count only when whole blocks are concerned.
    """
    names = missing or extra
    if not names or (missing and extra) or not all(map(test, names)):
        return ""
    whole_blocks = any(re.search(r"conv0|conv_res0|in_layers", name) for name in names)
    return cause if whole_blocks == cause.endswith("num_blocks") else ""


def _width(wrong: Sequence[WrongShape]) -> str:
    if all(_LABEL.match(name) for name, _, _ in wrong):
        return "another number of classes"
    _, there, here = wrong[0]
    pair = next(((a, b) for a, b in zip(there, here or (), strict=False) if a != b), None)
    return f"another width (model.channels, model.channel_mult): {pair[0]} there, {pair[1]} here" if pair else ""


def _largest_resolution(names: Names) -> int:
    return max((int(match[1]) for name in names if (match := _RESOLUTION.match(name))), default=0)


def _all(pattern: re.Pattern, names: Names) -> bool:
    return bool(names) and all(map(pattern.match, names))


def list_names(what: str, names: Names) -> str:
    """``7 missing (a, b, c, …)``; empty when there are none."""
    if not names:
        return ""
    return f"{len(names)} {what} ({', '.join(map(shown, names[:3]))}{', …' if len(names) > 3 else ''})"


def list_shapes(wrong: Sequence[WrongShape]) -> str:
    """How many arrays have another shape, with the first; empty when there are none."""
    if not wrong:
        return ""
    name, there, here = wrong[0]
    expected = f", not {list(here)}" if here else ""
    return f"{len(wrong)} of another shape ({shown(name)} {list(there)}{expected}{', …' if len(wrong) > 1 else ''})"
