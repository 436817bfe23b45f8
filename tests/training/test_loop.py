"""The loop: resuming is exact, both pipelines train alike, signals save, NaN stops."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.objectives.table import ROWS
from sct_jax.training import loop

SPEC = DataSpec(8, 1, 10, 1797)


def make_config(**fields):
    config = config_lib.default_config()
    config.total_steps, config.batch_size = 8, 16
    config.data.split = "all"
    config.objective.update(ROWS["sct"])
    config.model.name, config.model.channels, config.model.num_blocks = "film_mlp", 16, 1
    config.model.conditional, config.model.dropout = True, 0.1
    config.log.every_steps, config.checkpoint.every_steps, config.log.tensorboard = 2, 4, False
    config.sampling.num_images, config.sampling.steps, config.mesh.data = 4, (1,), 1
    config.evaluation.target_queries = 0
    for key, value in fields.items():
        config_lib._set(config, key.replace("__", "."), value)
    return config_lib.validate(config)


def same(a, b):
    return all(
        np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path):
    whole = loop.train(make_config(), tmp_path / "whole")
    half = make_config(total_steps=4)
    loop.train(half, tmp_path / "parts")
    resumed = loop.train(make_config(), tmp_path / "parts")
    assert int(resumed.step) == 8
    assert same(whole, resumed)
    steps = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8]


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_at_the_same_weights(tmp_path):
    """SIGKILL in the middle, then the same command again: bitwise the uninterrupted run."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[2]); import test_loop as t;"
        "t.loop.train(t.make_config(total_steps=160, checkpoint__every_steps=10, log__every_steps=10), sys.argv[1])"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "killed"), str(Path(__file__).parent)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "killed" / "checkpoints"
    deadline = time.monotonic() + 120
    while not (checkpoints.is_dir() and any(p.name.isdigit() for p in checkpoints.iterdir())):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert max(int(p.name) for p in checkpoints.iterdir() if p.name.isdigit()) < 160
    config = make_config(total_steps=160, checkpoint__every_steps=10, log__every_steps=10)
    resumed = loop.train(config, tmp_path / "killed")
    assert same(resumed, loop.train(config, tmp_path / "whole"))


