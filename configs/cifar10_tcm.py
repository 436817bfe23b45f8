"""Truncated consistency models on CIFAR-10, stage 2 (arXiv 2410.14895), from the run of ``cifar10_tcm1.py``.

    sct-jax train --config configs/cifar10_tcm.py --workdir runs/cifar10_tcm --config.data.path=cifar-10-python.tar.gz

Stage 1 answers below noise level 1; this model is trained, and sampled, from there up. Published, unconditional: FID
2.46 in one step and 2.05 in two. The authors' text has 512 images a step, their command 1024, and as many as 3,000,000
steps. We have not run it to the end.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 200_000
    config.batch_size = 1024
    config.init.checkpoint = "runs/cifar10_tcm1"

    config.data.source = "cifar10"
    config.data.path = "cifar-10-python.tar.gz"
    config.data.held_out_split = "test"

    config.model.name = "ddpmpp"
    config.model.conditional = False
    config.model.dropout = 0.2
    config.model.augment_dim = 9  # of the EDM model it starts from; tuning gives it no labels

    config.objective.update(ROWS["tcm"])
    config.objective.stage1 = "runs/cifar10_tcm1"

    config.optimizer.name = "radam"
    config.optimizer.lr = 5e-5
    config.ema.profiles = ("constant:0.9999",)

    config.checkpoint.every_steps = 10_000
    config.sampling.every_steps = 10_000
    config.sampling.mid_times = (1.0,)  # not lower: that is stage 1's
    return config
