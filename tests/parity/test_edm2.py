"""EDM2 against numbers made by the original PyTorch implementation, by make_golden_edm2.py.

Set SCT_JAX_GOLDEN to a folder to check other files of the same form, for example the published size S.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import models, objectives
from sct_jax.data import DataSpec
from sct_jax.diffusion.condition import Condition
from sct_jax.interop import edm2_names, names
from sct_jax.objectives.table import ROWS
from sct_jax.training import optimizer

HERE = Path(__file__).parent / "golden"
GOLDEN = Path(os.environ.get("SCT_JAX_GOLDEN", HERE))
FILES = sorted(GOLDEN.glob("edm2_*.npz"))
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these networks run in milliseconds and compile in seconds


class Case:
    """One golden file: its arrays, its config, its network, and the original's weights as our parameters."""

    def __init__(self, path: Path):
        self.arrays = dict(np.load(path))
        self.config = config_lib.default_config()
        self.config.objective.update(ROWS["edm"])
        for key, value in json.loads(str(self.arrays.pop("model"))).items():
            config_lib._set(self.config, f"model.{key}", value)
        config_lib.validate(self.config)
        size, channels, classes = self.arrays.pop("spec").tolist()
        self.spec = DataSpec(size, channels, classes, 1)
        self.network = models.build(self.config.model, self.spec)
        abstract = jax.eval_shape(self.network.init, jax.random.key(0))
        self.shapes = jax.tree.map(jnp.shape, abstract)
        self.table = edm2_names.entries(self.config.model, self.spec, self.shapes)
        self.params = self.ours("weights")

    def group(self, name: str) -> dict[str, np.ndarray]:
        prefix = f"{name}/"
        return {key.removeprefix(prefix): a for key, a in self.arrays.items() if key.startswith(prefix)}

    def ours(self, name: str, **options) -> dict:
        return names.import_params(self.table, self.group(name), self.shapes, **options)[0]

    def labels(self, name: str) -> np.ndarray | None:
        return self.arrays[name].astype(np.int32) if self.spec.num_classes else None


@pytest.fixture(params=FILES, ids=[path.stem for path in FILES], scope="module")
def case(request) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def with_loss() -> Case:
    return Case(HERE / "edm2_conditional.npz")


def largest_error(ours: jax.Array, theirs: np.ndarray) -> float:
    """The largest difference of a sample over the largest value of that sample, worst sample."""
    axes = tuple(range(1, theirs.ndim))
    return float((np.abs(np.asarray(ours) - theirs).max(axes) / np.abs(theirs).max(axes)).max())


def test_golden_files_are_there():
    assert FILES


def test_the_originals_weights_fill_our_parameters_exactly_and_come_back(case):
    assert jax.tree.map(jnp.shape, case.params) == case.shapes
    back = names.export_state_dict(case.table, case.params, edm2_names.constants(case.config.model, case.spec))
    assert back.keys() == case.group("weights").keys()
    assert all(np.array_equal(back[name], value) for name, value in case.group("weights").items())


def test_outputs_match(case):
    x, t, labels = case.arrays["x"], case.arrays["t"], case.labels("labels")
    network = case.network
    both = jax.jit(
        lambda p: (network.denoise(p, x, t, Condition(labels)), network.uncertainty(p, t)),
        compiler_options=FAST_COMPILE,
    )
    output, log_variance = both(case.params)
    assert largest_error(output, case.arrays["output"]) < 1e-5
    np.testing.assert_allclose(log_variance, case.arrays["log_variance"], rtol=1e-4)


def test_the_network_and_not_only_the_skip_is_compared(case):
    # At t = 0.01 the output is c_skip x to three digits; at 60 it is the network's alone.
    t = case.arrays["t"][-1]
    skipped = 0.25 / (t**2 + 0.25) * case.arrays["x"][-1]
    assert np.abs(skipped).max() < 0.1 * np.abs(case.arrays["output"][-1]).max()


def test_loss_and_gradients_match_but_for_the_number_of_pixels(with_loss):
    # The original sums over pixels where this project takes the mean; gradients are those in training, with respect to
    # weights that were just normalised. Blocks computed again in the backward pass must not change them.
    case, arrays = with_loss, with_loss.arrays
    case.config.objective.uncertainty = case.config.model.remat = True
    network = models.build(case.config.model, case.spec)
    objective = objectives.build(case.config, network.denoise, uncertainty=network.uncertainty)
    x_t = arrays["images"] + arrays["images_t"][:, None, None, None] * arrays["images_noise"]
    labels = case.labels("images_labels")
    draws = {"labels": labels, "t": arrays["images_t"], "x_t": x_t, "target": arrays["images"]}

    def mean_loss(params):
        losses, _ = objective.loss(params, {}, draws, None)
        return losses.mean(), losses

    gradient = jax.grad(mean_loss, has_aux=True)
    ours, losses = jax.jit(lambda p: gradient(network.project(p)), compiler_options=FAST_COMPILE)(case.params)
    np.testing.assert_allclose(losses, arrays["loss"], rtol=1e-4)
    theirs = case.ours("gradients", strict=False)
    for features in (ours["fourier"], ours["uncertainty"].pop("fourier")):
        assert not any(np.any(value) for value in features.values())
    del ours["fourier"]
    errors = jax.tree.map(lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)), ours, theirs)
    assert max(jax.tree.leaves(errors)) < 1e-3


def test_the_learning_rate_is_the_originals(with_loss):
    # It counts the images of finished steps, and so begins at 0; here the first step has a rate too.
    config = config_lib.load_config(Path(__file__).parents[2] / "configs" / "imagenet64_edm2.py")
    rate = optimizer.learning_rate(config.optimizer, config.total_steps)
    steps = with_loss.arrays["rates_images"] // config.batch_size
    ramp = steps < config.optimizer.ramp_steps
    ours = [float(rate(step - early)) for step, early in zip(steps, ramp, strict=True)]
    assert 2 < ramp.sum() < len(ramp) - 2
    np.testing.assert_allclose(ours, with_loss.arrays["rates"], rtol=2e-4)
