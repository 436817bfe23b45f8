"""The TD signal of a run: measured, logged, decided on, and the same however the run is cut and laid out."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax.objectives.bootstrap import DECISION
from sct_jax.objectives.table import ROWS
from sct_jax.training import assembly, loop, start, td_watch


def make_config(steps=40, dtype="bfloat16", **fields):
    """Gaps shrink by two every four steps: at the end ``(t − r)/t`` is about 2⁻¹⁰."""
    config = config_lib.default_config()
    config.total_steps, config.batch_size = steps, 16
    config.objective.update(ROWS["sct"])
    config.objective.stage_steps = 4
    config.model.name, config.model.channels, config.model.num_blocks = "film_mlp", 32, 1
    config.model.conditional, config.model.dropout, config.model.compute_dtype = True, 0.1, dtype
    config.log.every_steps, config.checkpoint.every_steps, config.log.tensorboard = 4, 10, False
    config.log.steps_per_dispatch = 2
    config.optimizer.name, config.optimizer.lr = "adam", 2e-2  # far from the start, where the network hardly matters
    config.sampling.num_images, config.sampling.steps, config.evaluation.target_queries = 4, (1,), 0
    config.mesh.data = 1
    for key, value in fields.items():
        config_lib._set(config, key.replace("__", "."), value)
    return config_lib.validate(config)


def records(workdir, kind):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run in bfloat16 with ``auto``, and its final state."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, loop.train(make_config(), workdir)


def test_measured_at_the_first_step_and_at_every_stage(whole):
    workdir, state = whole
    found = records(workdir, "td_signal")
    assert [row["step"] for row in found] == [0, *range(4, 41, 4)]
    assert found[-1]["td_signal_evaluated"] < 0.9
    assert all(row["td_signal"] > 0.99 for row in found)
    assert {name for name in found[-1] if name.startswith("td_signal_at_")}
    assert np.asarray(state.context[DECISION]).all()


def test_an_octave_once_given_to_the_derivative_keeps_it():
    """Also where the evaluated difference is sound, as all are before the first step."""
    made, source = start.assembled(make_config())
    lines, records = [], []
    watch = td_watch.TDWatch(made, source, lines.append, lambda *record: records.append(record))
    state = assembly.initial_state(made)
    before = np.arange(len(state.context[DECISION])) % 2
    given = replace(state, context={DECISION: jnp.asarray(before, jnp.int8)})
    assert watch.look(given, 0).context[DECISION].tolist() == before.tolist()
    assert not lines
    assert records[0][2]["td_signal"] < records[0][2]["td_signal_evaluated"]


def test_the_decision_is_said_once(whole, tmp_path, capfd):
    loop.train(make_config(), tmp_path / "run")
    lines = [line for line in capfd.readouterr().err.splitlines() if "the TD difference is a derivative" in line]
    assert lines
    assert lines[-1].count("0 up") == 1
    assert len(lines) == len(set(lines))


@pytest.mark.parametrize("cut", [10, 30])
def test_a_run_that_is_cut_goes_on_the_same(whole, cut, tmp_path):
    _, state = whole
    loop.train(make_config(cut), tmp_path)
    resumed = loop.train(make_config(), tmp_path)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(resumed), strict=True):
        assert np.array_equal(np.asarray(a), np.asarray(b))


def test_float32_goes_on_in_bfloat16_and_back(tmp_path):
    loop.train(make_config(10, "float32"), tmp_path)
    assert not records(tmp_path, "td_signal")  # its difference is float32's own
    state = loop.train(make_config(20, "bfloat16"), tmp_path)
    assert [row["step"] for row in records(tmp_path, "td_signal")] == [10, 12, 16, 20]
    assert DECISION in state.context
    state = loop.train(make_config(26, "float16"), tmp_path)
    assert {DECISION, "loss_scale"} == set(state.context)
    state = loop.train(make_config(30, "float32"), tmp_path)
    assert not state.context
    state = loop.train(make_config(40, "bfloat16"), tmp_path)
    assert np.asarray(state.context[DECISION]).all()


def test_layouts_decide_alike(whole, tmp_path):
    """Split over devices, in micro-batches: the same octaves, and the same losses until rounding has grown."""
    workdir, state = whole
    layout = {"mesh__data": 2, "mesh__fsdp": 2, "mesh__fsdp_min_size": 64}
    split = loop.train(make_config(**layout), tmp_path / "split")
    losses = [[row["loss"] for row in records(place, "train")] for place in (workdir, tmp_path / "split")]
    np.testing.assert_allclose(losses[0][:5], losses[1][:5], rtol=0.01)
    assert np.array_equal(state.context[DECISION], np.asarray(split.context[DECISION]))
    parts = loop.train(make_config(12, optimizer__accumulate=2), tmp_path / "parts")
    assert np.isfinite([row["loss"] for row in records(tmp_path / "parts", "train")]).all()
    assert np.asarray(parts.context[DECISION]).any()


def test_a_forced_form_that_loses_the_signal_is_warned_of_once(tmp_path, capfd):
    loop.train(make_config(objective__difference="evaluated"), tmp_path)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 1
    assert "td_signal" in lines[0]
    assert "config.objective.difference = 'auto'" in lines[0]
    found = records(tmp_path, "td_signal")
    assert found[-1]["td_signal"] == found[-1]["td_signal_evaluated"] < 0.9


def test_stages_of_grids_are_their_halvings():
    config = make_config(1000)
    config.objective.update(ROWS["ict"])
    stage = td_watch.stages(config)
    stages = [stage(step) for step in range(0, 1000, 10)]
    assert stages == sorted(stages)
    assert (stages[0], stages[-1]) == (3, 10)  # 10 intervals, 1280
