"""For all tests: eight virtual CPU devices, caches of their own, and one tiny trained run to share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

# Before JAX is imported. Small programs are compiled more often than run here: -O0 takes a third of the time.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
for flag, value in {"--xla_force_host_platform_device_count": 8, "--xla_backend_optimization_level": 0}.items():
    if flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}={value}".strip()

TINY_CONFIG = '''"""The smallest run there is: four steps of an MLP of width 16 on the digits."""

from sct_jax.config import Config, default_config


def get_config() -> Config:
    config = default_config()
    config.total_steps = 4
    config.batch_size = 16
    config.model.name = "film_mlp"
    config.model.conditional = True
    config.model.channels = 16
    config.model.num_blocks = 1
    config.mesh.data = 1
    config.ema.profiles = ("constant:0.9",)
    config.checkpoint.every_steps = 2
    config.log.every_steps = 1
    config.log.tensorboard = False
    config.sampling.num_images = 10
    config.evaluation.target_queries = 2
    return config
'''


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


class Finished(NamedTuple):
    """What a call of the command line left behind."""

    status: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of a user's mistake; fails the test unless that is what the call ended with."""
        assert self.status == 2, f"exit status {self.status}, not 2; stderr:\n{self.err}"
        assert "Traceback" not in self.err, self.err
        lines = self.err.splitlines()
        assert [line for line in lines if line.startswith("sct-jax:")] == lines[-1:], self.err
        return lines[-1]


@pytest.fixture
def sct_jax_command(capfd: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """``sct_jax_command("train", "--config", path, ...)`` runs the command line in this process."""
    from sct_jax.cli import main

    def run(*arguments: object) -> Finished:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Finished(int(left.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file: see ``TINY_CONFIG``."""
    path = tmp_path_factory.mktemp("configs") / "tiny.py"
    path.write_text(TINY_CONFIG, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_run(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run of the tiny config, checkpoints at steps 2 and 4. Do not write into it."""
    from sct_jax.cli import main

    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    with pytest.raises(SystemExit) as left:
        main(["train", "--config", str(tiny_config), "--workdir", str(workdir)])
    assert left.value.code == 0
    return workdir
