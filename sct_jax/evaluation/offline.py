"""The evaluator that a run's own data gives, without networks that others trained: its images, or the known truth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sct_jax import config as config_lib
from sct_jax.data import DataSpec, open_source
from sct_jax.data.mixtures import known_data
from sct_jax.data.prepare import detect_kind
from sct_jax.data.sources import NO_DATA
from sct_jax.data.tfds_source import INFO_FILE
from sct_jax.errors import UserError
from sct_jax.evaluation.metrics import Evaluator
from sct_jax.evaluation.mixtures import MixtureEvaluator
from sct_jax.sampling.generate import lowest_time, phase_edges, sampler_kind, to_uint8


def make_evaluator(
    config: Any, train: Any, data_path: str, cache_dir: Path | None, queries: int = 128
) -> Evaluator | MixtureEvaluator:
    """The offline evaluator for a config's data: its training images, and held-out ones where it names a split.

    Where the data is a known mixture it is the truth itself, asked at ``queries`` states of each noise level.
    """
    held_out = None
    data = config.data
    if data.source == "gmm":
        return MixtureEvaluator(
            *known_data(data_path),
            kind=sampler_kind(config),
            conditional=config.model.conditional,
            edges=phase_edges(config),
            lowest=lowest_time(config),
            queries=queries,
        )
    if data.held_out_split:
        other = open_source(data.source, data_path, split=data.held_out_split, image_size=data.image_size)
        if (other.spec.image_size, other.spec.channels) != (train.spec.image_size, train.spec.channels):
            raise UserError(
                f"images of split {data.held_out_split} ({other.spec.image_size} px, {other.spec.channels} channels) "
                f"differ from the training images; set config.data.image_size, or data.held_out_split=''"
            )
        held_out = other.read_all()
    return Evaluator(train=train.read_all(), held_out=held_out, num_classes=train.spec.num_classes, cache_dir=cache_dir)


def measure(
    evaluator: Evaluator | MixtureEvaluator,
    denoise: Any,
    samples: np.ndarray,
    labels: np.ndarray | None,
    names: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Scores of a model ``denoise(x, t, labels)`` and its float ``samples [N, H, W, C]``, by its data's evaluator.

    Of a two-time model it is ``denoise(x, t, labels, s=None)``.
    """
    if isinstance(evaluator, MixtureEvaluator):
        return evaluator.metrics(denoise, samples, labels, names, seed)
    return evaluator.metrics(to_uint8(samples), labels, names)


def with_data(config: Any, spec: DataSpec, data_path: str, checkpoint: str) -> Any:
    """The config, with the kind of data at ``data_path`` where it names none: that of an imported model.

    Raises:
      UserError: when neither of them names data.
    """
    if config.data.source != NO_DATA:
        return config
    if not data_path:
        raise UserError(f"{checkpoint} is imported and brings no images to measure against: name them with --data-path")
    return config_lib.replaced(config, {"data.source": kind_of_data(data_path), "data.image_size": spec.image_size})


def path_of(kind: str, path: str) -> str:
    """What ``open_source`` takes as the path: the embedded digits need none, though their name may stand for it."""
    return "" if kind == path == "digits" else path


def kind_of_data(path: str) -> str:
    """Which source (a name of ``open_source``) reads what lies at ``path``; a UserError where that is unclear."""
    return "tfds" if (Path(path) / INFO_FILE).is_file() else detect_kind(path)
