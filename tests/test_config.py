"""Configs: what loads, what overrides mean, and that a mistake is answered with the field and the way out."""

import json
import re
import sys
from pathlib import Path

import jax
import pytest

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.objectives.table import ROWS
from sct_jax.schema import SCHEMA

CONFIG_FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))


@pytest.fixture
def config_file(tmp_path):
    """``config_file("config.seed = 1")``: the path of a config with these lines in ``get_config()``."""

    def write(*lines):
        path = tmp_path / "experiment.py"
        body = "\n    ".join(["config = default_config()", *lines, "return config"])
        path.write_text(f"from sct_jax.config import default_config\n\n\ndef get_config():\n    {body}\n")
        return path

    return write


def overridden(**overrides):
    """A validated default config with fields set, ``model__channels=8`` for ``model.channels``."""
    config = config_lib.default_config()
    for key, value in overrides.items():
        room, _, name = key.rpartition("__")
        (config[room] if room else config)[name] = value
    return config_lib.validate(config)


def complaint(function, *arguments, **overrides):
    with pytest.raises(UserError) as raised:
        function(*arguments, **overrides)
    message = str(raised.value)
    assert "\n" not in message
    return message


# The schema and what is built from it.


@pytest.mark.parametrize("key", SCHEMA)
def test_every_field_is_explained_and_its_default_allowed(key):
    field = SCHEMA[key]
    assert len(field.help) > 5
    for value in field.default if isinstance(field.default, tuple) else [field.default]:
        assert type(value) in (int, float, bool, str)
        assert not field.choices or value in field.choices
        if field.low is not None:
            assert value >= field.low or (key, value) == ("mesh.data", -1)
        if field.high is not None:
            assert value <= field.high
        if field.above is not None:
            assert value > field.above


def test_the_defaults_are_valid_and_complete():
    config = config_lib.validate(config_lib.default_config())
    assert config_lib.flatten(config).keys() == SCHEMA.keys()
    assert config.optimizer.lr == SCHEMA["optimizer.lr"].default


def test_the_reference_names_every_field():
    text = config_lib.describe_schema()
    for key, field in SCHEMA.items():
        assert f"{key} = {field.default!r}" in text
        assert field.help in text


def test_there_are_configs():
    assert {"digits_edm.py", "digits_sct.py"} <= {path.name for path in CONFIG_FILES}


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: path.stem)
def test_every_config_loads_locked_and_names_its_command(path):
    config = config_lib.load_config(path)
    assert config.is_locked
    with pytest.raises((AttributeError, KeyError)):
        config.optimizer.learning_rate = 1.0
    command = re.search(r"sct-jax train --config (\S+)", path.read_text(encoding="utf-8"))
    assert command, "the docstring has no command"
    assert command[1] == f"configs/{path.name}"


CONFIGS = CONFIG_FILES[0].parent


def differing_fields(*names):
    one, other = (config_lib.flatten(config_lib.load_config(CONFIGS / f"{name}.py")) for name in names)
    return {key for key in SCHEMA if one[key] != other[key]}


@pytest.mark.parametrize("data", ["cifar10", "imagenet64"])
def test_sct_differs_from_ect_in_nothing_but_what_makes_it_sct(data):
    fields = differing_fields(f"{data}_ect", f"{data}_sct")
    what_makes_it = ("method", "schedule", "transition", "ratio_limit")  # TCM's cap; ECT has none
    assert fields == {f"objective.{name}" for name in what_makes_it} | {"reference.source"}


def test_tuned_models_have_the_network_they_start_from():
    free = {"model.dropout", "model.dropout_max_resolution", "model.compute_dtype", "model.boundary"}
    for tuned, start in (("imagenet64_ect", "imagenet64_edm2"), ("cifar10_cd", "cifar10_edm")):
        assert {key for key in differing_fields(tuned, start) if key.startswith("model.")} <= free
        assert config_lib.load_config(CONFIGS / f"{tuned}.py").init.checkpoint == f"runs/{start}"


