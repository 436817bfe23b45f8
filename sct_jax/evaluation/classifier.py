"""A classifier trained once on the real training images: classes of samples, and features.

It stands in, offline, for a pretrained network. Training is a function of the data and a seed, so its result
is cached under a hash of both.
"""

import hashlib
import json
import sys
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sct_jax import files
from sct_jax.errors import UserError
from sct_jax.models.classifier import LARGEST_TINY_IMAGE, ClassifierNetwork, build_classifier

BATCH = 512  # images a call of the jitted network; the last batch is padded, so a row's result never depends on N
RECIPE: dict[str, Any] = {
    "batch_size": 128,
    "steps": {"tiny": 1000, "small": 2000},
    "learning_rate": 2e-3,
    "weight_decay": 1e-4,
    "label_smoothing": 0.05,
    "shift_probability": 0.5,  # of moving an image by up to one pixel
}


@dataclass(frozen=True)
class Classifier:
    """A trained classifier. ``provenance`` says on what and how it was trained, in plain JSON types."""

    network: ClassifierNetwork
    params: dict
    feature_scale: float
    provenance: dict[str, Any]

    def predict(self, images: np.ndarray) -> np.ndarray:
        """The likeliest class of each uint8 image ``[N, H, W, C]``, int32 ``[N]``."""
        return self._batched(images)[1].argmax(axis=-1).astype(np.int32)

    def features(self, images: np.ndarray) -> np.ndarray:
        """Penultimate activations, float32 ``[N, F]``, scaled to mean variance 1 over the training images."""
        return self._batched(images)[0] * np.float32(self.feature_scale)

    def accuracy(self, images: np.ndarray, labels: np.ndarray) -> float:
        """Share of ``images`` predicted to be of the class in ``labels [N]``."""
        if len(images) != len(labels) or len(images) == 0:
            raise ValueError(
                f"need as many labels as images and at least one: {len(images)} images, {len(labels)} labels"
            )
        return float(np.mean(self.predict(images) == np.asarray(labels)))

    @cached_property
    def _apply(self):
        return jax.jit(lambda params, images: self.network.apply(params, _to_float(images)))

    def _batched(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        expected = tuple(self.network.architecture["input"])
        if images.dtype != np.uint8 or images.shape[1:] != expected:
            raise ValueError(f"expected uint8 images [N, {expected}], got {images.dtype} {images.shape}")
        outputs = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            padded = np.zeros((BATCH, *expected), np.uint8)
            padded[: len(batch)] = batch
            outputs.append([np.asarray(output)[: len(batch)] for output in self._apply(self.params, padded)])
        features, logits = zip(*outputs, strict=True)
        return np.concatenate(features), np.concatenate(logits)


def train_or_load_classifier(
    images: np.ndarray, labels: np.ndarray, *, num_classes: int, cache_dir: str | Path | None, seed: int = 0
) -> Classifier:
    """The classifier of uint8 ``images [N, H, W, C]`` and ``labels [N]``, from ``cache_dir`` when it is there.

    The cache key hashes data, architecture, recipe and seed. The file is written aside and renamed, so that a
    reader never sees half of it; an unreadable file is trained anew. ``cache_dir=None`` caches nothing.
    Raises ``UserError`` for labels outside ``[0, num_classes)`` and for a cache folder that cannot be
    written.
    """
    labels = np.asarray(labels, np.int32)
    _check(images, labels, num_classes)
    network = build_classifier(images.shape[1], images.shape[3], num_classes)
    key = _cache_key(images, labels, network.architecture, seed)
    path = None if cache_dir is None else _prepare(Path(cache_dir)) / f"classifier-{key[:20]}.npz"
    classifier = _load(path, network) if path is not None and path.exists() else None
    if classifier is None:
        if jax.process_index() == 0:
            kept = "" if path is None else f", once (kept in {path.parent})"
            what = f"training the classifier of the offline metrics on {len(images):,} real images{kept}"
            print(what, file=sys.stderr, flush=True)
        classifier = _train(images, labels, network, key, seed)
        if path is not None:
            _save(path, classifier)
    return classifier


def _check(images: np.ndarray, labels: np.ndarray, num_classes: int) -> None:
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
        raise ValueError(f"need uint8 [N,H,W,C] and [N], got {images.dtype} {images.shape} and {labels.shape}")
    if len(images) == 0:
        raise UserError("the evaluation classifier needs real images to train on, got none")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(f"labels must lie in 0..{num_classes - 1}, found {labels.min()}..{labels.max()}")


def _train(images: np.ndarray, labels: np.ndarray, network: ClassifierNetwork, key: str, seed: int) -> Classifier:
    init_key, data_key = jax.random.split(jax.random.key(seed))
    steps = RECIPE["steps"]["tiny" if images.shape[1] <= LARGEST_TINY_IMAGE else "small"]
    schedule = optax.cosine_decay_schedule(RECIPE["learning_rate"], steps)
    optimizer = optax.adamw(schedule, weight_decay=RECIPE["weight_decay"])
    params = network.init(init_key)
    state = optimizer.init(params)
    resident, targets = jnp.asarray(images), jnp.asarray(labels)

    def loss_fn(params: dict, x: jax.Array, y: jax.Array) -> jax.Array:
        _, logits = network.apply(params, x)
        smooth = optax.smooth_labels(jax.nn.one_hot(y, logits.shape[-1]), RECIPE["label_smoothing"])
        return optax.softmax_cross_entropy(logits, smooth).mean()

    @jax.jit
    def step(params: dict, state: optax.OptState, index: jax.Array) -> tuple[dict, optax.OptState]:
        row_key, shift_key = jax.random.split(jax.random.fold_in(data_key, index))
        rows = jax.random.randint(row_key, (RECIPE["batch_size"],), 0, len(images))
        x = _shift_some(_to_float(resident[rows]), shift_key, RECIPE["shift_probability"])
        updates, state = optimizer.update(jax.grad(loss_fn)(params, x, targets[rows]), state, params)
        return optax.apply_updates(params, updates), state

    # One dispatch a step: on CPU a convolution's gradient inside lax.scan runs many times slower than outside it.
    for index in range(steps):
        params, state = step(params, state, index)

    plain = Classifier(network, params, feature_scale=1.0, provenance={})
    variance = float(plain.features(images).astype(np.float64).var(axis=0).mean())
    provenance = {
        "architecture": network.architecture,
        "recipe": RECIPE | {"steps": steps},
        "seed": seed,
        "train_images": len(images),
        "train_accuracy": plain.accuracy(images, labels),
        "key": key,
    }
    return Classifier(network, params, 1 / max(variance, 1e-12) ** 0.5, provenance)


def _shift_some(x: jax.Array, key: jax.Array, probability: float) -> jax.Array:
    """Images of ``x [B,H,W,C]``, each with ``probability`` moved by up to 1 pixel; its edge becomes black (-1)."""
    offset_key, choice_key = jax.random.split(key)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    chosen = jax.random.bernoulli(choice_key, probability, (x.shape[0], 1))
    corners = jnp.where(chosen, jax.random.randint(offset_key, (x.shape[0], 2), 0, 3), 1)
    crop = jax.vmap(lambda image, corner: jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), x.shape[1:]))
    return crop(padded, corners)


