"""Denoisers against numbers made by the originals, with weights that are drawn alike there and here.

ADM as NVIDIA and OpenAI have it (make_golden_edm.py, make_golden_openai.py), with preconditioning, labels and the time
input; and ECT's denoiser in evaluation. Set SCT_JAX_GOLDEN to a folder to check other files of the same form, for
example the published ImageNet-64 size.
"""

import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn_weights import draw

from sct_jax import models
from sct_jax.config import default_config
from sct_jax.data import DataSpec
from sct_jax.diffusion.condition import Condition
from sct_jax.interop import edm_names, names, openai_names

GOLDEN = Path(os.environ.get("SCT_JAX_GOLDEN", Path(__file__).parent / "golden"))
FILES = [path for path in sorted(GOLDEN.glob("*.npz")) if {"parameters", "model"} <= {*np.load(path).files}]
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these networks run in milliseconds and compile in seconds


class Case:
    """One golden file: the network it describes, the table of its names, the original's state_dict."""

    def __init__(self, path: Path):
        self.arrays = dict(np.load(path))
        model = default_config().model
        for field, value in json.loads(str(self.arrays["model"])).items():
            model[field] = tuple(value) if isinstance(value, list) else value
        spec = DataSpec(**json.loads(str(self.arrays["spec"])), num_examples=0)
        self.network = models.build(model, spec)
        self.shapes = jax.tree.map(jnp.shape, jax.eval_shape(self.network.init, jax.random.key(0)))
        table = openai_names if "openai" in path.stem else edm_names
        self.entries = table.entries(model, spec, self.shapes)
        self.constants = table.constants(model, spec)
        buffers = {name.removeprefix("buffers/"): a for name, a in self.arrays.items() if name.startswith("buffers/")}
        self.state_dict = draw(json.loads(str(self.arrays["parameters"])), seed=0) | buffers
        self.prefix = "" if "openai" in path.stem else "model."

    def params(self) -> dict:
        return names.import_params(self.entries, self.state_dict, self.shapes, self.constants)[0]


@pytest.fixture(params=FILES, ids=[path.stem for path in FILES], scope="module")
def case(request) -> Case:
    return Case(request.param)


def test_golden_files_are_there():
    assert len(FILES) >= 5 or "SCT_JAX_GOLDEN" in os.environ


def test_the_originals_state_dict_comes_in_and_goes_out_as_it_was(case):
    params = case.params()
    assert jax.tree.map(jnp.shape, params) == case.shapes
    exported = names.export_state_dict(case.entries, params, case.constants, case.prefix)
    assert exported.keys() == case.state_dict.keys()
    for name, array in exported.items():
        np.testing.assert_array_equal(array, case.state_dict[name], strict=True, err_msg=name)


def test_denoisers_match(case):
    inputs = case.arrays["x"], case.arrays["t"], Condition(*map(case.arrays.get, ("labels", "augment_labels")))
    ours = np.asarray(jax.jit(case.network.denoise, compiler_options=FAST_COMPILE)(case.params(), *inputs))
    theirs, axes = case.arrays["output"], (1, 2, 3)
    difference, scale = np.abs(ours - theirs).max(axes), np.abs(theirs).max(axes)
    assert np.all(np.abs(theirs - case.arrays["x"]).max(axes)[1:] > 0.1 * scale[1:])  # the network has its say
    np.testing.assert_array_less(difference, 1e-5 * scale)
