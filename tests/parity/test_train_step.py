"""Training steps of EDM and ECT against the original PyTorch code, which make_golden_train_step.py ran.

The whole train step is compared, from the stored images to the EMA, given the original's random numbers. Two of its
conventions differ from ours. EDM's loss is a sum over the pixels, ours a mean: its gradients are ``H·W·C`` times ours.
Adam divides that out except in its ``eps``, so a recipe's ``eps`` is ours times ``H·W·C`` (on CIFAR-10, 3072). And the
original's learning rate starts its ramp at 0, ours a step later. The original puts zeros where a gradient is not
finite, where our loop stops.
"""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sct_jax import config as config_lib
from sct_jax import models, objectives
from sct_jax.data import DataSpec
from sct_jax.interop import edm_names, names
from sct_jax.objectives.table import ROWS
from sct_jax.training import mesh, step

GOLDEN = Path(__file__).parent / "golden"
STEPS = (1, 3)


class Case:
    """A golden file, and what our train step makes of it: the states after each of its steps, and the metrics."""

    def __init__(self, method: str):
        self.arrays = dict(np.load(GOLDEN / f"train_step_{method}.npz"))
        self.original = json.loads(str(self.arrays["config"]))
        self.pixels = self.arrays["images"][0].size
        size, classes = self.original["image_size"], self.original["num_classes"]
        self.spec = DataSpec(size, 3, classes, len(self.arrays["images"]))
        self.config = getattr(self, f"{method}_config")()
        self.network = models.build(self.config.model, self.spec)
        shapes = jax.tree.map(jnp.shape, jax.eval_shape(self.network.init, jax.random.key(0)))
        self.entries = edm_names.entries(self.config.model, self.spec, shapes)
        self.weights = self.params("weights")

    def params(self, name: str) -> dict:
        """One of the file's vectors as our parameters."""
        shapes = json.loads(str(self.arrays["parameters"]))
        ends = np.cumsum([int(np.prod(shape)) for _, shape in shapes])
        parts = np.split(self.arrays[name], ends[:-1])
        tensors = {key: part.reshape(shape) for (key, shape), part in zip(shapes, parts, strict=True)}
        return names.import_params(self.entries, tensors)[0]

    def common_config(self, method: str):
        config, original = config_lib.default_config(), self.original
        config.batch_size = len(self.arrays["images"])
        config.objective.update(ROWS[method])
        config.model.channels = original["model_channels"]
        config.model.channel_mult = tuple(original["channel_mult"])
        config.model.channel_mult_embedding = original["channel_mult_emb"]
        config.model.num_blocks = original["num_blocks"]
        config.model.attention_resolutions = tuple(original["attn_resolutions"])
        config.optimizer.lr = original["lr"]
        config.optimizer.eps = original["eps"]
        return config

    def edm_config(self):
        config, original = self.common_config("edm"), self.original
        config.model.conditional, config.model.augment_dim, config.data.augment = True, 9, 0.12
        config.optimizer.name = "adam"
        config.optimizer.eps = original["eps"] / self.pixels
        config.optimizer.ramp_steps = original["ramp_steps"]
        config.ema.profiles = (f"half_life:{original['half_life']}:{original['ema_ramp']}",)
        return config_lib.validate(config)

    def ect_config(self):
        config, original = self.common_config("ect"), self.original
        config.optimizer.name = "radam"
        config.objective.stage_steps = 10  # starting at step 10 below, the run is in its stage 1
        assert original["stage"] == 1
        config.ema.profiles = (f"constant:{original['ema_decay']}",)
        return config_lib.validate(config)

    def run(self, first_step: int, monkeypatch: pytest.MonkeyPatch):
        """Yields (state, metrics) after each step, all with the original's random numbers."""
        given = {self.arrays[name].shape: jnp.asarray(self.arrays[name]) for name in ("normal", "noise")}
        monkeypatch.setattr(jax.random, "normal", lambda key, shape: given[tuple(shape)])
        if "augment_labels" in self.arrays:
            told = jnp.asarray(self.arrays["augment_labels"])
            monkeypatch.setattr(step.augment, "draw", lambda key, count, probability: None)
            monkeypatch.setattr(step.augment, "apply", lambda images, parameters: images)
            monkeypatch.setattr(step.augment, "labels", lambda parameters: told)
        objective = objectives.build(self.config, self.network.denoise)
        device_mesh = mesh.make_mesh(1)
        train_step = jax.jit(step.make_train_step(self.config, objective, device_mesh))
        state = replace(step.initial_state(self.config, self.weights), step=jnp.int32(first_step))
        state = jax.device_put(state, mesh.replicated(device_mesh))
        labels = self.arrays.get("labels", np.zeros(len(self.arrays["images"])))
        batch = {"image": jnp.asarray(self.arrays["images"]), "label": jnp.asarray(labels, jnp.int32)}
        for _ in range(max(STEPS)):
            state, metrics = train_step(state, batch)
            yield state, metrics


@pytest.fixture(scope="module", params=["edm", "ect"])
def trained(request):
    case = Case(request.param)
    with pytest.MonkeyPatch.context() as monkeypatch:
        runs = list(case.run({"edm": 0, "ect": 10}[request.param], monkeypatch))
    return case, {"edm": case.pixels, "ect": 1}[request.param], runs


def difference(ours, theirs) -> float:
    """The norm of the difference over the norm, of the parameter where that is largest."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)


def test_loss_and_gradient_norm(trained):
    case, factor, runs = trained
    metrics = runs[0][1]
    assert factor * metrics["loss"] == pytest.approx(float(case.arrays["loss"]), rel=1e-5)
    assert factor * metrics["grad_norm"] == pytest.approx(float(case.arrays["grad_norm"]), rel=1e-5)


def test_gradients_of_every_parameter(trained):
    case, factor, runs = trained
    moment = optax.tree.get(runs[0][0].opt_state, "mu")  # after one update: (1 − β₁) times the gradient
    gradients = jax.tree.map(lambda mean: factor * np.asarray(mean) / (1 - case.config.optimizer.b1), moment)
    assert difference(gradients, case.params("gradients")) < 1e-4


@pytest.mark.parametrize("steps", STEPS)
def test_updates_and_their_average(trained, steps):
    case, _, runs = trained
    gradients = case.params("gradients")

    def moved(params: dict) -> dict:
        """The way from the first weights, where there is a gradient.

        The bias of attention's keys moves no output: its gradient is rounding, whose sign Adam follows all the same.
        """
        seen = jax.tree.map(lambda gradient: np.abs(gradient) > 1e-5 * np.abs(gradient).max(), gradients)
        return jax.tree.map(lambda new, old, there: (np.asarray(new) - old) * there, params, case.weights, seen)

    state = runs[steps - 1][0]
    average = state.ema[case.config.ema.profiles[0]]
    assert difference(moved(state.params), moved(case.params(f"params_{steps}"))) < 1e-3
    assert difference(moved(average), moved(case.params(f"ema_{steps}"))) < 1e-3
