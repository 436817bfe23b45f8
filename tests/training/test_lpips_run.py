"""Training with LPIPS as the distance, and what is said where it cannot be."""

import json

import jax
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import open_source
from sct_jax.features import lpips, store
from sct_jax.objectives.table import ROWS
from sct_jax.training import checkpoint, loop


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of random weights of SqueezeNet's LPIPS."""
    rng = np.random.default_rng(0)
    params = {}
    for layer, parts in lpips.shapes("squeeze").items():
        params[layer] = {part: rng.normal(size=shape).astype(np.float32) for part, shape in parts.items()}
        if "kernel" in parts:
            params[layer]["kernel"] *= np.float32(np.sqrt(2 / np.prod(parts["kernel"][:3])))
            params[layer]["bias"] *= 0
        else:
            params[layer]["weight"] = abs(params[layer]["weight"])
    return store.save(tmp_path_factory.mktemp("weights") / "lpips", "lpips", params, {"network": "lpips-squeeze"})


@pytest.fixture
def train(sct_jax_command, tiny_config, tmp_path):
    def run(*arguments, workdir="run"):
        ct = ("--config.objective.method=ct", "--config.objective.transition=sample", "--config.batch_size=2")
        return sct_jax_command(
            "train", "--config", tiny_config, "--workdir", tmp_path / workdir, *ct,
            "--config.objective.distance=lpips", *arguments,
        )  # fmt: skip

    return run


def test_a_run_trains_resumes_to_the_bit_and_is_sampled_without_the_weights(train, weights, sct_jax_command, tmp_path):
    given = f"--config.objective.lpips={weights}"
    for steps, workdir in ((2, "parts"), (4, "parts"), (4, "whole")):
        done = train(given, f"--config.total_steps={steps}", workdir=workdir)
        assert done.status == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert np.isfinite(losses).all()
    assert min(losses) > 0
    whole, parts = (
        checkpoint.read_weights(checkpoint.resolve(tmp_path / name), "raw")[0] for name in ("whole", "parts")
    )
    jax.tree.map(np.testing.assert_array_equal, whole, parts)
    samples = tmp_path / "samples.npz"
    assert sct_jax_command("sample", "--checkpoint", tmp_path / "whole", "--num", 4, "--out", samples).status == 0


def test_steps_are_dispatched_one_by_one_on_a_cpu(tiny_config):
    config = config_lib.load_config(str(tiny_config), {})
    network = models.build(config.model, open_source("digits").spec)
    config.log.every_steps = config.checkpoint.every_steps = 10
    assert loop.steps_per_dispatch(config, network) == 10
    config.objective.update(ROWS["ct"] | {"distance": "lpips"})
    assert loop.steps_per_dispatch(config, network) == 1


def test_what_cannot_be_is_one_line(train, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cases = {
        (): "vgg16-397923af.pth",  # nothing was imported: what to get
        (f"--config.objective.lpips={tmp_path / 'none'}",): "no weights of lpips",
        (f"--config.objective.lpips={weights / store.PARAMS}",): "is a file, not a folder",
        (
            f"--config.objective.lpips={weights}",
            "--config.data.source=gmm",
            "--config.data.path=2d",
        ): "between pictures of 1 or 3 channels",
    }
    for arguments, expected in cases.items():
        complaint = train(*arguments).complaint
        assert "config.objective.distance = 'lpips'" in complaint
        assert expected in complaint
