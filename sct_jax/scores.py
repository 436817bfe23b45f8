"""The scores that measuring gives, by name: how a reader knows them, and which way is better."""

from typing import NamedTuple


class Score(NamedTuple):
    """A score: its name on a page, and whether a greater one is a better one."""

    label: str
    more_is_better: bool = False


_OF_FEATURES = {  # of one feature network
    "kid": Score("KID"),
    "precision": Score("precision", more_is_better=True),
    "recall": Score("recall", more_is_better=True),
    "density": Score("density", more_is_better=True),
    "coverage": Score("coverage", more_is_better=True),
}
SCORES = {  # in the order in which a page shows them
    "fid": Score("FID"),
    "sfid": Score("spatial FID (sFID)"),
    "inception_score": Score("Inception Score", more_is_better=True),
    **_OF_FEATURES,
    "fd_dinov2": Score("FD-DINOv2"),
    **{f"{name}_dinov2": one._replace(label=f"{one.label} (DINOv2)") for name, one in _OF_FEATURES.items()},
    "fd_efficientnet": Score("Fréchet distance (EfficientNet)"),
    **{f"{name}_efficientnet": one._replace(label=f"{one.label} (EfficientNet)") for name, one in _OF_FEATURES.items()},
    "fd_pca": Score("Fréchet distance (pixels)"),
    "fd_classifier": Score("Fréchet distance (classifier)"),
    "class_agreement": Score("class agreement", more_is_better=True),
    "w2": Score("Wasserstein distance"),
    "consistency_error": Score("error to the exact function"),
    "consistency_error_at_t_max": Score("error to the exact function at t_max"),
    "jump_error": Score("error to the exact jumps"),
    "jump_error_at_t_max": Score("error to the exact jumps from t_max"),
    "denoiser_error": Score("error to the exact denoiser"),
    "denoiser_error_at_t_max": Score("error to the exact denoiser at t_max"),
}


def more_is_better(name: str) -> bool:
    """False too for a score that is not known: distances and errors are what others add."""
    return name in SCORES and SCORES[name].more_is_better
