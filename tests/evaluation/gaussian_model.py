"""A consistency model of a Gaussian that is wrong in a known way, so that its samples are Gaussians in closed form."""

import math

import jax.numpy as jnp

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.diffusion.process import per_image
from sct_jax.model import Model

SIGMA, T_MAX, SIZE = 0.2, 80.0, 8


def factor(t, wrong=0.4, xp=math):
    """The exact model of N(0, SIGMA²) scales by SIGMA / sqrt(SIGMA² + t²); this one the less, the more noise."""
    return SIGMA / xp.sqrt(SIGMA**2 + t * t) * (1 - wrong * t / (1 + t))


def deviation(*mid_times, wrong=0.4):
    """Standard deviation of a pixel of samples with the given intermediate times and fresh noise."""
    variance = (factor(T_MAX, wrong) * T_MAX) ** 2
    for t in mid_times:
        variance = factor(t, wrong) ** 2 * (variance + t * t)
    return math.sqrt(variance)


def make_model(monkeypatch, wrong=0.4, **objective):
    """As if loaded from a checkpoint."""

    def denoise(params, x, t, condition=None):
        return x * per_image(factor(t, params["wrong"], jnp), x)

    network = models.Network(lambda key: {"wrong": jnp.float32(wrong)}, denoise, False)
    config = config_lib.default_config()
    config.model.conditional = False
    config.data.source = "none"
    config.objective.update(objective)
    with monkeypatch.context() as patch:
        patch.setattr(models, "build", lambda model, spec: network)
        params = {"wrong": jnp.float32(wrong)}
        return Model(config, DataSpec(SIZE, 1, 0, 1000), params, step=7, profile="constant:0.9", path="gaussian")