@pytest.mark.parametrize(
    ("name", "images"), [("cifar10_ct", 409.6), ("cifar10_ict", 409.6), ("imagenet64_edm2", 2**30 / 1e6)]
)
def test_published_lengths_of_training(name, images):
    config = config_lib.load_config(CONFIGS / f"{name}.py")
    assert config.total_steps * config.batch_size / 1e6 == pytest.approx(images)  # millions


def test_imagenet_starts_from_edm2_of_size_s():
    config = config_lib.load_config(CONFIGS / "imagenet64_edm2.py")
    network = models.build(config.model, DataSpec(64, 3, 1000, 1))
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 280_210_021  # the original's, buffers included
    assert config.objective.uncertainty


def test_a_config_survives_json():
    config = overridden(model__channel_mult=(1, 2, 3), optimizer__lr=3e-4, ema__profiles=("constant:0.5",), seed=7)
    back = config_lib.from_dict(json.loads(json.dumps(config_lib.to_dict(config))))
    assert back.to_dict() == config.to_dict()
    assert back.model.channel_mult == (1, 2, 3)  # a tuple again
    assert back.is_locked


def test_an_older_config_takes_the_default_of_newer_fields():
    values = config_lib.to_dict(config_lib.default_config())
    values["seed"] = 5
    del values["optimizer"]["clip_norm"]
    back = config_lib.from_dict(values)
    assert (back.seed, back.optimizer.clip_norm) == (5, SCHEMA["optimizer.clip_norm"].default)


def test_a_config_of_a_newer_version_is_refused_by_name():
    values = config_lib.to_dict(config_lib.default_config())
    values["optimizer"]["momentum_of_the_future"] = 1.0
    assert "optimizer.momentum_of_the_future" in complaint(config_lib.from_dict, values)


# Overrides.


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("total_steps", "12", 12),
        ("total_steps", "400_000", 400_000),
        ("seed", "0", 0),
        ("optimizer.lr", "1e-4", 1e-4),
        ("optimizer.lr", "1", 1.0),
        ("objective.time_mean", "-0.8", -0.8),
        ("data.flip", "True", True),
        ("data.flip", "false", False),
        ("data.flip", "1", True),
        ("data.path", "some/where=odd", "some/where=odd"),
        ("init.checkpoint", "", ""),
        ("model.channel_mult", "1,2,4", (1, 2, 4)),
        ("model.channel_mult", "(2, 2)", (2, 2)),
        ("model.channel_mult", "[3]", (3,)),
        ("sampling.mid_times", "1,0.5", (1.0, 0.5)),
        ("ema.profiles", "constant:0.99,half_life:500000:0.05", ("constant:0.99", "half_life:500000:0.05")),
    ],
)
def test_overrides_have_the_fields_type(config_file, key, text, value):
    config = config_lib.load_config(config_file(), {key: text})
    found = config_lib.flatten(config)[key]
    assert found == value
    assert type(found) is type(value)
    if isinstance(value, tuple):
        assert [type(item) for item in found] == [type(item) for item in value]


def test_an_override_wins_over_the_file(config_file):
    path = config_file("config.optimizer.lr = 0.5", "config.seed = 3")
    config = config_lib.load_config(path, {"optimizer.lr": "0.25"})
    assert (config.optimizer.lr, config.seed) == (0.25, 3)


def test_a_whole_number_in_a_file_becomes_the_float_it_stands_for(config_file):
    config = config_lib.load_config(config_file("config.optimizer.lr = 1", "config.sampling.mid_times = (2, 1)"))
    assert type(config.optimizer.lr) is float
    assert config.sampling.mid_times == (2.0, 1.0)
    assert {type(t) for t in config.sampling.mid_times} == {float}


