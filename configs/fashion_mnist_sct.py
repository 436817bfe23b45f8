"""Stable Consistency Tuning on Fashion-MNIST, class-conditional, from ``fashion_mnist_edm.py``.

    sct-jax train --config configs/fashion_mnist_sct.py --workdir runs/fashion_mnist_sct \
        --config.init.checkpoint=runs/fashion_mnist_edm

The IDX files are looked for where Debian's package dataset-fashion-mnist puts them; elsewhere: --config.data.path=DIR.
Made for one GPU. On a CPU add --config.model.name=film_mlp --config.model.channels=512, which trains in minutes.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 20_000
    config.batch_size = 128
    config.init.checkpoint = "runs/fashion_mnist_edm"

    config.data.source = "idx"
    config.data.image_size = 32  # padded from 28
    config.data.held_out_split = "test"

    config.model.name = "ddpmpp"
    config.model.conditional = True
    config.model.channels = 64
    config.model.channel_mult = (1, 2, 2)
    config.model.num_blocks = 2
    config.model.attention_resolutions = (8,)
    config.model.dropout = 0.1

    config.objective.update(ROWS["sct"])
    config.objective.stage_steps = 2500

    config.optimizer.name = "adam"
    config.optimizer.lr = 2e-4
    config.optimizer.b2 = 0.99
    config.optimizer.clip_norm = 1.0
    config.ema.profiles = ("constant:0.999",)

    config.checkpoint.every_steps = 5000
    config.sampling.every_steps = 5000
    config.evaluation.every_steps = 5000
    config.evaluation.num_images = 5000
    return config
