"""Where a run begins: from the weights of a network with fewer inputs."""

import jax
import numpy as np

import sct_jax
from sct_jax import config as config_lib
from sct_jax import objectives
from sct_jax.training import start


def test_a_run_of_two_times_starts_from_a_run_of_one(tiny_run, monkeypatch):
    """As soon as a method trains the input; the state that it starts from is the same function, and has the part."""
    monkeypatch.setattr(objectives, "INPUT_METHODS", {"target_time": ("sct",)})
    before = sct_jax.load(tiny_run)
    config = config_lib.from_dict(config_lib.to_dict(before.config))
    config_lib._set(config, "model.target_time", True)
    config_lib._set(config, "init.checkpoint", str(tiny_run))
    made, _ = start.assembled(config_lib.validate(config))
    state, found = start.first_state(made)
    assert found.step == 4
    for tree in (state.params, state.ema["constant:0.9"]):
        assert not np.any(tree["map_target"]["kernel"])
        rest = {part: value for part, value in tree.items() if part != "map_target"}
        jax.tree.map(np.testing.assert_array_equal, rest, before.params)
