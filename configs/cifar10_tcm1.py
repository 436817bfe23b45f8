"""Truncated consistency models on CIFAR-10, stage 1 (arXiv 2410.14895): ECT with truncated times, from an EDM model.

    sct-jax train --config configs/cifar10_tcm1.py --workdir runs/cifar10_tcm1 --config.init.checkpoint=runs/cifar10_edm

Then ``cifar10_tcm.py``. The authors do not say how long it takes: their command allows 3,000,000 steps. After 225,000
t - r shrinks no more; here it goes on for as long again. We have not run it to the end.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 450_000
    config.batch_size = 512
    config.init.checkpoint = "runs/cifar10_edm"

    config.data.source = "cifar10"
    config.data.path = "cifar-10-python.tar.gz"
    config.data.held_out_split = "test"

    config.model.name = "ddpmpp"
    config.model.conditional = False
    config.model.dropout = 0.2
    config.model.augment_dim = 9  # of the EDM model it starts from; tuning gives it no labels

    config.objective.update(ROWS["tcm1"])  # t - r halves every 25,000 steps, nine times

    config.optimizer.name = "radam"
    config.optimizer.lr = 1e-4
    config.ema.profiles = ("constant:0.9999",)

    config.checkpoint.every_steps = 10_000
    config.sampling.every_steps = 10_000
    config.sampling.mid_times = (0.821,)
    return config
