"""Where the rows of the posterior mean lie changes nothing; a run with a context resumes to the bit."""

import shutil

import jax
import numpy as np
import pytest
from test_loop import make_config, same
from test_step import assert_close, make_batch

from sct_jax import config as config_lib
from sct_jax import models, objectives
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.objectives.table import ROWS
from sct_jax.training import loop, mesh, step


def train(tmp_path, name, method="sct", **fields):
    config = make_config(total_steps=4)
    config.objective.update(ROWS[method])
    for key, value in fields.items():
        config_lib._set(config, key.replace("__", "."), value)
    return loop.train(config_lib.validate(config), tmp_path / name)


def test_a_bank_in_the_hosts_memory_is_the_bank_on_the_device(tmp_path):
    bank = {"reference__source": "bank", "reference__size": 20, "reference__bank_block": 8, "data__flip": True}
    device = train(tmp_path, "device", **bank)
    host = train(tmp_path, "host", reference__resident_max_mib=0, **bank)
    assert_close(device.params, host.params, 1e-5)


@pytest.mark.slow
def test_the_data_set_split_over_eight_devices_is_the_data_set(tmp_path):
    dataset = {"reference__source": "dataset", "reference__block": 100, "data__flip": True}
    one = train(tmp_path, "one", **dataset)
    eight = train(tmp_path, "eight", mesh__data=8, **dataset)
    assert_close(one.params, eight.params, 2e-4)


@pytest.mark.slow
def test_a_bank_serves_a_streamed_pipeline_too_and_is_not_the_batch(tmp_path):
    bank = {"reference__source": "bank", "reference__size": 20}
    device = train(tmp_path, "device", **bank)
    streamed = train(tmp_path, "streamed", reference__resident_max_mib=0, data__pipeline="streamed", **bank)
    assert_close(device.params, streamed.params, 1e-5)
    assert not same(train(tmp_path, "batch").params, device.params)


def test_a_data_set_that_is_the_batch_gives_the_batchs_posterior_mean():
    batch, spec = make_batch(), DataSpec(8, 1, 10, 16)
    after = []
    for source in ("batch", "dataset"):
        config = make_config(reference__source=source)
        network = models.build(config.model, spec)
        train_step = step.make_train_step(config, objectives.build(config, network.denoise), mesh.make_mesh(1))
        state = step.initial_state(config, network.init(jax.random.key(0)))
        rows = {"image": batch["image"], "label": batch["label"]} if source == "dataset" else {}
        after.append(jax.jit(train_step)(state, batch | {"references": rows}))
    assert_close(after[0][1], after[1][1], 1e-4)  # the metrics: loss, effective sample size, shift, gradient
    assert float(after[0][1]["reference_ess"]) > 1.001


SLOW = [pytest.param(method, marks=pytest.mark.slow) for method in ("ct", "stf", "tcm", "gc")]


@pytest.mark.parametrize("method", ["cd", *SLOW])
def test_methods_with_a_context_resume_to_the_bit(tmp_path, method):
    fields = {}
    if method == "cd":
        train(tmp_path, "teacher", "edm", model__channels=24)  # another network than the student's
        fields["objective__teacher"] = str(tmp_path / "teacher")
    if method == "tcm":
        train(tmp_path, "stage1", "tcm1")
        stage1 = str(tmp_path / "stage1")
        fields |= {"objective__stage1": stage1, "init__checkpoint": stage1, "sampling__mid_times": (1.0,)}
    whole = train(tmp_path, "run", method, checkpoint__every_steps=2, **fields)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")  # as after a kill: CT's schedule is one of the whole run
    assert same(whole, train(tmp_path, "run", method, **fields))
    contexts = {"ct": {"target"}, "cd": {"target", "teacher"}, "tcm": {"stage1"}, "gc": {"generator"}}
    assert set(whole.context) == contexts.get(method, set())
    if method == "ct":
        assert not same(whole.context["target"], whole.params)  # behind it
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(whole.context))


def test_a_teacher_of_other_images_is_refused(tmp_path):
    train(tmp_path, "teacher", "edm", data__image_size=16)
    with pytest.raises(UserError, match=r"objective.teacher.*\(16, 1, 10\) there and \(8, 1, 10\) here"):
        train(tmp_path, "student", "cd", objective__teacher=str(tmp_path / "teacher"))
    assert not (tmp_path / "student").exists()


def test_snapshots_are_kept_for_good(tmp_path):
    train(tmp_path, "run", checkpoint__keep_fractions=(0.5,), checkpoint__keep=1, checkpoint__every_steps=4)
    assert {"2", "4"} == {p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()}
