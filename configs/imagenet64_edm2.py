"""EDM2-S pre-training on class-conditional ImageNet-64 (arXiv 2312.02696): 2^30 images.

    sct-jax train --config configs/imagenet64_edm2.py --workdir runs/imagenet64_edm2 \
        --config.data.path=edm2-imagenet-64x64.zip

The data is a zip as EDM2's dataset_tool.py writes it, or a prepared directory (--config.data.source=tfds). Numbers are
those of the preset edm2-img64-s of NVlabs/edm2; it computes in float16, here bfloat16. XS, M, L, XL: 128, 256, 320, 384
channels, dropout 0 (XS) or 0.1, learning rates 1.2e-2, 9e-3, 8e-3, 7e-3. Expect a FID of 1.58 with 63 evaluations from
the published recipe; we have not run it.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 2**30 // 2048
    config.batch_size = 2048

    config.data.source = "zip"
    config.data.path = "edm2-imagenet-64x64.zip"
    config.data.image_size = 64

    config.model.name = "edm2"
    config.model.conditional = True
    config.model.channels = 192
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.num_blocks = 3
    config.model.attention_resolutions = (16, 8)
    config.model.dropout = 0.0
    config.model.compute_dtype = "bfloat16"

    config.objective.update(ROWS["edm"])
    config.objective.time_mean = -0.8
    config.objective.time_std = 1.6
    config.objective.uncertainty = True

    config.optimizer.name = "adam"
    config.optimizer.lr = 1e-2
    config.optimizer.b2 = 0.99
    config.optimizer.eps = 1e-8 / (64 * 64 * 3)  # for the mean over pixels; the published code has 1e-8 for their sum
    config.optimizer.ramp_steps = 10_000_000 // 2048
    config.optimizer.decay = "inverse_sqrt"
    config.optimizer.decay_reference_steps = 35_000
    # 0.05 and 0.10 are EDM2's, to reconstruct others from; 0.075 is the one ECT starts from.
    config.ema.profiles = ("power:0.075", "power:0.05", "power:0.1")

    config.checkpoint.every_steps = 8192
    config.checkpoint.keep_every_steps = 32_768  # 16 in all: widths from 0.03 to 0.2 are fitted to within 0.5 %
    config.sampling.steps = (32,)
    config.sampling.every_steps = 10_000
    return config
