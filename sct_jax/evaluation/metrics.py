"""Quality of generated images against real ones, offline: class agreement and Fréchet distances.

Class agreement alone means nothing (the class means score 1.0), and a Fréchet distance alone does not see
that labels are obeyed: report both, and beside them the floor, which is what real images score against real
images.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from sct_jax.errors import UserError
from sct_jax.evaluation.classifier import Classifier, train_or_load_classifier
from sct_jax.evaluation.features import PixelPCA
from sct_jax.evaluation.frechet import frechet_distance, moments

Images = np.ndarray  # uint8 [N, H, W, C]
LabelledImages = tuple[np.ndarray, np.ndarray]  # uint8 [N, H, W, C], int [N]
Extractor = Callable[[Images], np.ndarray]  # -> [N, F]

CLASS_AGREEMENT = "class_agreement"
FRECHET_PREFIX = "fd_"
OFFLINE = (CLASS_AGREEMENT, "fd_pca", "fd_classifier")


def check_names(names: Sequence[str], every: Sequence[str], known: str = "known") -> None:
    """Raises a UserError for a metric that is not one of ``every``, with the nearest that is."""
    for name in names:
        if name not in every:
            near = difflib.get_close_matches(name.lower(), every, 1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"unknown metric {name!r}: {hint}({known}: {', '.join(every)})")


class Evaluator:
    """Compares images with real ones, ``train`` and ``held_out``: each uint8 ``[N, H, W, C]``, labels ``[N]``.

    Feature spaces, each giving a metric ``fd_<name>``: ``pca`` (32 principal components of the real pixels in
    [-1, 1]), ``classifier`` (penultimate features of a classifier trained on ``train``; needs ``num_classes
    >= 2``), and every further one in ``extractors`` (name to function from uint8 images to ``[N, F]``). The
    classifier is trained or read from ``cache_dir`` when a metric first needs it.
    """

    def __init__(
        self,
        train: LabelledImages,
        held_out: LabelledImages | None = None,
        *,
        num_classes: int,
        cache_dir: str | Path | None = None,
        seed: int = 0,
        extractors: Mapping[str, Extractor] | None = None,
    ):
        if len(train[0]) == 0:
            raise UserError("the evaluation needs real training images to compare with, got none")
        self._train, self._num_classes, self._cache_dir, self._seed = train, num_classes, cache_dir, seed
        self._references = {"": train[0]}
        if held_out is not None and len(held_out[0]) > 0:
            self._references["_held_out"] = held_out[0]
        self._held_out = held_out
        self._added = tuple(extractors or {})
        self._extractors = dict(extractors or {})
        self._moments: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Every metric this data allows."""
        spaces = ["pca", *(["classifier"] if self._has_classes else []), *self._added]
        agreement = (CLASS_AGREEMENT,) if self._has_classes else ()
        return (*agreement, *(FRECHET_PREFIX + space for space in spaces))

    @cached_property
    def classifier(self) -> Classifier:
        """The classifier of the training images."""
        return train_or_load_classifier(
            *self._train, num_classes=self._num_classes, cache_dir=self._cache_dir, seed=self._seed
        )

    def check(self, num: int, names: Sequence[str] | None = None) -> None:
        """Raises ``UserError`` for unknown metrics, or too few samples for them, before any are drawn."""
        for name in self._checked(names):
            fewest = 1
            if name != CLASS_AGREEMENT:
                fewest = self._reference(name.removeprefix(FRECHET_PREFIX), "")[0].shape[0] + 1
            if num < fewest:
                raise UserError(f"--num {num}: {name} needs at least {fewest} samples")

    def metrics(
        self, samples: Images, sample_labels: np.ndarray | None = None, names: Sequence[str] | None = None
    ) -> dict[str, float]:
        """Scores of uint8 ``samples [N, H, W, C]`` by metric name; ``names=None``: all the data allows.

        ``class_agreement`` is the share of samples classified as ``sample_labels [N]``, absent when there are
        no labels. ``fd_<space>`` is the Fréchet distance to the training images, ``fd_<space>_held_out`` to
        the held-out ones when there are any. The order of the samples does not matter. Raises ``UserError``
        for an unknown name, images of another shape, and too few samples.
        """
        names = self._checked(names)
        expected = self._train[0].shape[1:]
        if samples.dtype != np.uint8 or samples.shape[1:] != expected:
            raise UserError(
                f"samples must be uint8 {expected} like the real images, got {samples.dtype} {samples.shape[1:]}"
            )
        if len(samples) == 0:
            raise UserError("there are no samples to evaluate: ask for at least one")
        result: dict[str, float] = {}
        for name in names:
            if name == CLASS_AGREEMENT:
                if sample_labels is not None:
                    result[name] = self.classifier.accuracy(samples, sample_labels)
                continue
            space = name.removeprefix(FRECHET_PREFIX)
            summary = moments(self._extractor(space)(samples))
            for suffix in self._references:
                result[name + suffix] = frechet_distance(*summary, *self._reference(space, suffix))
        return result

    def floor(self, num: int, seed: int = 0, names: Sequence[str] | None = None) -> dict[str, float]:
        """What real images score: ``num`` training images drawn with replacement, as if samples.

        With held-out images, ``fd_<space>_held_out`` compares them with all the training images, and
        ``class_agreement_held_out`` is the classifier's accuracy on them.
        """
        names = self._checked(names)
        images, labels = self._train
        drawn = np.random.default_rng(seed).integers(0, len(images), num)
        result = self.metrics(images[drawn], labels[drawn] if self._has_classes else None, names)
        if "_held_out" in self._references:
            for name in names:
                if name == CLASS_AGREEMENT:
                    result[name + "_held_out"] = self.classifier.accuracy(*self._held_out)
                else:
                    space = name.removeprefix(FRECHET_PREFIX)
                    pair = [self._reference(space, suffix) for suffix in ("", "_held_out")]
                    result[name + "_held_out"] = frechet_distance(*pair[0], *pair[1])
        return result

    @property
    def _has_classes(self) -> bool:
        return self._num_classes >= 2

    def _checked(self, names: Sequence[str] | None) -> tuple[str, ...]:
        if names is None:
            return self.names
        check_names(names, (*OFFLINE, *(FRECHET_PREFIX + space for space in self._added)))
        applicable = tuple(name for name in names if name in self.names)
        if not applicable:
            raise UserError(
                f"{', '.join(names) or 'no metric'}: not for data without classes; use {', '.join(self.names)}"
            )
        return applicable

    def _extractor(self, space: str) -> Extractor:
        """The function of a feature space; the built-in ones are fitted when first asked for."""
        if space not in self._extractors:
            self._extractors[space] = PixelPCA.fit(self._train[0]) if space == "pca" else self.classifier.features
        return self._extractors[space]

    def _reference(self, space: str, suffix: str) -> tuple[np.ndarray, np.ndarray]:
        """Moments of the real images, computed once a feature space; ``suffix`` says which ones."""
        if (space, suffix) not in self._moments:
            features = self._extractor(space)(self._references[suffix])
            what = "held-out images" if suffix else "real training images"
            self._moments[space, suffix] = moments(features, what)
        return self._moments[space, suffix]
