"""launch/slurm.sbatch against stubs of srun and scontrol; once with two real processes that train together."""

import json
import sys

import pytest

JOB = {"SLURM_JOB_ID": "4242", "SLURM_JOB_NODELIST": "here", "SCT_QUICK_FAILURE": "0"}
TRAIN = ("--config", "a.py", "--workdir", "runs/a b")

# Starts the command as two tasks of a node, as srun does, and ends with the highest status.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=2 'SLURM_STEP_TASKS_PER_NODE=2'
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!); done
trap 'kill -TERM "${tasks[@]}"' TERM
highest=0
for task in "${tasks[@]}"; do
  status=0
  wait "$task" || status=$?
  ((status <= highest)) || highest=$status
done
exit "$highest"
"""


@pytest.fixture
def slurm(clone):
    clone.stub("srun", SRUN)
    clone.stub("scontrol", f'#!/bin/sh\necho "$@" >>"{clone.root}/requeued"\n')
    return clone


def requeued(clone) -> bool:
    path = clone.root / "requeued"
    return path.exists() and path.read_text() == "requeue 4242\n"


@pytest.mark.parametrize(
    ("statuses", "ends", "again"),
    [((0, 0), 0, False), ((2, 2), 2, False), ((143, 143), 143, True), ((75, 137), 137, True)],
)
def test_back_into_the_queue_after_all_but_mistakes(slurm, statuses: tuple[int, int], ends: int, again: bool):
    tasks = f'#!/bin/bash\nends=({statuses[0]} {statuses[1]})\necho "$@"\nexit ${{ends[$SLURM_PROCID]}}\n'
    slurm.stub("sct-jax", tasks, slurm.root / ".venv/bin")
    done = slurm.run("slurm.sbatch", *TRAIN, **JOB)
    assert (done.returncode, requeued(slurm)) == (ends, again), done.stderr
    assert done.stdout.count("train --config a.py --workdir runs/a b\n") == 2


def test_not_forever(slurm):
    slurm.stub("sct-jax", "#!/bin/sh\nexit 75\n", slurm.root / ".venv/bin")
    done = slurm.run("slurm.sbatch", *TRAIN, **JOB, SLURM_RESTART_COUNT="100")
    assert (done.returncode, requeued(slurm)) == (75, False)
    assert "giving up" in done.stdout


def test_outside_a_job_and_outside_the_clone(slurm, tmp_path):
    done = slurm.run("slurm.sbatch", *TRAIN)
    assert done.returncode == 2
    assert "submit it with sbatch" in done.stderr
    done = slurm.run("slurm.sbatch", *TRAIN, **JOB, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert "in the folder of the clone" in done.stderr


def test_dry_run(slurm):
    done = slurm.run("slurm.sbatch", "--dry-run", *TRAIN, SCT_EXTRA="cuda13")
    install, step, again = done.stdout.splitlines()
    assert install.endswith("\\[cuda13\\]")
    assert step.startswith("srun --kill-on-bad-exit=0 --wait=0 ")
    assert step.endswith("/sct-jax train --config a.py --workdir runs/a\\ b")
    assert again.startswith("# and after any exit status but 0 and 2")
    assert not requeued(slurm)


@pytest.mark.slow
def test_two_real_processes_train_together(slurm, tiny_config):
    slurm.stub("sct-jax", f'#!/bin/sh\nexec {sys.executable} -m sct_jax "$@"\n', slurm.root / ".venv/bin")
    workdir = slurm.root / "run"
    done = slurm.run(
        "slurm.sbatch",
        *("--config", str(tiny_config), "--workdir", str(workdir), "--config.mesh.data=-1"),
        **JOB,
        XLA_FLAGS="--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0",
        SLURM_SUBMIT_DIR=str(slurm.root),
    )
    assert done.returncode == 0, done.stderr
    assert "devices   4 x" in done.stderr
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    assert not requeued(slurm)
