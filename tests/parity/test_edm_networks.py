"""The networks against numbers made by the original PyTorch implementation, by make_golden_edm.py.

Set SCT_JAX_GOLDEN to a folder to check other files of the same form, for example the published CIFAR-10 size.
"""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sct_jax.interop import edm_names, names
from sct_jax.models.ddpmpp import DDPMpp

GOLDEN = Path(os.environ.get("SCT_JAX_GOLDEN", Path(__file__).parent / "golden"))
FILES = [path for path in sorted(GOLDEN.glob("edm_*.npz")) if "network_output" in np.load(path).files]
SIGMA_DATA = 0.5
FAST_COMPILE = {"xla_backend_optimization_level": 0}  # these networks run in milliseconds and compile in seconds


class Case:
    """One golden file: its arrays, its network's graph and the original's weights as our parameters."""

    def __init__(self, path: Path):
        self.arrays = dict(np.load(path))
        config = json.loads(str(self.arrays.pop("config")))
        abstract = nnx.eval_shape(lambda: DDPMpp(rngs=nnx.Rngs(0), **config))
        self.graph, state = nnx.split(abstract)
        self.shapes = jax.tree.map(jnp.shape, nnx.to_pure_dict(state))
        self.model = SimpleNamespace(name="ddpmpp", **{"encoder": "standard", "resample_filter": (1, 1), **config})
        self.entries = edm_names.entries(self.model, self.model, self.shapes)
        self.constants = edm_names.constants(self.model, self.model)
        self.params = self.imported(self.group("weights"))

    def group(self, name: str) -> dict[str, np.ndarray]:
        prefix = f"{name}/"
        return {key.removeprefix(prefix): a for key, a in self.arrays.items() if key.startswith(prefix)}

    def imported(self, arrays: dict[str, np.ndarray]) -> dict:
        """The original's arrays in our tree; filters of layers without parameters ("skip") have no entry here."""
        arrays = {name: array for name, array in arrays.items() if not re.search(r"aux_(up|down)\.", name)}
        return names.import_params(self.entries, arrays, self.shapes, self.constants)[0]

    def outputs(self, params: dict) -> tuple[jax.Array, jax.Array]:
        """The raw output F and the EDM denoiser c_skip x + c_out F (Karras et al. 2022, table 1)."""
        x, t = self.arrays["x"], self.arrays["t"]
        t4 = t[:, None, None, None]
        scale = np.sqrt(t4**2 + SIGMA_DATA**2)
        network = nnx.merge(self.graph, params)
        raw = network(x / scale, np.log(t) / 4, self.arrays.get("labels"), self.arrays.get("augment_labels"))
        return raw, (SIGMA_DATA / scale) ** 2 * x + t4 * SIGMA_DATA / scale * raw


@pytest.fixture(params=FILES, ids=[path.stem for path in FILES], scope="module")
def case(request) -> Case:
    return Case(request.param)


def largest_error(ours: jax.Array, theirs: np.ndarray) -> float:
    """The largest difference of a sample over the largest value of that sample, worst sample."""
    axes = tuple(range(1, theirs.ndim))
    return float((np.abs(np.asarray(ours) - theirs).max(axes) / np.abs(theirs).max(axes)).max())


def test_golden_files_are_there():
    assert FILES


def test_the_originals_weights_fill_our_parameters_exactly(case):
    assert jax.tree.map(jnp.shape, case.params) == case.shapes


def test_the_export_is_the_originals_state_dict(case):
    original = {name: a for name, a in case.group("weights").items() if not re.search(r"aux_(up|down)\.", name)}
    exported = names.export_state_dict(case.entries, case.params, case.constants, prefix="model.")
    assert exported.keys() == original.keys()
    for name, array in exported.items():
        np.testing.assert_array_equal(array, original[name], strict=True, err_msg=name)


def test_outputs_match(case):
    raw, output = jax.jit(case.outputs, compiler_options=FAST_COMPILE)(case.params)
    assert largest_error(raw, case.arrays["network_output"]) < 1e-5
    assert largest_error(output, case.arrays["output"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in FILES if path.stem == "edm_ncsnpp"], ids=lambda path: path.stem)
def test_gradients_match(path):
    case = Case(path)
    gradients = names.without_prefix(case.group("gradients"))
    theirs = names.import_params(case.entries, gradients, case.shapes, strict=False)[0]
    cotangent = case.arrays["cotangent"]
    gradient = jax.grad(lambda params: (case.outputs(params)[1] * cotangent).sum())
    ours = jax.jit(gradient, compiler_options=FAST_COMPILE)(case.params)
    if "map_noise" in ours:
        frequencies = ours.pop("map_noise")["frequencies"]
        np.testing.assert_array_equal(frequencies, 0)
    errors = jax.tree.map(lambda a, b: float(np.linalg.norm(a - b) / np.linalg.norm(b)), ours, theirs)
    assert max(jax.tree.leaves(errors)) < 1e-4
