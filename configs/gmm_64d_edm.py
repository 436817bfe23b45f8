"""Diffusion pre-training (EDM) on 8×8 textures of ten kinds, a Gaussian mixture, whose exact flow is known.

sct-jax train --config configs/gmm_64d_edm.py --workdir runs/gmm_64d_edm

Seed 0 reached denoiser_error 0.0023.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 3000
    config.batch_size = 128

    config.data.source = "gmm"
    config.data.path = "64d"

    config.model.name = "film_mlp"
    config.model.conditional = True
    config.model.channels = 256
    config.model.num_blocks = 4

    config.objective.update(ROWS["edm"])

    config.optimizer.name = "adam"
    config.optimizer.lr = 1e-3
    config.optimizer.b2 = 0.99
    config.optimizer.clip_norm = 1.0
    config.optimizer.ramp_steps = 100
    config.optimizer.decay = "cosine"
    config.ema.profiles = ("constant:0.998",)

    config.checkpoint.every_steps = 1500
    config.log.every_steps = 100
    config.sampling.steps = (18,)
    config.sampling.every_steps = 1500
    config.evaluation.every_steps = 1500
    config.evaluation.num_images = 1000
    return config
