"""What reference.source = "auto" stands for, by data and mesh; and that a run keeps what it began with."""

import json

import jax
import numpy as np
import pytest
from test_loop import make_config, same

from sct_jax import config as config_lib
from sct_jax.data import DataSpec
from sct_jax.objectives.table import ROWS
from sct_jax.training import assembly, loop, reference_choice
from sct_jax.training.mesh import make_mesh

IMAGENET = DataSpec(64, 3, 1000, 1_281_167)
DIGITS = DataSpec(8, 1, 10, 1797)
DIGITS_MIB = 1797 * 64 / 2**20


def auto_config(conditional=True, **fields):
    config = make_config(total_steps=4)
    config.objective.update(ROWS["sct"])
    config.reference.source, config.model.conditional = "auto", conditional
    for key, value in fields.items():
        config_lib._set(config, key.replace("__", "."), value)
    return config_lib.validate(config)


def test_all_rows_where_their_part_of_a_device_fits():
    config = auto_config(batch_size=128)
    eight = reference_choice.settle(config, IMAGENET, make_mesh(8))  # 1,877 MiB each of 2,048
    assert eight.reference.source == "dataset"
    assert reference_choice.settle(config, IMAGENET, make_mesh(4)).reference.source == "bank"  # 3,753 MiB
    raised = auto_config(batch_size=128, reference__resident_max_mib=3754)
    assert reference_choice.settle(raised, IMAGENET, make_mesh(4)).reference.source == "dataset"
    assert config.reference.source == "auto"  # untouched


@pytest.mark.parametrize(("send", "batch"), [(128, 128), (384, 128), (128, 32), (1, 8)])
def test_a_bank_is_the_largest_that_may_be_sent(send, batch):
    config = auto_config(batch_size=batch, reference__send_max_mib=send)
    size = reference_choice.settle(config, IMAGENET, make_mesh(1)).reference.size
    row = batch * 64 * 64 * 3
    assert size * row <= send * 2**20 < (size + 1) * row


def test_a_bank_is_no_larger_than_what_a_query_may_see_and_never_empty():
    most = {"reference__send_max_mib": 10**6, "reference__resident_max_mib": 0}
    assert reference_choice.settle(auto_config(**most), IMAGENET, make_mesh(1)).reference.size == 1281
    assert reference_choice.settle(auto_config(False, **most), DIGITS, make_mesh(1)).reference.size == 1797
    none = auto_config(reference__send_max_mib=0, reference__resident_max_mib=0)
    assert reference_choice.settle(none, IMAGENET, make_mesh(1)).reference.size == 1


def test_what_is_named_and_methods_without_references_are_left_alone():
    for config in (auto_config(reference__source="batch"), auto_config()):
        config.objective.update(ROWS["ect" if config.reference.source == "auto" else "sct"])
        assert reference_choice.settle(config, IMAGENET, make_mesh(1)) is config


@pytest.mark.parametrize("classes", [10, 100])
def test_the_line_and_the_shapes_say_what_was_chosen(classes):
    spec, device_mesh = DataSpec(8, 1, classes, 1797), make_mesh(8)
    made = assembly.assemble(auto_config(batch_size=16), spec, device_mesh)
    line = reference_choice.describe(made.config, spec, device_mesh)
    assert line.startswith("all 1,797 rows")
    rows = assembly.abstract_batch(made, spec)["references"]
    shapes = {name: leaf.shape for name, leaf in rows.items()}
    gathered = {"image": (1800, 64), "start": (8, classes + 1)}
    assert shapes == (gathered if classes == 100 else {"image": (1800, 64), "label": (1800,)})
    assert ("gathered" in line) == (classes == 100)


def train(workdir, **fields):
    return loop.train(auto_config(**fields), workdir)


def test_a_run_writes_its_choice_and_keeps_it_where_it_would_choose_otherwise(tmp_path, capsys):
    whole = train(tmp_path / "run", checkpoint__every_steps=2)
    assert "reference all 1,797 rows" in capsys.readouterr().err
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["reference"]["source"] == "dataset"
    short = train(tmp_path / "short", checkpoint__every_steps=2, total_steps=2)
    assert int(short.step) == 2
    # no room now: a new run would take a bank, this one goes on as it began
    resumed = train(tmp_path / "short", checkpoint__every_steps=2, reference__resident_max_mib=0)
    assert same(whole, resumed)
    named = train(tmp_path / "named", reference__source="dataset")
    assert same(whole.params, named.params)


def test_without_room_a_run_takes_a_bank_and_goes_on_with_its_size(tmp_path, capsys):
    bank = {"checkpoint__every_steps": 2, "reference__resident_max_mib": 0, "reference__send_max_mib": 0}
    train(tmp_path / "bank", total_steps=2, **bank)
    assert "reference a bank of 1 rows" in capsys.readouterr().err
    state = train(tmp_path / "bank", **(bank | {"reference__send_max_mib": 128}))
    assert "reference a bank of 1 rows" in capsys.readouterr().err
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
