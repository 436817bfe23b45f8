"""Diffusion pre-training (EDM) on scikit-learn's 1,797 handwritten digits (8×8), with a small MLP.

sct-jax train --config configs/digits_edm.py --workdir runs/digits_edm
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 4000
    config.batch_size = 128

    config.data.source = "digits"
    config.data.split = "all"

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

    config.checkpoint.every_steps = 2000
    config.log.every_steps = 100
    config.sampling.steps = (18,)
    config.sampling.every_steps = 2000
    config.evaluation.every_steps = 2000
    return config
