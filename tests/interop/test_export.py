"""Exports: the originals' names to the letter, the same weights back, and a sampler that runs without this package."""

import functools
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

import sct_jax
from sct_jax import config as config_lib
from sct_jax import models, trees
from sct_jax.data import DataSpec
from sct_jax.interop import classes, export, names, own_names, stablehlo
from sct_jax.interop.imports import import_model
from sct_jax.model import Model
from sct_jax.objectives.table import ROWS
from sct_jax.training import checkpoint

GOLDEN = Path(__file__).parents[1] / "parity" / "golden"
MLP = {"name": "film_mlp", "channels": 8, "num_blocks": 1}


def make_config(fields, method="ect", **objective):
    config = config_lib.default_config()
    config.model.update(fields)
    config.objective.update(ROWS[method])
    config.objective.update(objective)
    config.ema.profiles = ("power:0.1",)
    return config_lib.validate(config)


def random_weights(config, spec, width=0.1):
    shapes = jax.eval_shape(models.build(config.model, spec).init, jax.random.key(0))
    draw = np.random.default_rng(0).normal
    return jax.tree.map(lambda leaf: np.float32(width * draw(size=leaf.shape)), shapes)


# Safetensors.


@functools.cache
def golden(name):
    """The config and data of a file made by the original, and the names and shapes of the original's state dict."""
    arrays = np.load(GOLDEN / f"{name}.npz")
    if "config" in arrays.files:
        fields = json.loads(str(arrays["config"]))
        size, channels, _ = (fields.pop(key) for key in ("image_size", "in_channels", "out_channels"))
        num_classes = fields.pop("label_dim", 0)
        fields |= {"name": "ddpmpp", "conditional": bool(num_classes)}
    else:
        fields = json.loads(str(arrays["model"]))
        spec = arrays["spec"]
        size, channels, num_classes = json.loads(str(spec)).values() if spec.ndim == 0 else spec.tolist()
    shapes = {key.partition("/")[2]: arrays[key].shape for key in arrays.files if key[:8] in ("weights/", "buffers/")}
    if "parameters" in arrays.files:
        shapes |= {key: tuple(shape) for key, shape in json.loads(str(arrays["parameters"])).items()}
    fields = {key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()}
    return make_config(fields), DataSpec(size, channels, num_classes, 1), shapes


@pytest.mark.parametrize(
    ("name", "repository", "network"),
    [
        ("edm_ddpmpp_conditional", "NVlabs/edm", "training.networks.EDMPrecond"),
        ("edm_ncsnpp", "NVlabs/edm", "training.networks.EDMPrecond"),
        ("ect_denoiser", "locuslab/ect", "training.networks.ECMPrecond"),
        ("adm_nvidia_conditional", "NVlabs/edm", "training.networks.EDMPrecond"),
        ("adm_openai_conditional", "openai/consistency_models", "cm.unet.UNetModel"),
        ("edm2_conditional", "NVlabs/edm2", "training.networks_edm2.Precond"),
    ],
)
def test_names_and_shapes_are_the_originals_and_the_weights_come_back(tmp_path, name, repository, network):
    config, spec, expected = golden(name)
    params = random_weights(config, spec)
    facts = export.write_weights(SimpleNamespace(config=config, spec=spec, params=params), tmp_path / "a.safetensors")
    assert (facts["names"], facts["class"]) == (repository, network)
    arrays = load_file(tmp_path / "a.safetensors")
    assert {key: value.shape for key, value in arrays.items()} == expected
    original = classes.original_of(config.model, spec)
    shapes = jax.tree.map(np.shape, params)
    constants = original.table.constants(config.model, spec)
    back, _, _ = names.import_params(original.table.entries(config.model, spec, shapes), arrays, shapes, constants)
    jax.tree.map(np.testing.assert_array_equal, back, params)


