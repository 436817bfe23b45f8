"""Generator-augmented flows on a ring of eight Gaussians in the plane, from the model of ``gmm_2d_edm.py``.

    sct-jax train --config configs/gmm_2d_gc.py --workdir runs/gmm_2d_gc --config.init.checkpoint=runs/gmm_2d_edm

The baseline, iCT, is the same with --config.objective.generated=0.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 3000
    config.batch_size = 128
    config.init.checkpoint = "runs/gmm_2d_edm"

    config.data.source = "gmm"
    config.data.path = "2d"

    config.model.name = "film_mlp"
    config.model.conditional = False
    config.model.channels = 128
    config.model.num_blocks = 3

    config.objective.update(ROWS["gc"])
    config.objective.huber_c = 0.00054 * 2**0.5
    config.objective.generator_decay = 0.998

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
    config.sampling.every_steps = 1500
    config.evaluation.every_steps = 500
    config.evaluation.num_images = 1000
    return config
