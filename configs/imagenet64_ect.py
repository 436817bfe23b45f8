"""Easy Consistency Tuning on class-conditional ImageNet-64 (arXiv 2406.14548) from EDM2-S.

    sct-jax train --config configs/imagenet64_ect.py --workdir runs/imagenet64_ect \
        --config.data.path=edm2-imagenet-64x64.zip --config.init.checkpoint=runs/imagenet64_edm2

Numbers are those of the preset edm2-img64-s of locuslab/ect (branch imgnet). Published for it: FID 5.51 in one step and
3.18 in two. M, L, XL: 256, 320, 384 channels, dropout 0.5, learning rates 9e-4, 8e-4, 7e-4. We have not run it.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 100_000
    config.batch_size = 128
    config.init.checkpoint = "runs/imagenet64_edm2"

    config.data.source = "zip"
    config.data.path = "edm2-imagenet-64x64.zip"
    config.data.image_size = 64

    config.model.name = "edm2"
    config.model.conditional = True
    config.model.channels = 192
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.num_blocks = 3
    config.model.attention_resolutions = (16, 8)
    config.model.dropout = 0.4
    config.model.dropout_max_resolution = 16

    config.objective.update(ROWS["ect"])
    config.objective.time_mean = -0.8
    config.objective.time_std = 1.6
    config.objective.q = 4.0  # t - r falls to a quarter every 25,000 steps
    config.objective.huber_c = 0.06
    config.objective.weight = "snr"

    config.optimizer.name = "adam"
    config.optimizer.lr = 1e-3
    config.optimizer.b2 = 0.99
    config.optimizer.decay = "inverse_sqrt"
    config.optimizer.decay_reference_steps = 2000
    config.ema.profiles = ("power:0.05", "power:0.01", "power:0.1")  # which of them to sample with: ours

    config.checkpoint.every_steps = 10_000
    config.sampling.every_steps = 10_000
    config.sampling.mid_times = (1.526,)
    return config
