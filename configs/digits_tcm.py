"""Truncated consistency models, stage 2, on the digits, from the run of ``digits_ect.py``, which is its stage 1.

sct-jax train --config configs/digits_tcm.py --workdir runs/digits_tcm
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 5000
    config.batch_size = 128
    config.init.checkpoint = "runs/digits_ect"

    config.data.source = "digits"
    config.data.split = "all"

    config.model.name = "film_mlp"
    config.model.conditional = True
    config.model.channels = 256
    config.model.num_blocks = 4

    config.objective.update(ROWS["tcm"])
    config.objective.stage1 = "runs/digits_ect"
    config.objective.first_stage = 8  # where that run ends
    config.objective.stage_steps = 0

    config.optimizer.name = "adam"
    config.optimizer.lr = 5e-4
    config.optimizer.b2 = 0.99
    config.optimizer.clip_norm = 1.0
    config.optimizer.ramp_steps = 100
    config.optimizer.decay = "cosine"
    config.ema.profiles = ("constant:0.998",)

    config.checkpoint.every_steps = 2500
    config.log.every_steps = 100
    config.sampling.every_steps = 2500
    config.sampling.mid_times = (1.0,)
    config.evaluation.every_steps = 2500
    return config
