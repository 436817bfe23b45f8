"""Consistency distillation of an EDM model on CIFAR-10 (arXiv 2303.01469): 18 levels, the teacher's Heun steps.

    sct-jax train --config configs/cifar10_cd.py --workdir runs/cifar10_cd --config.data.path=cifar-10-python.tar.gz

Teacher and initial weights are the run of ``cifar10_edm.py`` at runs/cifar10_edm. Published, unconditional: FID 3.55 in
one step and 2.93 in two, with LPIPS as the distance. Its weights are to be brought (README); then add
--config.objective.distance=lpips [--config.objective.lpips=FOLDER]. Without it the distance is L2, with which the
paper's models are worse (its fig. 3). We have not run it to the end.
"""

from sct_jax.config import Config, default_config
from sct_jax.objectives.table import ROWS


def get_config() -> Config:
    config = default_config()
    config.total_steps = 800_000
    config.batch_size = 512
    config.init.checkpoint = "runs/cifar10_edm"

    config.data.source = "cifar10"
    config.data.path = "cifar-10-python.tar.gz"
    config.data.held_out_split = "test"
    config.data.flip = True  # as openai/consistency_models_cifar10

    # The network of cifar10_edm.py. The published teacher is an NCSN++: train it, and this, with its options as in
    # cifar10_ct.py.
    config.model.name = "ddpmpp"
    config.model.conditional = False
    config.model.dropout = 0.0
    config.model.augment_dim = 9  # of the EDM model it starts from; tuning gives it no labels
    config.model.boundary = "sigma_min"

    config.objective.update(ROWS["cd"])
    config.objective.teacher = "runs/cifar10_edm"
    config.objective.bootstrap = "online"  # mu = 0 on CIFAR-10 (openai/consistency_models_cifar10), 0.95 on ImageNet-64

    config.optimizer.name = "radam"
    config.optimizer.lr = 4e-4
    config.ema.profiles = ("constant:0.9999",)

    config.checkpoint.every_steps = 10_000
    config.sampling.every_steps = 10_000
    config.sampling.mid_times = (0.821,)  # iCT's; CM searches for its own
    return config