def _to_float(images: jax.Array) -> jax.Array:
    return images.astype(jnp.float32) / 127.5 - 1


def _cache_key(images: np.ndarray, labels: np.ndarray, architecture: dict, seed: int) -> str:
    digest = hashlib.sha256(json.dumps([architecture, RECIPE, seed, images.shape]).encode())
    digest.update(np.ascontiguousarray(images))
    digest.update(np.ascontiguousarray(labels))
    return digest.hexdigest()


def _prepare(cache_dir: Path) -> Path:
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the classifier's cache folder {cache_dir}: {error.strerror}") from error
    return cache_dir


def _save(path: Path, classifier: Classifier) -> None:
    leaves = {f"leaf_{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(classifier.params))}
    header = json.dumps({"feature_scale": classifier.feature_scale, "provenance": classifier.provenance})
    files.write(path, lambda aside: np.savez(aside, header=np.asarray(header), **leaves))


def _load(path: Path, network: ClassifierNetwork) -> Classifier | None:
    """The cached classifier, or None when the file is damaged."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(str(file["header"]))
            leaves = [file[f"leaf_{i}"] for i in range(len(jax.tree.leaves(shapes)))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in jax.tree.leaves(shapes)]:
        return None
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return Classifier(network, params, header["feature_scale"], header["provenance"])
