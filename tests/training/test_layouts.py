"""However devices, processes and state are laid out, a run is the same run, and goes on in any other layout."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.objectives.table import ROWS
from sct_jax.training import assembly, loop, mesh

SPEC = DataSpec(8, 1, 10, 1797)
# Sizes of the axes data and fsdp, and of the job.
LAYOUTS = {"one": (1, 1, 1), "eight": (8, 1, 1), "split": (2, 4, 1), "two processes": (2, 4, 2)}
STEPS = 50


def make_config(layout, method="sct", steps=STEPS, **fields):
    config = config_lib.default_config()
    config.total_steps, config.batch_size = steps, 16
    config.data.split = "all"
    config.objective.update(ROWS[method])
    config.model.name, config.model.channels, config.model.num_blocks = "film_mlp", 16, 1
    config.model.conditional, config.model.dropout = True, 0.1
    config.log.every_steps, config.checkpoint.every_steps, config.log.tensorboard = 1, 10, False
    config.optimizer.lr = 1e-3
    config.sampling.num_images, config.sampling.steps, config.evaluation.target_queries = 4, (1,), 0
    config.mesh.data, config.mesh.fsdp = LAYOUTS[layout][:2]
    config.mesh.fsdp_min_size = 64
    for key, value in fields.items():
        config_lib._set(config, key.replace("__", "."), value)
    return config_lib.validate(config)


def run(layout, workdir, **fields):
    """Trains in a layout; returns the losses of its steps."""
    if LAYOUTS[layout][2] == 1:
        loop.train(make_config(layout, **fields), workdir)
    else:
        run_processes(layout, workdir, fields)
    rows = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return np.array([row["loss"] for row in rows])


def run_processes(layout, workdir, fields):
    data, fsdp, count = LAYOUTS[layout]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); import test_layouts as t\n"
        "from sct_jax.training import distributed\n"
        f"with distributed.joined('localhost:{port}', {count}, int(sys.argv[2]), complain=lambda error: None):\n"
        f"    t.loop.train(t.make_config({layout!r}, **{fields!r}), sys.argv[3])"
    )
    flags = f"--xla_force_host_platform_device_count={data * fsdp // count} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    arguments = [[sys.executable, "-c", script, str(Path(__file__).parent), str(i), str(workdir)] for i in range(count)]
    jobs = [subprocess.Popen(a, env=environment, stderr=subprocess.PIPE, text=True) for a in arguments]
    said = [job.communicate(timeout=300)[1] for job in jobs]
    assert [job.returncode for job in jobs] == [0] * count, "\n".join(said)


def assert_same_curve(found, expected):
    """Sums over devices are in another order: a relative 1e-5 at first, which training lets grow."""
    np.testing.assert_allclose(found[:10], expected[:10], rtol=2e-5)
    np.testing.assert_allclose(found, expected, rtol=2e-3)


@pytest.fixture(scope="module")
def curve(tmp_path_factory):
    """The losses on one device."""
    known = {}

    def of(source):
        if source not in known:
            known[source] = run("one", tmp_path_factory.mktemp("one"), reference__source=source)
        return known[source]

    return of


@pytest.mark.parametrize(
    ("layout", "source"),
    [
        ("eight", "batch"),
        ("split", "dataset"),
        pytest.param("eight", "dataset", marks=pytest.mark.slow),
        pytest.param("split", "batch", marks=pytest.mark.slow),
    ],
)
def test_a_run_is_the_same_on_any_mesh(tmp_path, curve, layout, source):
    assert_same_curve(run(layout, tmp_path, reference__source=source), curve(source))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "pipeline"),
    [("batch", "resident"), ("dataset", "streamed"), ("bank", "streamed"), ("batch", "streamed")],
)
def test_a_run_is_the_same_in_two_processes(tmp_path, curve, source, pipeline):
    fields = {"reference__source": source, "data__pipeline": pipeline}
    if source == "bank":  # in the hosts' memory
        fields |= {"reference__resident_max_mib": 0, "reference__size": 8}
        expected = run("one", tmp_path / "one", **fields)
    else:
        expected = curve(source)
    assert_same_curve(run("two processes", tmp_path / "two", **fields), expected)


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """Runs stopped half way, one in each layout, made when asked for."""
    known = {}

    def of(layout):
        if layout not in known:
            known[layout] = tmp_path_factory.mktemp("half")
            run(layout, known[layout], steps=STEPS // 2)
        return known[layout]

    return of


PAIRS = [(a, b) for a, b in itertools.product(LAYOUTS, LAYOUTS) if a != b]
FAST = {("split", "one")}


@pytest.mark.parametrize(
    ("before", "after"), [pytest.param(*p, marks=[] if p in FAST else pytest.mark.slow) for p in PAIRS]
)
def test_a_run_goes_on_in_another_layout(tmp_path, curve, halves, before, after):
    workdir = tmp_path / "run"
    shutil.copytree(halves(before), workdir)
    assert_same_curve(run(after, workdir), curve("batch"))


def test_large_arrays_are_split_and_small_ones_whole():
    made = assembly.assemble(make_config("split"), SPEC, mesh.make_mesh(2, 4))
    state, shapes = assembly.initial_state(made), assembly.abstract_state(made)
    split = 0
    for leaf, shape in zip(jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True):
        assert leaf.shape == shape.shape
        assert leaf.sharding.is_equivalent_to(shape.sharding, leaf.ndim)
        part = leaf.addressable_shards[0].data.size
        dividing = any(length % 4 == 0 for length in leaf.shape)
        assert part == (leaf.size // 4 if leaf.size >= 64 and dividing else leaf.size)
        split += leaf.size - part
    assert split > sum(leaf.size for leaf in jax.tree.leaves(state)) / 2


def test_a_network_with_an_uncertainty_head_has_its_shapes():
    config = config_lib.default_config()
    config.batch_size = 8
    config.objective.update(ROWS["edm"])
    config.objective.uncertainty = True
    fields = {"name": "edm2", "channels": 16, "channel_mult": (1,), "num_blocks": 1, "attention_resolutions": ()}
    config.model.update(fields | {"uncertainty_channels": 8, "attention_head_channels": 16})
    made = assembly.assemble(config_lib.validate(config), SPEC, mesh.make_mesh(1))
    shapes = assembly.abstract_state(made)
    assert "uncertainty" in shapes.params
    assert jax.tree.map(lambda x: x.shape, shapes) == jax.tree.map(lambda x: x.shape, assembly.initial_state(made))


def test_the_step_keeps_the_layout_and_gathers_what_it_needs():
    """Split parameters are put together by all-gathers; nothing is sent from all to all."""
    made = assembly.assemble(make_config("split"), SPEC, mesh.make_mesh(2, 4))
    state, batch = assembly.abstract_state(made), assembly.abstract_batch(made, SPEC)
    program = jax.jit(made.train_step, donate_argnums=0).lower(state, batch).compile()
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(program.output_shardings[0]), strict=True):
        assert before.sharding.is_equivalent_to(after, len(before.shape))
    text = program.as_text()
    assert "all-gather(" in text
    assert "all-to-all(" not in text


def test_methods_with_more_state_are_split_too(tmp_path):
    fields = {"method": "ct", "steps": 4}
    assert_same_curve(run("split", tmp_path / "split", **fields), run("one", tmp_path / "one", **fields))


@pytest.mark.parametrize(
    ("data", "fsdp", "complaint"),
    [
        (16, 1, r"config.mesh.data = 16: there are 8 devices here; use 1 to 8, or -1"),
        (-1, 3, r"config.mesh.fsdp = 3 does not divide the 8 devices here; use one of 1, 2, 4, 8"),
        (4, 4, r"config.mesh.data = 4 \(x config.mesh.fsdp = 4\): there are 8 devices here; use 1 to 2, or -1"),
    ],
)
def test_meshes_that_cannot_be_made(data, fsdp, complaint):
    with pytest.raises(UserError, match=complaint):
        mesh.make_mesh(data, fsdp)


def command(*arguments):
    """The command line in a process of its own, which counts the CPU's devices itself."""
    environment = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    whole = [sys.executable, "-m", "sct_jax", *map(str, arguments)]
    done = subprocess.run(whole, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_run_on_the_cpu_as_several_devices_is_the_same(tiny_config, tiny_run, tmp_path):
    losses = lambda run: [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]  # noqa: E731
    workdir = tmp_path / "run"
    given = ["--config", tiny_config, "--workdir", workdir, "--config.mesh.data=-1", "--cpu-devices", 4]
    assert "4 x cpu" in command("train", *given)
    np.testing.assert_allclose(losses(workdir), losses(tiny_run), rtol=2e-5)
    images = []
    for name, more in (("one.npz", []), ("three.npz", ["--cpu-devices", 3])):
        command("sample", "--checkpoint", workdir, "--num", 7, "--out", tmp_path / name, *more)
        with np.load(tmp_path / name) as file:
            images.append(file["images"].astype(int))
    assert images[0].shape == (7, 8, 8, 1)
    np.testing.assert_allclose(*images, atol=1)  # a rounding to uint8


@pytest.mark.parametrize(
    ("count", "environment", "complaint"),
    [
        (0, {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}, r"--cpu-devices 0: give a number from 1, such as"),
        (2, {"JAX_PLATFORMS": "cuda", "XLA_FLAGS": ""}, r"--cpu-devices is for CPUs and JAX_PLATFORMS is cuda"),
        (
            *(2, {"JAX_PLATFORMS": "", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}),
            r"--xla_force_host_platform_device_count in XLA_FLAGS: leave one of the two out",
        ),
    ],
)
def test_a_cpu_that_cannot_be_split(monkeypatch, count, environment, complaint):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=complaint):
        mesh.split_cpu(count)


def test_a_batch_that_does_not_divide():
    with pytest.raises(UserError, match=r"config.batch_size = 20 does not divide over 8 devices; try 16"):
        mesh.check_divides(mesh.make_mesh(2, 4), 20)


def test_rows_put_by_parts_are_the_whole():
    device_mesh = mesh.make_mesh(2, 4)
    whole = np.arange(3 * 16 * 5).reshape(3, 16, 5)
    sharding = mesh.split_batch(device_mesh, axis=1)
    rows = mesh.local_rows(device_mesh, 16)
    np.testing.assert_array_equal(rows, np.arange(16))
    placed = mesh.put_rows(whole, sharding, rows, 16, axis=1)
    np.testing.assert_array_equal(placed, whole)
    assert placed.sharding == sharding