@pytest.mark.parametrize(
    ("key", "suggested"),
    [
        ("optimizer.lrr", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("lr", "optimizer.lr"),
        ("model.lr", "optimizer.lr"),
        ("batchsize", "batch_size"),
        ("objective.stagesteps", "objective.stage_steps"),
        ("model.batch_size", "batch_size"),
    ],
)
def test_an_unknown_key_suggests_the_right_one(config_file, key, suggested):
    message = complaint(config_lib.load_config, config_file(), {key: "1"})
    assert f"config.{key}" in message
    assert re.search(rf"did you mean config\.{re.escape(suggested)}\?", message)


def test_a_key_like_no_other_points_to_the_list(config_file):
    message = complaint(config_lib.load_config, config_file(), {"zzz": "1"})
    assert "config.zzz" in message
    assert "--help-config" in message


def test_a_room_is_not_a_field(config_file):
    assert "config.optimizer" in complaint(config_lib.load_config, config_file(), {"optimizer": "adam"})


@pytest.mark.parametrize(
    ("key", "text", "allowed"),
    [
        ("batch_size", "many", "whole number"),
        ("batch_size", "12.5", "whole number"),
        ("optimizer.lr", "fast", "a number"),
        ("data.flip", "perhaps", "True or False"),
        ("model.channel_mult", "2,x", "whole number"),
    ],
)
def test_a_wrong_type_names_field_value_and_what_is_allowed(config_file, key, text, allowed):
    message = complaint(config_lib.load_config, config_file(), {key: text})
    assert f"config.{key}" in message
    assert text in message
    assert allowed in message


# Values.


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("total_steps", 0, ">= 1"),
        ("seed", -1, ">= 0"),
        ("optimizer.lr", 0.0, "> 0"),
        ("optimizer.b1", 1.0, "<= 0.99999"),
        ("optimizer.lr", float("nan"), "finite"),
        ("objective.time_mean", float("inf"), "finite"),
        ("objective.q", 1.0, "> 1"),
        ("model.dropout", 1.5, "<= 0.99"),
        ("model.channel_mult", (2, 0), ">= 1"),
        ("sampling.steps", (0,), ">= 1"),
    ],
)
def test_out_of_range_names_field_value_and_range(key, value, allowed):
    message = complaint(overridden, **{key.replace(".", "__"): value})
    assert f"config.{key}" in message
    assert str(value[-1] if isinstance(value, tuple) else value) in message
    assert allowed in message


@pytest.mark.parametrize("key", [key for key, field in SCHEMA.items() if isinstance(field.default, tuple)])
def test_an_empty_list_is_accepted_only_where_it_means_something(key):
    if key in ("model.attention_resolutions", "sampling.mid_times", "checkpoint.keep_fractions"):
        assert config_lib.flatten(overridden(**{key.replace(".", "__"): ()}))[key] == ()
    else:
        assert f"config.{key}" in complaint(overridden, **{key.replace(".", "__"): ()})


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [("objective.method", "sctt", "sct"), ("optimizer.name", "adamm", "adam"), ("data.source", "cifar", "cifar10")],
)
def test_a_wrong_choice_lists_the_choices_and_suggests_one(key, value, near):
    message = complaint(overridden, **{key.replace(".", "__"): value})
    assert f"config.{key}" in message
    assert all(repr(choice) in message for choice in SCHEMA[key].choices)
    assert f"did you mean '{near}'?" in message


@pytest.mark.parametrize(
    "profile",
    [
        "0.999",
        "constant",
        "constant:1",
        "constant:x",
        "constant:0.9:0.1",
        "half_life",
        "half_life:0",
        "power:0.5",
        "linear:0.9",
        "",
    ],
)
def test_a_profile_outside_the_grammar_is_shown_the_grammar(profile):
    message = complaint(overridden, ema__profiles=("constant:0.9", profile))
    assert repr(profile) in message
    assert "constant:DECAY" in message
    assert "half_life:IMAGES[:RAMP]" in message
    assert "power:STD" in message


