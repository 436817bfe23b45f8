"""Measuring samples against real images offline, and the variance of the training target."""

from sct_jax.evaluation.classifier import Classifier, train_or_load_classifier
from sct_jax.evaluation.features import PixelPCA
from sct_jax.evaluation.frechet import frechet_distance, moments
from sct_jax.evaluation.metrics import Evaluator
from sct_jax.evaluation.provenance import provenance
from sct_jax.evaluation.target import target_covariance

__all__ = [
    "Classifier",
    "Evaluator",
    "PixelPCA",
    "frechet_distance",
    "moments",
    "provenance",
    "target_covariance",
    "train_or_load_classifier",
]
