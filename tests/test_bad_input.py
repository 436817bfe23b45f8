"""Mistakes at the command line: one clear line that names what matters, exit status 2, nothing written half."""

import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sct_jax
from sct_jax.training import saver


@pytest.fixture
def train(sct_jax_command, tiny_config, tmp_path):
    """``train("--config.seed=1", ...)`` trains the tiny config into ``tmp_path / "run"``, or another workdir."""

    def run(*arguments, workdir=tmp_path / "run"):
        return sct_jax_command("train", "--config", tiny_config, "--workdir", workdir, *arguments)

    return run


@pytest.fixture
def copied_run(tiny_run, tmp_path):
    """A copy of the tiny run, to damage."""
    return shutil.copytree(tiny_run, tmp_path / "run")


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_nothing_half_written(folder: Path) -> None:
    """No temporary files, and every checkpoint there is can be loaded."""
    names = [path.name for path in folder.rglob("*")]
    assert [name for name in names if name.startswith(".") or "tmp" in name] == []
    for checkpoint in folder.glob("checkpoints/*"):
        sct_jax.load(checkpoint)


def image_folder(root: Path, count: int = 16) -> Path:
    """A folder of grey 8x8 noise images in two classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8), dtype=np.uint8)
    for index, image in enumerate(pixels):
        folder = root / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index:02d}.png")
    return root


# The config.


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--config.optimizer.lrr=1", ["config.optimizer.lrr", "did you mean config.optimizer.lr?"]),
        ("--config.optimizer.learning_rate=1", ["optimizer.learning_rate", "did you mean config.optimizer.lr?"]),
        ("--config.batch_size=many", ["config.batch_size", "many", "whole number"]),
        ("--config.batch_size=1.5", ["config.batch_size", "1.5", "whole number"]),
        ("--config.data.flip=maybe", ["config.data.flip", "maybe", "True or False"]),
        ("--config.optimizer.lr=-1", ["config.optimizer.lr", "-1", "> 0"]),
        ("--config.model.name=film_mpl", ["config.model.name", "film_mpl", "did you mean 'film_mlp'?"]),
        ("--config.mesh.data=9", ["config.mesh.data", "9", "8 devices"]),
        ("--config.mesh.data=0", ["config.mesh.data", "8 devices"]),
        ("--config.data.split=trian", ["trian", "train"]),
        ("--config.data.image_size=7", ["image_size", "7", "8x8"]),
        ("--config.data.path=/nowhere", ["digits", "/nowhere"]),
    ],
)
def test_a_wrong_config_is_refused_before_anything_is_written(train, tmp_path, override, named):
    complaint = train(override).complaint
    assert all(part in complaint for part in named), complaint
    assert not (tmp_path / "run").exists()


def test_a_batch_that_does_not_divide_over_the_devices(train, tmp_path):
    complaint = train("--config.mesh.data=8", "--config.batch_size=12").complaint
    assert "config.batch_size = 12" in complaint
    assert "8 devices" in complaint
    assert "try 16" in complaint or "try 8" in complaint
    assert not (tmp_path / "run").exists()


def test_a_batch_whose_parts_do_not_divide_over_the_devices(train, tmp_path):
    complaint = train("--config.mesh.data=8", "--config.batch_size=24", "--config.optimizer.accumulate=2").complaint
    assert "config.batch_size = 24" in complaint
    assert "2 micro-batches" in complaint
    assert not (tmp_path / "run").exists()


def test_an_image_size_the_network_cannot_halve(train, tmp_path):
    complaint = train("--config.model.name=ddpmpp", "--config.model.channel_mult=1,1,1,1,1").complaint
    assert "8" in complaint
    assert "16" in complaint  # four halvings need a multiple of 16
    assert not (tmp_path / "run").exists()


# The data.


@pytest.mark.parametrize("make", [False, True], ids=["missing", "empty"])
@pytest.mark.parametrize("source", ["folder", "zip", "idx", "cifar10", "tfds"])
def test_missing_and_empty_data_is_named(train, tmp_path, source, make):
    path = tmp_path / "images"
    if make:
        path.mkdir()
    complaint = train(f"--config.data.source={source}", f"--config.data.path={path}").complaint
    assert str(path) in complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("pipeline", ["resident", "streamed"])
@pytest.mark.parametrize("damage", ["no image at all", "cut off"])
def test_a_corrupt_image_is_named(train, tmp_path, damage, pipeline):
    bad = image_folder(tmp_path / "images") / "dog" / "05.png"
    data = bad.read_bytes()
    bad.write_bytes(b"not a png" if damage == "no image at all" else data[: len(data) - 40])
    arguments = ("--config.data.source=folder", f"--config.data.path={tmp_path / 'images'}")
    complaint = train(*arguments, f"--config.data.pipeline={pipeline}", "--config.data.prefetch=1").complaint
    assert str(bad) in complaint
    assert not list(tmp_path.glob("run/checkpoints/*"))
    assert_nothing_half_written(tmp_path)


def test_conditioning_needs_labels(train, tmp_path):
    folder = image_folder(tmp_path / "images") / "cat"
    complaint = train("--config.data.source=folder", f"--config.data.path={folder}").complaint
    assert "config.model.conditional" in complaint
    assert not (tmp_path / "run").exists()


# Sampling and evaluation.


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--labels", "11"], ["11", "0 to 9"]),
        (["--labels", "0,-2"], ["-2", "0 to 9"]),
        (["--num", "0"], ["--num 0"]),
        (["--steps", "0"], ["--steps 0"]),
        (["--steps", "-1"], ["--steps -1"]),
        (["--batch-size", "0"], ["--batch-size 0"]),
        (["--seed", "99999999999"], ["--seed 99999999999"]),
        (["--cpu-devices", "0"], ["--cpu-devices 0"]),
        (["--times", "1,80"], ["--times", "descending"]),
        (["--times", "80,-1"], ["--times", "-1"]),
        (["--times", "nan"], ["--times", "nan"]),
        (["--ema", "constant:0.5"], ["constant:0.5", "constant:0.9"]),
    ],
    ids=lambda value: "_".join(value),
)
def test_samples_that_cannot_be_drawn(sct_jax_command, tiny_run, tmp_path, arguments, named):
    out = tmp_path / "samples.npz"
    complaint = sct_jax_command("sample", "--checkpoint", tiny_run, "--out", out, *arguments).complaint
    assert all(part in complaint for part in named), complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["samples.jpg", "samples.npy", "file/samples.png", "full"])
def test_an_out_that_cannot_be_written_is_refused_before_sampling(sct_jax_command, tmp_path, name):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "theirs.txt").write_text("precious")
    before = files_below(tmp_path)
    # The checkpoint is not there either: --out is looked at first.
    complaint = sct_jax_command("sample", "--checkpoint", "nowhere", "--out", tmp_path / name).complaint
    assert str(tmp_path / name) in complaint
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--num", "0"], ["--num 0"]),
        (["--num", "-5"], ["--num -5"]),
        (["--steps", "0"], ["--steps 0"]),
        (["--metrics", "fdd_pca"], ["fdd_pca", "fd_pca"]),
        (["--data-path", "/nowhere"], ["/nowhere"]),
    ],
    ids=lambda value: "_".join(value),
)
def test_an_evaluation_that_cannot_be_made(sct_jax_command, tiny_run, tmp_path, arguments, named):
    out = tmp_path / "metrics.json"
    complaint = sct_jax_command("evaluate", "--checkpoint", tiny_run, "--out", out, *arguments).complaint
    assert all(part in complaint for part in named), complaint
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["evaluate", "report"])
def test_an_out_below_a_file_is_refused(sct_jax_command, tiny_run, tmp_path, verb):
    (tmp_path / "file").write_text("not a folder")
    run = [tiny_run] if verb == "report" else ["--checkpoint", tiny_run, "--steps", "1", "--num", "80"]
    complaint = sct_jax_command(verb, *run, "--out", tmp_path / "file" / "out").complaint
    assert str(tmp_path / "file") in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("make", [False, True], ids=["missing", "empty"])
def test_a_report_of_no_run(sct_jax_command, tmp_path, make):
    run = tmp_path / "run"
    if make:
        run.mkdir()
    complaint = sct_jax_command("report", run, "--out", tmp_path / "report.html").complaint
    assert str(run) in complaint
    assert not (tmp_path / "report.html").exists()


# Checkpoints.


@pytest.mark.parametrize("verb", ["sample", "evaluate", "train"])
@pytest.mark.parametrize("make", [False, True], ids=["missing", "empty"])
def test_a_missing_checkpoint_is_named(sct_jax_command, train, tmp_path, verb, make):
    run = tmp_path / "other"
    if make:
        run.mkdir()
    if verb == "train":
        finished = train(f"--config.init.checkpoint={run}")
    else:
        finished = sct_jax_command(verb, "--checkpoint", run, "--out", tmp_path / "out.png")
    assert str(run) in finished.complaint
    assert not (tmp_path / "out.png").exists()
    assert not list(tmp_path.glob("run/checkpoints/*"))
    assert_nothing_half_written(tmp_path)


def test_starting_from_another_architecture(train, tiny_run, tmp_path):
    complaint = train(f"--config.init.checkpoint={tiny_run}", "--config.model.channels=32").complaint
    assert str(tiny_run) in complaint
    assert "another architecture" in complaint
    assert "(32,) there and (64,) here" in complaint  # of blocks/0/film/bias, twice the width
    assert not list(tmp_path.glob("run/checkpoints/*"))
    assert_nothing_half_written(tmp_path)


@pytest.mark.parametrize("override", ["--config.model.channels=32", "--config.model.num_blocks=2"])
def test_resuming_with_another_architecture_changes_nothing(train, copied_run, override):
    before = files_below(copied_run)
    complaint = train(override, "--config.total_steps=8").complaint
    assert str(copied_run) in complaint
    assert override.split("=")[0].removeprefix("--") in complaint
    assert files_below(copied_run) == before


def test_resuming_with_another_optimizer_says_what_to_do(train, copied_run):
    before = files_below(copied_run)
    complaint = train("--config.optimizer.clip_norm=1", "--config.total_steps=8").complaint
    assert str(copied_run) in complaint
    assert "optimizer" in complaint
    assert "init.checkpoint" in complaint
    assert files_below(copied_run) == before


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES = {
    "weights cut off": lambda step: [_cut(path) for path in step.rglob("d/*")],
    "weights lost": lambda step: [path.unlink() for path in step.rglob("d/*")],
    "index lost": lambda step: [path.unlink() for path in step.rglob("manifest.ocdbt")],
    "description lost": lambda step: [path.unlink() for path in step.rglob("_METADATA")],
    "description cut off": lambda step: [_cut(path) for path in step.rglob("_METADATA")],
    "meta cut off": lambda step: _cut(step / "meta" / "metadata"),
    "meta empty": lambda step: (step / "meta" / "metadata").write_text("{}"),
    "meta lost": lambda step: (step / "meta" / "metadata").unlink(),
    "ema lost": lambda step: shutil.rmtree(step / "ema"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named(sct_jax_command, copied_run, tmp_path, damage):
    DAMAGES[damage](copied_run / "checkpoints" / "4")
    out = tmp_path / "samples.png"
    complaint = sct_jax_command("sample", "--checkpoint", copied_run, "--num", "1", "--out", out).complaint
    assert str(copied_run / "checkpoints" / "4") in complaint
    assert str(copied_run / "checkpoints" / "2") in complaint  # the one that can be used instead
    assert not out.exists()
    sct_jax.load(copied_run / "checkpoints" / "2")


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_shows_in_the_sizes_of_the_files(copied_run, damage):
    place = copied_run / "checkpoints" / "4"
    assert saver._lacks(place) == ""
    DAMAGES[damage](place)
    assert saver._lacks(place)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("damage", ["weights cut off", "index lost", "description lost"])
def test_a_damaged_checkpoint_is_passed_over(train, copied_run, damage, listed):
    """Found by its sizes or, where the list of these is lost too, by reading it."""
    place = copied_run / "checkpoints" / "4"
    DAMAGES[damage](place)
    if not listed:
        (place / saver.LIST).unlink()
    finished = train("--config.total_steps=8")
    assert finished.status == 0
    assert f"checkpoint {place}" in finished.err
    assert "resuming from step 2" in finished.err
    assert sorted(path.name for path in place.parent.iterdir()) == ["6", "8", "damaged-4"]
    assert sct_jax.load(copied_run).step == 8
    steps = [json.loads(line)["step"] for line in (copied_run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8]


def test_where_all_checkpoints_are_damaged_nothing_is_touched(train, copied_run):
    for step in ("2", "4"):
        DAMAGES["weights cut off"](copied_run / "checkpoints" / step)
    before = files_below(copied_run)
    complaint = train("--config.total_steps=8").complaint
    assert str(copied_run / "checkpoints" / "4") in complaint
    assert "no other one is whole" in complaint
    assert files_below(copied_run) == before


def test_other_settings_are_no_damage(train, copied_run):
    """The context of the state is another one then, so the checkpoint would not fit: it must stay where it is."""
    before = files_below(copied_run)
    complaint = train("--config.total_steps=8", "--config.objective.bootstrap=ema").complaint
    assert "config.objective.bootstrap = 'online', not 'ema'" in complaint
    assert files_below(copied_run) == before


def test_a_disk_that_fails_is_no_damage(train, copied_run, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(saver.ocp.CheckpointManager, "restore", fail)
    before = files_below(copied_run)
    assert "cannot read checkpoint" in train("--config.total_steps=8").complaint
    assert files_below(copied_run) == before


def test_what_a_kill_left_of_a_save_goes(train, copied_run):
    leftover = copied_run / "checkpoints" / "6.orbax-checkpoint-tmp-1"
    (leftover / "params").mkdir(parents=True)
    assert train("--config.total_steps=8").status == 0
    assert not leftover.exists()


# The disk.


@pytest.mark.parametrize("place", ["file", "file/run", "has_file"])
def test_a_workdir_that_cannot_be_written(train, tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "has_file").mkdir()
    (tmp_path / "has_file" / "checkpoints").write_text("not a folder")
    before = files_below(tmp_path)
    complaint = train(workdir=tmp_path / place).complaint
    assert str(tmp_path / place) in complaint
    assert files_below(tmp_path) == before


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """Writing a file larger than ``limit`` bytes fails with EFBIG, much as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_the_run_survived(run: Path, complaint: str) -> None:
    assert str(run / "checkpoints") in complaint
    assert "step 4" in complaint  # what is safe
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["2", "4"]
    assert_nothing_half_written(run)
    json.loads((run / "config.json").read_text())
    model = sct_jax.load(run)
    assert model.step == 4
    assert np.isfinite(np.asarray(model.denoise(np.zeros((1, 8, 8, 1)), np.ones(1), np.zeros(1)))).all()


