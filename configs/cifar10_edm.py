"""EDM pre-training on CIFAR-10 with the published settings (arXiv 2206.00364, table 7): 200 million images.

    sct-jax train --config configs/cifar10_edm.py --workdir runs/cifar10_edm --config.data.path=cifar-10-python.tar.gz

Class-conditional: add --config.model.conditional=True. Expect an unconditional FID of 1.97 with 35 evaluations from the
published recipe; we have not run it.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 390_625  # of 512 images
    config.batch_size = 512

    config.data.source = "cifar10"
    config.data.path = "cifar-10-python.tar.gz"
    config.data.held_out_split = "test"
    config.data.augment = 0.12

    # DDPM++: the schema's defaults are its CIFAR-10 shape, 55.7 M parameters. NCSN++: embedding="fourier",
    # encoder="residual", resample_filter=(1, 3, 3, 1), channel_mult_noise=2.
    config.model.name = "ddpmpp"
    config.model.conditional = False
    config.model.dropout = 0.13
    config.model.augment_dim = 9

    config.objective.update(ROWS["edm"])

    config.optimizer.name = "adam"
    config.optimizer.lr = 1e-3
    # The original's loss is a sum over the 3 * 32 * 32 values of an image, ours a mean: Adam's eps is divided, so that
    # its updates are the same.
    config.optimizer.eps = 1e-8 / 3072
    config.optimizer.ramp_steps = 19_531  # 10 million images
    config.ema.profiles = ("half_life:500000:0.05",)

    config.checkpoint.every_steps = 10_000
    config.sampling.steps = (18,)
    config.sampling.every_steps = 10_000
    return config
