"""Weights of a network with fewer inputs: what may be missing, and that nothing else may."""

import jax
import numpy as np
import pytest

import sct_jax
from sct_jax import config as config_lib
from sct_jax import models, trees
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.interop import classes, export, import_model, weights
from sct_jax.training import checkpoint

SPEC = DataSpec(8, 1, 4, 64)
SMALL = {"channels": 8, "num_blocks": 1, "channel_mult": (1,), "attention_resolutions": (), "conditional": True}


def make_config(name="film_mlp", **fields):
    config = config_lib.default_config()
    config.model.update({"name": name, "attention_head_channels": 8, **SMALL, **fields})
    return config


def found(config, seed=0, drop=()):
    """Large random weights of a config, as if read."""
    shapes = jax.eval_shape(models.build(config.model, SPEC).init, jax.random.key(0))
    draw = np.random.default_rng(seed).standard_normal
    params = jax.tree.map(lambda leaf: np.float32(0.3 * draw(leaf.shape)), shapes)
    params = {part: value for part, value in params.items() if part not in drop}
    return weights.Weights(config, SPEC, params, 7, "raw", "the/weights", None)


def start(one, config):
    init = lambda: models.build(config.model, SPEC).init(jax.random.key(5))  # noqa: E731
    return weights.start_from(one, jax.eval_shape(init), config.model, init)


@pytest.mark.parametrize("name", ["film_mlp", "edm2"])
def test_new_inputs_start_as_a_fresh_networks_and_the_rest_as_it_was(name):
    one, config = found(make_config(name)), make_config(name, target_time=True, guidance_input=True)
    params = start(one, config)
    fresh = models.build(config.model, SPEC).init(jax.random.key(5))
    assert params.keys() - one.params.keys() == {"map_target", "map_guidance"}
    for part, value in params.items():
        jax.tree.map(np.testing.assert_array_equal, value, one.params.get(part, fresh[part]))
    trained = found(config)  # what has the inputs keeps them
    jax.tree.map(np.testing.assert_array_equal, start(trained, config), trained.params)


def test_nothing_else_may_be_missing():
    config = make_config(target_time=True)
    with pytest.raises(UserError, match=r"another architecture \(2 differences: it lacks leave/bias\)"):
        start(found(make_config(), drop=("leave",)), config)
    broken = found(config)
    broken.params["map_target"] = {}
    with pytest.raises(UserError, match="it lacks map_target/kernel"):
        start(broken, config)


@pytest.mark.parametrize("field", ["target_time", "guidance_input"])
def test_a_network_without_the_input_does_not_start_from_one_that_has_it(field):
    with pytest.raises(UserError, match=rf"the/weights .* model.{field} = True, and this one has False: set config"):
        start(found(make_config(**{field: True})), make_config())


def test_a_config_of_two_times_does_not_sample_weights_of_one(tmp_path):
    config = make_config(target_time=True)
    checkpoint.write_weights(tmp_path / "run", found(make_config()).params, config, SPEC)
    with pytest.raises(UserError, match=r"model\.target_time = False, and this one has True") as caught:
        sct_jax.load(tmp_path / "run")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["ddpmpp", "edm2"])
def test_a_two_time_network_is_exported_under_our_names_and_comes_back(name, tmp_path):
    """No class of another project takes its weights."""
    config = make_config(name, target_time=True)
    trained = found(config)
    checkpoint.write_weights(tmp_path / "run", trained.params, config, SPEC)
    export.export_checkpoint(tmp_path / "run", "safetensors", tmp_path / "model.safetensors")
    again, _, params, _ = import_model(tmp_path / "model.safetensors")
    assert again.model.target_time
    assert classes.original_of(config.model, SPEC) is None
    assert classes.original_of(make_config(name).model, SPEC) is not None
    for path, leaf in trees.flat(trained.params).items():
        np.testing.assert_array_equal(trees.flat(params)[path], leaf)
