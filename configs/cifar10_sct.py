"""Stable Consistency Tuning on CIFAR-10 (arXiv 2410.18958): ECT's settings with SCT's schedule and target.

    sct-jax train --config configs/cifar10_sct.py --workdir runs/cifar10_sct --config.init.checkpoint=runs/cifar10_edm

Class-conditional: add --config.model.conditional=True; a query then sees the images of its class only. Where the paper
leaves a value open, it is ECT's. We have not run it to the end.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 200_000
    config.batch_size = 128
    config.init.checkpoint = "runs/cifar10_edm"

    config.data.source = "cifar10"
    config.data.path = "cifar-10-python.tar.gz"
    config.data.held_out_split = "test"

    config.model.name = "ddpmpp"
    config.model.conditional = False
    config.model.dropout = 0.2
    config.model.augment_dim = 9  # of the EDM model it starts from; tuning gives it no labels

    config.objective.update(ROWS["sct"])  # t - r shrinks smoothly, by half in 25,000 steps
    config.reference.source = "dataset"  # the paper's best; a batch leaves CT's target up to t = 3

    config.optimizer.name = "radam"
    config.optimizer.lr = 1e-4
    config.ema.profiles = ("constant:0.9999", "constant:0.9993")

    config.checkpoint.every_steps = 10_000
    config.sampling.every_steps = 10_000
    config.sampling.mid_times = (0.821,)
    config.sampling.boundary = "sigma_min"  # ECT trains with boundary zero and evaluates with this shift
    config.sampling.sigma_min = 0.003
    return config
