"""Two processes of two devices each: a model is drawn from, seen and summed up as by one."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

JOB = """
import jax, numpy as np
from feature_makers import make_space
from sct_jax.config import default_config
from sct_jax.data.spec import ArraySource, DataSpec
from sct_jax.evaluation.embed import Embedding, Wanted
from sct_jax.model import Model
from sct_jax.models import build
from sct_jax.training import distributed

with distributed.joined():
    config, spec = default_config(), DataSpec(8, 1, 10, 100)
    config.model.name, config.model.channels = "film_mlp", 16
    params = jax.tree.map(lambda x: x + 0.1, build(config.model, spec).init(jax.random.key(0)))
    params = jax.device_put(params, jax.local_devices()[0])  # as from a checkpoint
    model, space, own = Model(config, spec, params), make_space(), ("inception", "features")
    seeing = Embedding({"inception": space}, Wanted(frozenset({own}), images=True), model.mesh)
    pictures = np.arange(90 * 64).reshape(90, 8, 8, 1).astype(np.uint8)
    for seen in (seeing.samples(model, 45, 1, 3, batch_size=16), seeing.images(ArraySource(pictures, np.zeros(90), 0))):
        mean = seen.moments[own].mean.sum() + seen.moments[own].cov.sum()
        print("seen", jax.device_count(), seen.num, seen.images.sum(dtype=int), f"{mean:.5f}", flush=True)
"""


def run(count: int, tmp_path: Path) -> list[list[str]]:
    """What each of ``count`` processes has seen."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {"PYTHONPATH": str(Path(__file__).parent)}
    common["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={4 // count}"
    if count > 1:
        common |= {"SCT_COORDINATOR": f"127.0.0.1:{port}", "SCT_NUM_PROCESSES": str(count)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=os.environ | common | ({"SCT_PROCESS_ID": str(index)} if count > 1 else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, err) in zip(processes, ended, strict=True):
        assert process.returncode == 0, err
    return [re.findall(r"^seen .*$", out, re.MULTILINE) for out, _ in ended]


@pytest.mark.slow
def test_two_processes_see_what_one_sees(tmp_path):
    (alone,) = run(1, tmp_path)
    assert len(alone) == 2
    for together in run(2, tmp_path):
        assert together == alone
