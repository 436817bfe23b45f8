"""Looking at a run: the dry run writes nothing, the profile covers its window, --debug is small and stops at NaN."""

import json
import os
import shutil
import subprocess
import sys

import jax
import pytest

from sct_jax.training import debug, logs

SETTINGS = ("jax_disable_jit", "jax_traceback_filtering")


@pytest.fixture(autouse=True)
def _settings_as_before():
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_a_dry_run_makes_one_step_and_writes_nothing(sct_jax_command, tiny_config, tmp_path):
    finished = sct_jax_command("train", "--config", tiny_config, "--workdir", tmp_path / "run", "--dry-run")
    assert finished.status == 0
    assert not (tmp_path / "run").exists()
    said = dict(line.split(maxsplit=1) for line in finished.out.splitlines() if line[0] != " ")
    assert {"data", "devices", "method", "network", "item", "compiled", "memory", "one", "metrics"} <= said.keys()
    assert "int32[1, 16]" in said["item"]
    # 4,704 float32 parameters; the optimizer keeps two numbers for each.
    assert "parameters 0.02 MiB, optimizer 0.04 MiB, ema 0.02 MiB" in said["memory"]
    metrics = dict(zip(said["metrics"].split()[::2], map(float, said["metrics"].split()[1::2]), strict=True))
    assert metrics["loss"] > 0


def test_the_loss_of_a_dry_run_is_that_of_the_first_step(sct_jax_command, tiny_config, tiny_run):
    finished = sct_jax_command("train", "--config", tiny_config, "--dry-run")
    first = json.loads((tiny_run / "metrics.jsonl").read_text().splitlines()[0])
    assert f"loss {first['loss']:.4g}" in finished.out


def test_a_profile_of_the_steps_asked_for(sct_jax_command, tiny_config, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append(("stop",)))
    run = tmp_path / "run"
    (run / "profile").mkdir(parents=True)
    finished = sct_jax_command("train", "--config", tiny_config, "--workdir", run, "--profile", "1:2")
    assert finished.status == 0
    assert calls == [("start", str(run / "profile")), ("stop",)]
    assert (run / "profile" / "memory.pprof").stat().st_size > 0
    assert f"profile in {run / 'profile'}" in finished.err


@pytest.mark.parametrize(
    ("at", "running"),
    [(0, False), (10, True), (12, True), (14, False)],
)
def test_the_window_is_that_of_the_steps(tmp_path, monkeypatch, at, running):
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: None)
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: None)
    trace = debug.Trace(debug.Options(profile=(10, 4)), tmp_path, 100, lambda line: None)
    for step in range(100, 100 + at + 1, 2):
        trace.before(step, step + 2, None)
    assert trace._running == running


def test_a_window_after_the_run_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(jax.profiler, "start_trace", pytest.fail)
    said = []
    trace = debug.Trace(debug.Options(profile=(50, 4)), tmp_path, 100, said.append)
    trace.before(100, 120, None)
    trace.close()
    trace.close()
    assert said == ["--profile: no trace, for the run ended before step 150"]


@pytest.mark.parametrize("window", ["5", "a:b", "-1:5", "5:0"])
def test_a_window_that_is_none(sct_jax_command, tiny_config, tmp_path, window):
    arguments = ("train", "--config", tiny_config, "--workdir", tmp_path, f"--profile={window}")
    assert "window FIRST:STEPS" in sct_jax_command(*arguments).complaint


def test_debug_makes_the_batch_small_unless_it_is_given(sct_jax_command, tiny_config, tmp_path):
    for name, given, batch in (("small", (), 2), ("given", ("--config.batch_size=8",), 8)):
        arguments = ("train", "--config", tiny_config, "--workdir", tmp_path / name, "--debug", *given)
        finished = sct_jax_command(*arguments)
        assert finished.status == 0
        assert json.loads((tmp_path / name / "config.json").read_text())["batch_size"] == batch
        assert ("--debug: config.batch_size = 2, not 16" in finished.err) == (not given)
    again = sct_jax_command("train", "--config", tiny_config, "--workdir", tmp_path / "small", "--debug")
    assert again.status == 0  # a run goes on with the batch that it began with
    assert "already trained to step 4" in again.err


def test_a_run_begun_without_debug_keeps_its_batch(sct_jax_command, tiny_config, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    arguments = ("train", "--config", tiny_config, "--workdir", run, "--debug", "--config.total_steps=5")
    assert sct_jax_command(*arguments).status == 0
    assert json.loads((run / "config.json").read_text())["batch_size"] == 16


@pytest.mark.parametrize("also", ["--dry-run", "--config.mesh.fsdp=2"])
def test_eager_mode_is_for_one_plain_process(sct_jax_command, tiny_config, tmp_path, also):
    arguments = ("train", "--config", tiny_config, "--workdir", tmp_path, "--disable-jit", also)
    assert "--disable-jit is for one process" in sct_jax_command(*arguments).complaint


def test_a_dry_run_finds_what_would_stop_the_run(sct_jax_command, tiny_config):
    missing = sct_jax_command("train", "--config", tiny_config, "--dry-run", "--config.init.checkpoint=/nowhere")
    assert "config.init.checkpoint: no checkpoint /nowhere" in missing.complaint
    fractions = ("--config.checkpoint.keep_fractions=0.5,0.51",)
    assert "keep_fractions" in sct_jax_command("train", "--config", tiny_config, "--dry-run", *fractions).complaint


@pytest.mark.slow
def test_debug_stops_where_a_nan_is_made(tmp_path, tiny_config):
    command = [sys.executable, "-m", "sct_jax", "train", "--config", str(tiny_config), "--workdir", str(tmp_path)]
    command += ["--debug", "--config.optimizer.lr=1e38", "--config.total_steps=40"]
    finished = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert finished.returncode == 1
    assert "FloatingPointError: invalid value (nan) encountered" in finished.stderr
    assert "in locate_nan" in finished.stderr
    assert "sct_jax/models/" in finished.stderr or "sct_jax/objectives/" in finished.stderr  # where it was made


@pytest.mark.slow
def test_compiled_programs_are_kept(tmp_path, tiny_config):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(tmp_path), "XLA_FLAGS": ""}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    command = [sys.executable, "-m", "sct_jax", "train", "--config", str(tiny_config), "--dry-run"]
    kept = []
    for _ in range(2):
        subprocess.run(command, check=True, capture_output=True, env=environment)
        kept.append({path.name for path in (tmp_path / "sct_jax" / "compiled").glob("*-cache")})
    assert any(name.startswith("jit_dispatch") for name in kept[0])
    assert kept[0] == kept[1]


def test_lines_of_lost_steps_are_written_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        '{"kind": "train", "step": 1}\n',
        '{"kind": "train", "step": 2}\n',
        '{"kind": "train", "step": 3}\n',
        '{"ki',
    ]
    path.write_text("".join(lines))
    writer = logs.MetricWriter(tmp_path, 2, tensorboard=False)
    writer.write("train", 3, {"loss": 1.0})
    writer.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    assert path.read_text().startswith(lines[0] + lines[1])
