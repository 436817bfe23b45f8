"""Our own safetensors give the same model again; what their metadata say is checked as any stranger's text."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.interop import export, import_model, read
from sct_jax.objectives.table import ROWS

SMALL = {"channels": 8, "channel_mult": (1, 2), "num_blocks": 1, "attention_resolutions": (4,)}
SPEC = DataSpec(8, 3, 2, 50, ("cat", "dog"), "float32")


def exported(path: Path, model: dict, spec: DataSpec = SPEC, method: str = "sct", **objective) -> config_lib.Config:
    """The config of a model with random weights that was exported to ``path``."""
    config = config_lib.default_config()
    config.model.update(model)
    config.objective.update(ROWS[method] | objective)
    config.sampling.mid_times = (0.7,)
    config = config_lib.validate(config)
    shapes = jax.eval_shape(models.build(config.model, spec).init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), shapes)
    export.write_weights(SimpleNamespace(config=config, spec=spec, params=params), path)
    return config


@pytest.mark.parametrize(
    "model",
    [
        SMALL | {"sigma_data": 0.3, "boundary": "sigma_min", "sigma_min": 0.004, "dropout": 0.2},
        SMALL | {"name": "adm", "time_scale": 1000.0, "boundary": "sigma_min", "conditional": True},
        SMALL
        | {"name": "edm2", "channels": 32, "attention_head_channels": 16, "channel_mult_embedding": 2}
        | {"resample_filter": (1, 3, 3, 1), "sigma_data": 0.7, "uncertainty_channels": 0},
        {"name": "film_mlp", "channels": 8, "num_blocks": 2, "conditional": True, "sigma_data": 0.3},
        SMALL | {"name": "adm", "time_scale": 3.0},
    ],
    ids=("ddpmpp", "adm", "edm2", "film_mlp", "an adm of nobody's"),
)
def test_an_export_imports_as_the_same_model(model, tmp_path):
    path = tmp_path / "model.safetensors"
    config = exported(path, model, phases=3, q=4.0)
    imported, spec, _, card = import_model(path)
    for room in ("model", "objective", "sampling"):
        assert imported[room].to_dict() == config[room].to_dict()
    assert (spec, card["source"]["notes"]) == (SPEC, [])


def test_the_user_knows_better_than_the_metadata_and_no_teacher_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    exported(path, SMALL | {"sigma_data": 0.3}, method="cd", teacher="somewhere/private")
    assert b"private" not in path.read_bytes()
    imported = read(path)
    assert (imported.objective_fields["method"], imported.objective_fields["teacher"]) == ("cd", "unknown")
    imported = read(path, method="edm")
    assert (imported.objective_fields["method"], imported.model_fields["sigma_data"]) == ("edm", 0.3)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata of an export."""
    path = tmp_path_factory.mktemp("export") / "model.safetensors"
    exported(path, SMALL)
    with safe_open(path, "numpy") as file:
        return load_file(path), file.metadata()


@pytest.mark.parametrize(
    ("entry", "text", "says"),
    [
        ("model", "{", "are no JSON"),
        ("model", "[" * 100_000, "are no JSON"),
        ("model", "9" * 100_000, "are no JSON"),
        ("model", "[]", "no JSON object"),
        ("model", '{"\\u001b[2J": 1}', r"'model\.\\x1b\[2J', which is no field"),
        ("model", '{"sigma_data": {"a": 1}}', "no value of a config for model.sigma_data"),
        ("model", '{"sigma_data": NaN}', "must be finite"),
        ("model", '{"sigma_data": "\\u001b[2J"}', "no value of a config"),
        ("model", '{"attention_head_channels": 0}', "must be >= 1"),
        ("objective", '{"teacher": "/etc/passwd"}', "no field of a config"),
        ("objective", '{"phases": 1e9}', "a whole number"),
        ("sampling", json.dumps({"mid_times": [0.1] * 65}), "no value of a config"),
        ("spec", '{"image_size": 8}', "describe no images"),
        ("spec", json.dumps({"image_size": 8, "channels": 3, "num_classes": 1e9, "num_examples": 0}), "no images"),
        (
            "spec",
            json.dumps({"image_size": 16, "channels": 3, "num_classes": 0, "num_examples": 0}),
            "image_size = 16, but its weights have 8",
        ),
        ("names", "sct_jax", "names are NVIDIA's"),
    ],
)
def test_metadata_that_export_would_not_write_are_refused(entry, text, says, plain, tmp_path):
    path, (arrays, metadata) = tmp_path / "model.safetensors", plain
    save_file(arrays, path, metadata | {entry: text})
    with pytest.raises(UserError, match=rf"model.safetensors: .*{says}") as caught:
        import_model(path)
    assert str(caught.value).isprintable()