def test_resident_and_streamed_training_are_the_same(tmp_path):
    resident = loop.train(make_config(data__pipeline="resident"), tmp_path / "resident")
    streamed = loop.train(make_config(data__pipeline="streamed"), tmp_path / "streamed")
    for a, b in zip(jax.tree.leaves(resident.params), jax.tree.leaves(streamed.params), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_signals_save_before_leaving(tmp_path, monkeypatch, signum):
    calls = []
    original = loop._Run._after

    def send(self, done):
        original(self, done)
        calls.append(done)
        if len(calls) == 1:
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(loop._Run, "_after", send)
    with pytest.raises(loop.Interrupted) as caught:
        loop.train(make_config(), tmp_path / "run")
    assert caught.value.interrupted_exit_code == 128 + signum
    monkeypatch.undo()
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    assert same(loop.train(make_config(), tmp_path / "run"), loop.train(make_config(), tmp_path / "whole"))


def test_a_nan_stops_the_run_and_names_the_step_and_the_good_checkpoint(tmp_path):
    loop.train(make_config(total_steps=4), tmp_path / "run")
    with pytest.raises(UserError, match=r"(loss|grad_norm) is (nan|inf) at step \d+.*last good checkpoint is step 4"):
        loop.train(make_config(total_steps=40, optimizer__lr=1e38), tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit()) == ["4"]


def test_out_of_memory_says_what_to_make_smaller(tmp_path, monkeypatch):
    def dispatch(*arguments):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 34359738368 bytes.\nmore lines")

    monkeypatch.setattr(loop.step, "make_dispatch", lambda *arguments, **options: dispatch)
    with pytest.raises(UserError, match=r"out of memory: .*34359738368 bytes.; halve config.batch_size") as found:
        loop.train(make_config(), tmp_path / "run")
    assert "\n" not in str(found.value)


def test_starting_from_another_run_takes_its_average(tmp_path):
    teacher = loop.train(make_config(ema__profiles=("constant:0.5",)), tmp_path / "teacher")
    config = make_config(init__checkpoint=str(tmp_path / "teacher"))
    saver = loop.Checkpointer(tmp_path / "student", config, SPEC)
    state = loop.start_state(loop.assembly.assemble(config, SPEC, loop.mesh.make_mesh(1)), saver)
    saver.close()
    assert int(state.step) == 0
    assert same(state.params, teacher.ema["constant:0.5"])
    assert not same(state.params, teacher.params)


@pytest.mark.slow
def test_starting_from_another_run_works_on_eight_devices(tmp_path):
    loop.train(make_config(total_steps=2), tmp_path / "teacher")
    config = make_config(total_steps=2, init__checkpoint=str(tmp_path / "teacher"), mesh__data=8)
    assert int(loop.train(config, tmp_path / "student").step) == 2


@pytest.mark.slow
def test_a_run_stopped_between_periods_still_logs_saves_and_ends_where_it_should(tmp_path):
    periods = {"log__every_steps": 10, "checkpoint__every_steps": 10, "log__steps_per_dispatch": 10}
    loop.train(make_config(total_steps=3, **periods), tmp_path)
    state = loop.train(make_config(total_steps=25, **periods), tmp_path)
    assert int(state.step) == 25
    assert {"20", "25"} == {p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()}
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [3, 10, 20, 25]


def test_a_run_is_not_resumed_as_another(tmp_path):
    loop.train(make_config(total_steps=2), tmp_path)
    before = (tmp_path / "config.json").read_text()
    for key, value in (("seed", 1), ("batch_size", 32), ("objective__q", 4.0), ("data__flip", True)):
        with pytest.raises(UserError, match=rf"config\.{key.replace('__', '.')} = .*another --workdir"):
            loop.train(make_config(total_steps=4, **{key: value}), tmp_path)
    loop.train(make_config(total_steps=2, optimizer__lr=0.5), tmp_path)  # already trained: nothing is rewritten
    assert (tmp_path / "config.json").read_text() == before


def test_a_schedule_over_the_length_of_the_run_fixes_it(tmp_path):
    loop.train(make_config(total_steps=2, **{f"objective__{k}": v for k, v in ROWS["ict"].items()}), tmp_path)
    with pytest.raises(UserError, match=r"config.total_steps = 2, not 4: use another --workdir"):
        loop.train(make_config(total_steps=4, **{f"objective__{k}": v for k, v in ROWS["ict"].items()}), tmp_path)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"objective__method": "ect", "objective__transition": "sample"}, "is no diffusion model.*'ect'"),
        ({f"objective__{k}": v for k, v in ROWS["edm"].items()}, "is class-conditional"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(tmp_path, fields, problem):
    loop.train(make_config(total_steps=1, **fields), tmp_path / "teacher")
    student = {f"objective__{k}": v for k, v in ROWS["cd"].items()}
    student |= {"objective__teacher": str(tmp_path / "teacher"), "model__conditional": False}
    with pytest.raises(UserError, match=problem):
        loop.train(make_config(**student), tmp_path / "student")


def test_a_finished_run_gets_what_a_kill_kept_from_it(tmp_path):
    config = make_config(total_steps=2, evaluation__target_queries=2)
    loop.train(config, tmp_path)
    grid, variance = tmp_path / "samples" / "step_00000002_1step.png", tmp_path / "target_variance.json"
    for path in (grid, variance):
        path.unlink()
    loop.train(config, tmp_path)
    assert grid.exists()
    assert variance.exists()


def test_a_full_disk_at_the_metrics_keeps_the_checkpoint(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left"):
        loop.train(make_config(checkpoint__every_steps=2), tmp_path)
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_the_workdir_holds_what_a_run_leaves(tmp_path):
    loop.train(make_config(log__tensorboard=True, sampling__every_steps=4, sampling__steps=(1, 2)), tmp_path)
    names = {p.name for p in tmp_path.iterdir()}
    assert {"config.json", "metrics.jsonl", "parameters.txt", "samples", "checkpoints", "events"} <= names
    grids = {p.name for p in (tmp_path / "samples").iterdir()}
    assert grids == {f"step_{s:08d}_{k}step.png" for s in (4, 8) for k in (1, 2)}
    assert config_lib.from_dict(json.loads((tmp_path / "config.json").read_text())).total_steps == 8
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all({"loss", "grad_norm", "lr", "images_per_second", "reference_ess"} <= row.keys() for row in rows)


def test_dispatches_divide_every_period():
    config = make_config(total_steps=1000, log__every_steps=100, checkpoint__every_steps=250, sampling__every_steps=500)
    network = models.build(config.model, SPEC)
    stride = loop.steps_per_dispatch(config, network)
    assert stride == 50
    assert all(period % stride == 0 for period in (1000, 100, 250, 500))
    prime = make_config(total_steps=1009, log__every_steps=100, checkpoint__every_steps=250)
    assert loop.steps_per_dispatch(prime, network) == 50  # the last call is shorter