def test_a_failing_save_leaves_the_previous_checkpoint(train, copied_run):
    with file_size_limit(8192):  # the config fits, the weights do not
        complaint = train("--config.total_steps=8").complaint
    assert "too large" in complaint
    assert_the_run_survived(copied_run, complaint)
    assert train("--config.total_steps=8").status == 0  # with room again, it goes on
    assert sct_jax.load(copied_run).step == 8


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte; only root may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_full_disk_while_saving_leaves_the_previous_checkpoint(train, tiny_run, small_disk):
    run = shutil.copytree(tiny_run, small_disk / "run")
    room = 48 * 1024  # enough for the config and the metrics
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
    complaint = train("--config.total_steps=8", workdir=run).complaint
    assert "No space left on device" in complaint
    assert_the_run_survived(run, complaint)


def test_a_full_disk_before_the_start(train, tiny_run, small_disk):
    run = shutil.copytree(tiny_run, small_disk / "run")
    before = files_below(run)
    (small_disk / "ballast").write_bytes(bytes(shutil.disk_usage(small_disk).free))
    complaint = train("--config.total_steps=8", workdir=run).complaint
    assert "No space left on device" in complaint
    assert files_below(run) == before


def test_samples_that_do_not_fit_leave_nothing(sct_jax_command, tiny_run, tmp_path):
    out = tmp_path / "samples.npz"
    with file_size_limit(1024):
        complaint = sct_jax_command("sample", "--checkpoint", tiny_run, "--num", "64", "--out", out).complaint
    assert str(out) in complaint
    assert list(tmp_path.iterdir()) == []


# Numbers.


def test_training_that_is_no_longer_finite_stops_with_the_step(train, tmp_path):
    complaint = train("--config.optimizer.lr=1e30", "--config.checkpoint.every_steps=1").complaint
    assert "at step 1:" in complaint  # the first loss after the first update
    assert "nan" in complaint or "inf" in complaint
    assert "optimizer.lr" in complaint
    assert_nothing_half_written(tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line)["loss"]) for line in lines)