def test_sizes_are_those_of_the_weights_whatever_the_metadata_say(plain, tmp_path):
    path, (arrays, metadata) = tmp_path / "model.safetensors", plain
    lies = json.loads(metadata["model"]) | {"num_blocks": 10**9, "channels": 10**9, "name": "edm2"}
    save_file(arrays, path, metadata | {"model": json.dumps(lies)})
    fields = read(path).model_fields
    assert (fields["num_blocks"], fields["channels"], fields["name"]) == (1, 8, "ddpmpp")


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"num_blocks": 10**9}, "model.num_blocks = 1000000000, for which its weights are too few"),
        ({"channels": 10**9}, "model.channels = 1000000000, for which its weights are too few"),
        ({"name": "ddpmpp", "channel_mult": [1] * 64}, "its weights are too few"),
        ({"channels": 16}, "another width"),
        ({"num_blocks": 1}, "blocks.1"),
    ],
)
def test_weights_by_our_own_names_are_no_fewer_than_the_metadata_say(lie, says, tmp_path):
    path = tmp_path / "model.safetensors"
    exported(path, {"name": "film_mlp", "channels": 8, "num_blocks": 2})
    with safe_open(path, "numpy") as file:
        arrays, metadata = load_file(path), file.metadata()
    save_file(arrays, path, metadata | {"model": json.dumps(json.loads(metadata["model"]) | lie)})
    with pytest.raises(UserError, match=says):
        import_model(path)


def test_what_our_own_names_say_is_not_overruled(tmp_path):
    path = tmp_path / "model.safetensors"
    exported(path, {"name": "film_mlp", "channels": 8, "num_blocks": 2})
    for options in ({"method": "edm"}, {"image_size": 16}):
        with pytest.raises(UserError, match="leave it out"):
            import_model(path, **options)
    assert import_model(path, method="sct", image_size=8)[1] == SPEC


@pytest.mark.parametrize(("method", "boundary"), [("ict", "sigma_min"), ("cd", "sigma_min"), ("ect", "zero")])
def test_what_is_assumed_of_mere_weights_is_noted(method, boundary, plain, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(plain[0], path)
    imported = read(path, method=method)
    assert imported.model_fields["boundary"] == boundary
    assert imported.model_fields.get("sigma_min", 0.002) == 0.002
    assert any(
        note.startswith(f"boundary is not in the file: taken as {boundary!r}") for note in imported.source["notes"]
    )
    shift = {"boundary": "sigma_min", "sigma_min": 0.003} if method == "ect" else {}
    assert {name: value for name, value in imported.sampling_fields.items() if name != "mid_times"} == shift


def test_the_verb_prints_the_notes_beside_its_output(plain, tmp_path, sct_jax_command):
    path, out = tmp_path / "model.safetensors", tmp_path / "out"
    save_file(plain[0], path)
    done = sct_jax_command("import", "--source", path, "--out", out, "--method", "ict")
    assert (done.status, done.out.strip()) == (0, str(out))
    assert "note: sigma_data is not in the file: taken as 0.5" in done.err
