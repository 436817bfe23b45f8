"""What a run shows of itself: grids and measurements with the boundary of sampling, not that of training."""

import jax
import jax.numpy as jnp
import numpy as np

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import open_source
from sct_jax.diffusion import precondition
from sct_jax.model import Model
from sct_jax.objectives.table import ROWS
from sct_jax.training import mesh, step
from sct_jax.training.observer import Observer


def test_samples_while_training_are_those_of_the_trained_model(tmp_path):
    """With ECT's evaluation, a shift that training does not have; a large one, to see it."""
    config = config_lib.default_config()
    config.model.update({"name": "film_mlp", "channels": 8, "num_blocks": 1})
    config.objective.update(ROWS["ect"])
    config = config_lib.with_boundary(config, "sigma_min", 20.0)
    source, device_mesh = open_source("digits", "", split="all", image_size=0), mesh.make_mesh(1)
    network = models.build(config.model, source.spec)
    params = jax.tree.map(lambda p: 8 * p + 0.05, jax.jit(network.init)(jax.random.key(0)))
    state = step.initial_state(config, params)
    observer = Observer(config, tmp_path, network, source, device_mesh)
    samples = observer.samples(state, 4, 1)
    model = Model(config, source.spec, params)
    np.testing.assert_allclose(samples, model.sample(4), atol=1e-5)
    x, t = jax.random.normal(jax.random.key(1), (4, 8, 8, 1)), jnp.full(4, 20.0)
    np.testing.assert_allclose(observer._denoise(params, x, t), x, atol=1e-5)  # the identity at the shift
    c = precondition.coefficients(t, 0.5)
    assert np.abs(network.denoise(params, x, t) - x).max() > 0.5 * float(c.c_out[0])  # training's is not