# Relations between fields.


def test_accumulation_must_divide_the_batch():
    message = complaint(overridden, batch_size=10, optimizer__accumulate=4)
    assert "batch_size = 10" in message
    assert "optimizer.accumulate = 4" in message
    assert overridden(batch_size=12, optimizer__accumulate=4).batch_size == 12


@pytest.mark.parametrize(("key", "value"), [("t_min", 90.0), ("mid_times", (1.0, 80.0))])
def test_sampling_levels_lie_below_the_start(key, value):
    message = complaint(overridden, **{f"sampling__{key}": value})
    assert f"sampling.{key}" in message
    assert "80" in message


@pytest.mark.parametrize(("method", "network"), [("edm", "ddpmpp"), ("ect", "edm2")])
def test_the_uncertainty_of_the_loss_is_edm2s_in_pre_training(method, network):
    row = {f"objective__{key}": value for key, value in ROWS[method].items()}
    message = complaint(overridden, **row, objective__uncertainty=True, model__name=network)
    assert "config.objective.uncertainty" in message
    assert f"{network!r} and {method!r}" in message


def test_the_boundary_of_sampling_is_that_of_training_unless_it_is_set():
    """Also of configs that were written before there was one."""
    shifted = {"model__boundary": "sigma_min", "model__sigma_min": 0.004}
    for fields, expected in (
        ({}, ("zero", 0.002)),
        (shifted, ("sigma_min", 0.004)),
        ({"sampling__boundary": "sigma_min"}, ("sigma_min", 0.002)),
        ({"sampling__boundary": "sigma_min", "sampling__sigma_min": 0.003}, ("sigma_min", 0.003)),
        (shifted | {"sampling__sigma_min": 0.003}, ("sigma_min", 0.003)),
        (shifted | {"sampling__boundary": "zero", "sampling__sigma_min": 0.003}, ("zero", 0.004)),
    ):
        config = overridden(**fields)
        sampled = config_lib.sampled_model(config)
        assert (sampled.boundary, sampled.sigma_min) == expected
        assert (config.model.boundary, config.model.sigma_min) == (
            ("sigma_min", 0.004) if "model__boundary" in fields else ("zero", 0.002)
        )
    old = config_lib.to_dict(overridden(**shifted))
    del old["sampling"]["boundary"], old["sampling"]["sigma_min"]
    config = config_lib.from_dict(old)
    assert config_lib.sampled_model(config) == config.model


def test_ect_and_sct_on_cifar10_train_unshifted_and_sample_shifted():
    for name in ("cifar10_ect", "cifar10_sct"):
        config = config_lib.load_config(CONFIGS / f"{name}.py")
        sampled = config_lib.sampled_model(config)
        assert (config.model.boundary, sampled.boundary, sampled.sigma_min) == ("zero", "sigma_min", 0.003)


def test_a_shift_that_shifts_nothing_is_refused():
    assert "config.sampling.sigma_min = 0.003 shifts nothing" in complaint(overridden, sampling__sigma_min=0.003)
    row = {f"objective__{key}": value for key, value in ROWS["edm"].items()}
    message = complaint(overridden, **row, sampling__boundary="sigma_min")
    assert "config.sampling.boundary = 'sigma_min': a diffusion model" in message


def test_label_dropout_needs_labels():
    assert "model.conditional" in complaint(overridden, model__label_dropout=0.1)
    assert overridden(model__label_dropout=0.1, model__conditional=True).model.label_dropout == 0.1


# Files.


def test_a_missing_file_suggests_its_neighbour(config_file):
    path = config_file()
    message = complaint(config_lib.load_config, path.with_name("experimnt.py"))
    assert "experimnt.py" in message
    assert f"did you mean {path}" in message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("def get_config(:\n", "SyntaxError"),
        ("import a_module_that_is_not_there\n", "a_module_that_is_not_there"),
        ("seed = 1\n", "get_config"),
        ("def get_config():\n    return {'seed': 1}\n", "ConfigDict"),
        ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, text, named):
    path = tmp_path / "broken.py"
    path.write_text(text)
    message = complaint(config_lib.load_config, path)
    assert str(path) in message
    assert named in message


