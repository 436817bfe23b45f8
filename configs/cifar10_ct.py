"""Consistency training on CIFAR-10 (arXiv 2303.01469) from scratch, with a grid that grows from 2 to 151 levels.

    sct-jax train --config configs/cifar10_ct.py --workdir runs/cifar10_ct --config.data.path=cifar-10-python.tar.gz

Published, unconditional: FID 8.70 in one step and 5.83 in two, with LPIPS as the distance. Its weights are to be
brought (README); then add --config.objective.distance=lpips [--config.objective.lpips=FOLDER]. Without it the distance
is L2, with which the paper's distilled models are worse (its fig. 3). We have not run it to the end.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 800_000
    config.batch_size = 512

    config.data.source = "cifar10"
    config.data.path = "cifar-10-python.tar.gz"
    config.data.held_out_split = "test"
    config.data.flip = True  # as openai/consistency_models_cifar10

    # NCSN++, without dropout (openai/consistency_models_cifar10).
    config.model.name = "ddpmpp"
    config.model.embedding = "fourier"
    config.model.channel_mult_noise = 2
    config.model.encoder = "residual"
    config.model.resample_filter = (1, 3, 3, 1)
    config.model.conditional = False
    config.model.dropout = 0.0
    config.model.boundary = "sigma_min"

    config.objective.update(ROWS["ct"])  # s_0 = 2, s_1 = 150, mu_0 = 0.9

    config.optimizer.name = "radam"
    config.optimizer.lr = 4e-4
    config.ema.profiles = ("constant:0.9999",)

    config.checkpoint.every_steps = 10_000
    config.sampling.every_steps = 10_000
    config.sampling.mid_times = (0.821,)  # iCT's; CM searches for its own
    return config
