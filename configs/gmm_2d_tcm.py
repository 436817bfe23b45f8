"""Truncated consistency models, stage 2, on a ring of eight Gaussians in the plane, after ``gmm_2d_ect.py``.

    sct-jax train --config configs/gmm_2d_tcm.py --workdir runs/gmm_2d_tcm

The run of ``gmm_2d_ect.py`` is its stage 1, which answers below noise level 1.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 3000
    config.batch_size = 128
    config.init.checkpoint = "runs/gmm_2d_ect"

    config.data.source = "gmm"
    config.data.path = "2d"

    config.model.name = "film_mlp"
    config.model.conditional = False
    config.model.channels = 128
    config.model.num_blocks = 3

    config.objective.update(ROWS["tcm"])
    config.objective.stage1 = "runs/gmm_2d_ect"
    config.objective.first_stage = 7  # where that run ends
    config.objective.stage_steps = 0

    config.optimizer.name = "adam"
    config.optimizer.lr = 5e-4
    config.optimizer.b2 = 0.99
    config.optimizer.clip_norm = 1.0
    config.optimizer.ramp_steps = 100
    config.optimizer.decay = "cosine"
    config.ema.profiles = ("constant:0.998",)

    config.checkpoint.every_steps = 1500
    config.log.every_steps = 100
    config.sampling.num_images = 1000
    config.sampling.mid_times = (1.0,)
    config.sampling.every_steps = 1500
    config.evaluation.every_steps = 500
    config.evaluation.num_images = 1000
    return config
