"""Generator-augmented flows on the digits, from the diffusion model of ``digits_edm.py``.

    sct-jax train --config configs/digits_gc.py --workdir runs/digits_gc --config.init.checkpoint=runs/digits_edm

The baseline, iCT, is the same with --config.objective.generated=0.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 5000
    config.batch_size = 128
    config.init.checkpoint = "runs/digits_edm"

    config.data.source = "digits"
    config.data.split = "all"

    config.model.name = "film_mlp"
    config.model.conditional = True
    config.model.channels = 256
    config.model.num_blocks = 4

    config.objective.update(ROWS["gc"])
    config.objective.huber_c = 0.00054 * 8  # of 8 x 8 pixels
    config.objective.generator_decay = 0.998

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
    config.evaluation.every_steps = 2500
    return config
