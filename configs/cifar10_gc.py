"""Generator-augmented flows on CIFAR-10 (arXiv 2406.09570): iCT with the model's own images for half of the data's.

    sct-jax train --config configs/cifar10_gc.py --workdir runs/cifar10_gc --config.data.path=cifar-10-python.tar.gz

From scratch, at the authors' small budget: a network of 128 x (1, 2, 2) channels, 100,000 steps, Lion. Their baseline
is the same with --config.objective.generated=0 and --config.model.dropout=0.3. We have not run it to the end.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 100_000
    config.batch_size = 512

    config.data.source = "cifar10"
    config.data.path = "cifar-10-python.tar.gz"
    config.data.held_out_split = "test"
    config.data.flip = False

    config.model.name = "ddpmpp"
    config.model.embedding = "positional"
    config.model.channel_mult = (1, 2, 2)
    config.model.num_blocks = 3
    config.model.conditional = False
    config.model.dropout = 0.0
    config.model.boundary = "sigma_min"

    config.objective.update(ROWS["gc"])  # iCT's, and an average of the weights that makes half of the images

    config.optimizer.name = "lion"
    config.optimizer.lr = 1e-4
    config.optimizer.b2 = 0.99
    config.ema.profiles = ("constant:0.9999",)

    config.checkpoint.every_steps = 10_000
    config.sampling.every_steps = 10_000
    config.sampling.mid_times = (0.821,)
    return config