def test_a_file_that_is_no_python_is_said_so(tmp_path):
    path = tmp_path / "environment.sh"
    path.write_text("set -e")
    assert complaint(config_lib.load_config, path) == f"config {path} is not a .py file"


def test_a_misspelt_field_in_a_file_suggests_the_right_one(config_file):
    path = config_file("config.optimizer.lrr = 1e-3")
    message = complaint(config_lib.load_config, path)
    assert str(path) in message
    assert "lrr" in message
    assert re.search(r"did you mean \S*\blr\b", message, re.IGNORECASE)
    assert r"\n" not in message  # a line for people, not the repr of one
    assert len(message.replace(str(path), "")) < 200


def test_a_wrong_type_in_a_file_is_named(config_file):
    path = config_file('config.optimizer.lr = "fast"')
    message = complaint(config_lib.load_config, path)
    assert "lr" in message
    assert "fast" in message


def test_a_config_without_the_defaults_is_told_where_they_are(tmp_path):
    path = tmp_path / "bare.py"
    path.write_text("import ml_collections\n\n\ndef get_config():\n    return ml_collections.ConfigDict({'seed': 1})\n")
    message = complaint(config_lib.load_config, path)
    assert "is missing" in message
    assert "default_config" in message


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        ("ict", "normalize_stage", True),
        ("sct", "target_decay_adaptive", True),
        ("ect", "normalize_stage", True),
    ],
)
def test_a_field_that_the_method_does_not_have_is_refused(row, field, value):
    config = config_lib.default_config()
    config.objective.update(ROWS[row] | {field: value})
    config.objective.weight = "snr" if row == "ect" else config.objective.weight
    config.objective.bootstrap = "ema" if field == "target_decay_adaptive" else config.objective.bootstrap
    assert f"config.objective.{field} = True needs" in complaint(config_lib.validate, config)


@pytest.mark.parametrize(("method", "config"), [("ect", "digits_sct"), ("sct", "digits_ect")])
def test_a_method_that_its_fields_contradict_is_refused(method, config):
    message = complaint(config_lib.load_config, CONFIG_FILES[0].with_name(f"{config}.py"), {"objective.method": method})
    assert "objective.transition" in message


@pytest.mark.parametrize("text", ["1000", "1_000", "1e3", "1000.0"])
def test_whole_numbers_in_every_way_they_are_written(text):
    assert config_lib.parse_value("total_steps", text) == 1000


@pytest.mark.parametrize("text", ["1.5", "1e-3", "inf", "nan", "many"])
def test_what_is_no_whole_number(text):
    with pytest.raises(UserError, match="a whole number"):
        config_lib.parse_value("total_steps", text)


def test_values_as_config_json_and_python_write_them():
    profiles = ("constant:0.9", "power:0.05")
    for text in ("constant:0.9,power:0.05", "('constant:0.9', 'power:0.05')", '["constant:0.9", "power:0.05"]'):
        assert config_lib.parse_value("ema.profiles", text) == profiles
    assert config_lib.parse_value("ema.profiles", "('constant:0.9',)") == ("constant:0.9",)


def test_a_config_may_import_its_neighbours(tmp_path):
    (tmp_path / "shared_settings.py").write_text("STEPS = 7\n")
    body = "    from shared_settings import STEPS\n    config = default_config()\n    config.total_steps = STEPS\n"
    text = f"from sct_jax.config import default_config\n\ndef get_config():\n{body}    return config\n"
    (tmp_path / "own.py").write_text(text)
    before = list(sys.path)
    assert config_lib.load_config(tmp_path / "own.py").total_steps == 7
    assert sys.path == before
