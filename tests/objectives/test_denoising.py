"""EDM pre-training: the weight, and the minimiser of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax.diffusion import process
from sct_jax.errors import UserError
from sct_jax.objectives import denoising
from sct_jax.objectives.distances import inverse_output_scale
from sct_jax.objectives.table import ROWS


def test_the_weight_undoes_the_output_scale():
    # λ(t) c_out(t)² = 1 (EDM, table 1)
    from sct_jax.diffusion.precondition import coefficients

    t = jnp.geomspace(0.002, 80, 30)
    np.testing.assert_allclose(inverse_output_scale(t, t, 0.5) * coefficients(t).c_out ** 2, 1.0, rtol=1e-5)


def test_the_posterior_mean_of_gaussian_data_minimises_the_loss():
    config = config_lib.default_config()
    config.objective.update(ROWS["edm"])
    images = 0.5 * jax.random.normal(jax.random.key(0), (20_000, 2, 2, 1))

    def shrink(factor, x, t, *args, **kwargs):
        return factor * x * 0.25 / (0.25 + process.per_image(t, x) ** 2)

    objective = denoising.build(config, shrink)
    draws = objective.draw(images, jnp.zeros(20_000, jnp.int32), jax.random.key(1), jnp.int32(0))
    mean = lambda f: float(objective.loss(jnp.float32(f), {}, draws, None)[0].mean())  # noqa: E731
    best = mean(1.0)
    assert best == pytest.approx(1.0, rel=0.03)  # λ(t) times the posterior variance is 1 at every t
    assert mean(0.9) > best
    assert mean(1.1) > best


def with_uncertainty():
    config = config_lib.default_config()
    config.objective.update(ROWS["edm"], uncertainty=True)
    return config


def test_the_uncertainty_that_minimises_the_loss_is_the_logarithm_of_the_loss_expected():
    config = with_uncertainty()
    zero = lambda params, x, *_, **__: 0 * x  # noqa: E731
    objective = denoising.build(config, zero, uncertainty=lambda params, t: params * jnp.ones_like(t))
    draws = objective.draw(jnp.ones((1, 2, 2, 1)), jnp.zeros(1, jnp.int32), jax.random.key(0), jnp.int32(0))
    config.objective.uncertainty = False
    expected = float(denoising.build(config, zero).loss(None, {}, draws, None)[0][0])
    config.objective.uncertainty = True
    loss = jax.jit(jax.value_and_grad(lambda u: objective.loss(u, {}, draws, None)[0][0]))
    assert loss(0.0)[0] == pytest.approx(expected)
    best = float(np.log(expected))
    assert loss(best)[0] == pytest.approx(1 + best)
    assert loss(best)[1] == pytest.approx(0, abs=1e-5)
    assert loss(best + 0.1)[1] > 0.05


def test_a_network_without_the_head_has_no_uncertainty():
    with pytest.raises(UserError, match="uncertainty_channels"):
        denoising.build(with_uncertainty(), None)
