"""A run on a Gaussian mixture, end to end: floats stay floats, and the truth is what it is measured by."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import sct_jax
from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import open_source
from sct_jax.errors import UserError
from sct_jax.sampling.output import write_images
from sct_jax.training import checkpoint

CONFIG = """from sct_jax.config import Config, default_config


def get_config() -> Config:
    config = default_config()
    config.total_steps = 4
    config.batch_size = 16
    config.data.source = "gmm"
    config.data.path = "64d"
    config.model.name = "film_mlp"
    config.model.conditional = True
    config.model.channels = 16
    config.model.num_blocks = 1
    config.mesh.data = 1
    config.ema.profiles = ("constant:0.9",)
    config.log.every_steps = 4
    config.log.tensorboard = False
    config.sampling.steps = (1,)
    config.sampling.num_images = 40
    config.evaluation.every_steps = 4
    config.evaluation.num_images = 40
    config.evaluation.target_queries = 8
    return config
"""


def test_floats_stay_floats_and_the_truth_measures(sct_jax_command, tmp_path):
    run = tmp_path / "run"
    (tmp_path / "config.py").write_text(CONFIG, encoding="utf-8")
    done = sct_jax_command("train", "--config", tmp_path / "config.py", "--workdir", run)
    assert done.status == 0, done.err
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"w2", "consistency_error", "consistency_error_at_t_max"} < set(last)
    assert Image.open(run / "samples" / "step_00000004_1step.png").mode == "L"
    variance = json.loads((run / "target_variance.json").read_text())
    assert variance["ct_trace"][-1] == pytest.approx(64 * 0.6 * 0.25, rel=0.1)  # that of a component; not of 1/127.5

    out = tmp_path / "evaluation.json"
    done = sct_jax_command("evaluate", "--checkpoint", run, "--num", 40, "--out", out)
    assert done.status == 0, done.err
    assert "consistency_error_at_t_max" in done.out
    result = json.loads(out.read_text())
    curve, row = result["oracle"][0], result["results"][0]
    assert (curve["metric"], curve["class_conditional"]) == ("consistency_error", True)
    assert (curve["t"][-1], len(curve["error"]), curve["error"][-1]) == (80.0, 13, row["consistency_error_at_t_max"])
    assert row["consistency_error"] == pytest.approx(np.mean(curve["error"]))
    assert row["consistency_error"] > 0.05  # four steps
    assert 1.0 < result["floor"]["w2"] < row["w2"]
    assert "unknown metric" in sct_jax_command("evaluate", "--checkpoint", run, "--metrics", "fd_pca").complaint

    # A network that knows nothing answers c_skip x, of standard deviation 0.25 at t = 0.5: some of 128,000 pass 1.
    out, how = tmp_path / "samples.npz", ("--num", 2000, "--times", 0.5, "--batch-size", 2000)
    assert sct_jax_command("sample", "--checkpoint", run, *how, "--out", out).status == 0
    stored = np.load(out)
    assert (stored["images"].dtype, stored["images"].shape) == (np.float32, (2000, 8, 8, 1))
    assert 1.0 < np.abs(stored["images"]).max() < 2.0
    assert stored["labels"].tolist() == [k % 10 for k in range(2000)]


def test_a_two_time_model_is_measured_by_its_jumps_too(sct_jax_command, tmp_path):
    """No method of this version trains one, so its weights are random ones."""
    (tmp_path / "config.py").write_text(CONFIG.replace("64d", "2d"), encoding="utf-8")
    config = config_lib.load_config(tmp_path / "config.py", {"model.target_time": "True"})
    spec = open_source("gmm", "2d").spec
    params = models.build(config.model, spec).init(jax.random.key(0))
    checkpoint.write_weights(tmp_path / "run", jax.tree.map(lambda p: p + 0.1, params), config, spec)
    out = tmp_path / "evaluation.json"
    options = ("--checkpoint", tmp_path / "run", "--num", 40, "--steps", 2, "--noise", "none", "--out", out)
    done = sct_jax_command("evaluate", *options)
    assert done.status == 0, done.err
    result = json.loads(out.read_text())
    errors = {f"{name}_error{at}" for name in ("consistency", "jump") for at in ("", "_at_t_max")}
    assert errors < set(result["results"][0])
    assert result["results"][0]["jump_error"] > 1e-3
    assert result["provenance"]["sampling"] == {"kind": "two-time", "noise": "none", "boundary": "zero"}
    refused = sct_jax_command(
        "train", "--config", tmp_path / "config.py", "--workdir", tmp_path / "new", "--config.model.target_time=True"
    )
    assert "config.model.target_time = True: objective.method = 'sct' never trains this input" in refused.complaint


def test_pictures_of_floats(tmp_path):
    points = np.zeros((3, 1, 1, 2), np.float32)
    with pytest.raises(UserError, match=r"no pictures; end it in \.npz or \.png"):
        write_images(tmp_path / "points", points, None)
    assert Image.open(write_images(tmp_path / "points.png", points, None)).size == (384, 384)
    shades = np.array([-2.0, -1.0, 0.2, 1.0], np.float32).reshape(1, 2, 2, 1)
    write_images(tmp_path / "shades", shades, None)
    assert np.asarray(Image.open(tmp_path / "shades" / "000000.png")).tolist() == [[0, 0], [153, 255]]


def test_too_many_samples_are_refused_before_the_first_step(sct_jax_command, tmp_path):
    config = tmp_path / "config.py"
    config.write_text(CONFIG, encoding="utf-8")
    refused = sct_jax_command(
        "train", "--config", config, "--workdir", tmp_path / "run", "--config.evaluation.num_images=1501"
    )
    assert "w2 compares 1 to 1,500 samples" in refused.complaint


def test_checkpoints_from_before_data_had_a_dtype_are_of_pixels(tiny_run, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(tiny_run, old)
    metas = [path for path in (old / "checkpoints").rglob("*") if path.is_file() and path.parent.name == "meta"]
    changed = 0
    for path in metas:
        try:
            content = json.loads(path.read_text())
        except ValueError:
            continue
        if "spec" in content:
            assert content["spec"].pop("dtype") == "uint8"
            path.write_text(json.dumps(content))
            changed += 1
    assert changed == 2
    assert sct_jax.load(old).spec == sct_jax.load(tiny_run).spec