def test_the_file_says_what_it_holds(tmp_path):
    config, spec, _ = golden("ect_denoiser")
    model = SimpleNamespace(config=config, spec=spec, params=random_weights(config, spec))
    export.write_weights(model, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert (metadata["format"], metadata["class"]) == ("pt", "training.networks.ECMPrecond")
    kwargs = json.loads(metadata["kwargs"])
    assert {
        "model_type": "SongUNet",
        "img_resolution": 16,
        "label_dim": 0,
        "sigma_min": 0.003,
    }.items() <= kwargs.items()
    preconditioning = json.loads(metadata["preconditioning"])
    assert preconditioning == {"sigma_data": 0.5, "boundary": "sigma_min", "sigma_min": 0.003, "time_scale": 1.0}
    assert json.loads(metadata["model"])["channel_mult"] == [1, 2]
    _, _, imported, _ = import_model(tmp_path / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, imported, model.params)


def test_a_boundary_of_sampling_alone_is_that_of_the_originals_class(tmp_path):
    """ECT's class trains with boundary zero and shifts in evaluation; so does what is exported for it."""
    config, spec, _ = golden("edm_ddpmpp")
    config = config_lib.from_dict(config_lib.to_dict(config))
    config_lib._set(config, "sampling.boundary", "sigma_min")
    config_lib._set(config, "sampling.sigma_min", 0.003)
    facts = export.write_weights(
        SimpleNamespace(config=config, spec=spec, params=random_weights(config, spec)), tmp_path / "a.safetensors"
    )
    assert (facts["class"], facts["kwargs"]["sigma_min"]) == ("training.networks.ECMPrecond", 0.003)
    assert (facts["preconditioning"]["boundary"], facts["preconditioning"]["sigma_min"]) == ("sigma_min", 0.003)
    again = import_model(tmp_path / "a.safetensors")[0]
    assert (again.model.boundary, again.sampling.boundary, again.sampling.sigma_min) == ("zero", "sigma_min", 0.003)


def test_without_its_head_edm2_is_the_inner_network():
    config, spec, shapes = golden("edm2_conditional")
    config = config_lib.from_dict(config_lib.to_dict(config))
    with config.unlocked():
        config.model.uncertainty_channels = 0
    original = classes.original_of(config.model, spec)
    assert (original.name, original.preconditioned) == ("training.networks_edm2.UNet", False)
    arrays = classes.state_dict(config.model, spec, random_weights(config, spec))
    inner = {name.removeprefix("unet."): shape for name, shape in shapes.items() if name.startswith("unet.")}
    assert {name: value.shape for name, value in arrays.items()} == inner


def test_what_no_project_has_keeps_our_names():
    spec = DataSpec(4, 1, 0, 10)
    for fields in ({"name": "film_mlp"}, {"name": "adm", "time_scale": 3.0}):
        assert classes.original_of(make_config(fields).model, spec) is None
    config = make_config(MLP)
    params = random_weights(config, spec)
    arrays = classes.state_dict(config.model, spec, params)
    assert arrays["blocks.0.first.weight"].shape == (8, 8)
    jax.tree.map(np.testing.assert_array_equal, trees.nested(arrays), params)


# StableHLO.

# What a user writes: JAX alone, in another folder, as another process.
PROGRAM = """
import sys
import numpy as np
from jax import export
from safetensors.numpy import load_file

with open("sampler.stablehlo", "rb") as file:
    sampler = export.deserialize(bytearray(file.read()))
weights = load_file("sampler.safetensors")
index = np.arange(5, dtype=np.int32)
np.save("images.npy", sampler.call(weights, np.int32(3), index, index % 3))
foreign = {"sct_jax", "flax", "orbax", "ml_collections"} & set(sys.modules)
assert not foreign, foreign
"""


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A conditional consistency model on disk."""
    folder = tmp_path_factory.mktemp("models") / "run"
    config, spec = make_config(MLP | {"conditional": True}), DataSpec(4, 1, 3, 10)
    params = random_weights(config, spec)
    average = jax.tree.map(lambda leaf: leaf * np.float32(1.5), params)
    checkpoint.write_weights(folder, params, config, spec, 7, {"power:0.1": average})
    return folder


def make_model(method="ect", **objective):
    config, spec = make_config(MLP, method, **objective), DataSpec(4, 1, 0, 10, dtype="float32")
    return Model(config, spec, random_weights(config, spec, width=1.0))


def test_the_sampler_runs_without_this_package(sct_jax_command, workdir, tmp_path):
    out = tmp_path / "there" / "sampler.stablehlo"
    arguments = ("--checkpoint", workdir, "--format", "stablehlo", "--steps", 2, "--out", out)
    finished = sct_jax_command("export", *arguments)
    assert finished.status == 0, finished.err
    files = [out, out.with_suffix(".safetensors"), out.parent / "model_card.json"]
    assert finished.out.split() == [str(file) for file in files]
    run = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM], cwd=out.parent, capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    expected = sct_jax.load(workdir).sample(5, steps=2, seed=3, labels=[0, 1, 2])
    np.testing.assert_allclose(np.load(out.parent / "images.npy"), expected, rtol=0, atol=1e-5)
    assert np.unique(expected, axis=0).shape[0] == 5
    card = json.loads(files[2].read_text())
    assert (card["source"]["step"], card["source"]["ema_profile"]) == (7, "power:0.1")
    facts = card["export"]
    assert (facts["sampler"], facts["steps"], facts["times"]) == ("consistency", 2, [80.0, 0.821])
    assert len(facts["inputs"]) == 4
    same = sct_jax.load(files[1]).sample(5, steps=2, seed=3, labels=[0, 1, 2])  # the weights beside it are a model too
    np.testing.assert_array_equal(same, expected)


@pytest.mark.parametrize(
    ("method", "objective", "steps", "kind"),
    [
        ("sct", {"phases": 3}, 3, "phased"),
        pytest.param("edm", {}, 3, "diffusion", marks=pytest.mark.slow),
        pytest.param("ect", {}, 1, "consistency", marks=pytest.mark.slow),
    ],
)
def test_each_sampler_is_exported_for_any_batch_and_platform(method, objective, steps, kind):
    model = make_model(method, **objective)
    assert model.kind == kind
    program = jax.export.deserialize(bytearray(stablehlo.serialize(model, steps)))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert [str(aval) for aval in program.out_avals] == ["float32[b,4,4,1]"]
    weights = own_names.state_dict(model.params)
    expected = model.sample(5, steps=steps, seed=5)
    for index in ([0, 1, 2], [4, 2]):
        images = program.call(weights, np.int32(5), np.asarray(index, np.int32))
        np.testing.assert_allclose(images, expected[index], rtol=1e-5, atol=1e-5)
    assert np.abs(expected).max() > 1  # data of floats are not cut


def test_the_exported_sampler_has_the_boundary_of_sampling(tmp_path):
    config, spec = make_config(MLP), DataSpec(4, 1, 0, 10, dtype="float32")
    config = config_lib.with_boundary(config, "sigma_min", 20.0)
    model = Model(config, spec, random_weights(config, spec, width=1.0))
    facts = export.write_sampler(model, tmp_path / "a.stablehlo", 1)
    assert (facts["boundary"], facts["sigma_min"]) == ("sigma_min", 20.0)
    program = jax.export.deserialize(bytearray((tmp_path / "a.stablehlo").read_bytes()))
    images = program.call(own_names.state_dict(model.params), np.int32(5), np.arange(3, dtype=np.int32))
    np.testing.assert_allclose(images, model.sample(3, seed=5), rtol=1e-5, atol=1e-5)
    plain = Model(make_config(MLP), spec, model.params)
    assert np.abs(images - plain.sample(3, seed=5)).max() > 0.01


def test_the_program_holds_the_network_once_whatever_the_steps():
    model = make_model()
    one, four = (len(stablehlo.serialize(model, steps)) for steps in (1, 4))
    assert four < 1.6 * one


# The verb.


@pytest.mark.parametrize("profile", ["power:0.1", "raw"])
def test_the_verb_writes_weights_and_a_card_that_does_not_hide_another(sct_jax_command, workdir, tmp_path, profile):
    (tmp_path / "model_card.json").write_text('{"source": null}')
    out = tmp_path / "model.safetensors"
    arguments = ("--checkpoint", workdir, "--format", "safetensors", "--out", out, "--ema", profile)
    for _ in range(2):  # the second export takes the place of the first
        finished = sct_jax_command("export", *arguments)
        assert finished.status == 0, finished.err
        assert finished.out.split() == [str(out), str(tmp_path / "model.model_card.json")]
    assert json.loads((tmp_path / "model_card.json").read_text()) == {"source": None}
    card = json.loads((tmp_path / "model.model_card.json").read_text())
    assert card["source"]["ema_profile"] == profile
    params = sct_jax.load(workdir, profile).params
    jax.tree.map(np.testing.assert_array_equal, trees.nested(load_file(out)), jax.device_get(params))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--format", "onnx"), "--format onnx: must be one of safetensors, stablehlo"),
        (("--format", "safetensors", "--steps", "2"), "--steps belongs to --format stablehlo"),
        (("--format", "stablehlo", "--steps", "0"), "--steps 0: at least one step is needed"),
        (("--format", "stablehlo", "--out", "{tmp}/a.safetensors"), "name it .stablehlo"),
        (("--format", "safetensors", "--out", "{tmp}"), "it is a folder"),
        (("--format", "safetensors", "--out", "/proc/nowhere/a.safetensors"), "cannot write"),
        (("--format", "safetensors", "--ema", "power:0.2"), "has no EMA profile 'power:0.2'"),
        (("--format", "safetensors", "--checkpoint", "{tmp}/none"), "no checkpoint"),
        ((), "--format"),
    ],
    ids=str,
)
def test_a_wrong_call_is_one_line(sct_jax_command, workdir, tmp_path, arguments, complaint):
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    for option, value in (("--checkpoint", str(workdir)), ("--out", str(tmp_path / "out"))):
        given += [] if option in given else [option, value]
    assert complaint in sct_jax_command("export", *given).complaint
    assert list(tmp_path.iterdir()) == []


def test_weights_that_belong_to_no_program_are_not_written_over(sct_jax_command, workdir, tmp_path):
    (tmp_path / "sct.safetensors").write_bytes(b"others")
    out = ("--format", "stablehlo", "--out", tmp_path / "sct.stablehlo")
    finished = sct_jax_command("export", "--checkpoint", workdir, *out)
    assert finished.status == 2
    assert "choose another name" in finished.complaint
    assert (tmp_path / "sct.safetensors").read_bytes() == b"others"
