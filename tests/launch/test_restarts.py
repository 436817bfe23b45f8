"""The restart loop of the launch scripts, against a stub of sct-jax that exits as it is told."""

import os
import signal
import time

import pytest

TRAIN = ("--config", "a.py", "--workdir", "runs/a b")


def test_restarts_until_training_is_done(clone):
    clone.script_statuses(75, 143, 137, 1, 0)
    done = clone.run("tpu_vm.sh", *TRAIN)
    assert done.returncode == 0, done.stderr
    assert clone.calls == ["train --config a.py --workdir runs/a b"] * 5
    assert [line.partition("exit status ")[2] for line in done.stderr.splitlines()] == [
        f"{status}: restarting in 0 s" for status in (75, 143, 137, 1)
    ]


@pytest.mark.parametrize("status", [2, 130])
def test_a_mistake_and_ctrl_c_end_it(clone, status: int):
    clone.script_statuses(75, status)
    assert clone.run("tpu_vm.sh", *TRAIN).returncode == status
    assert len(clone.calls) == 2


def test_gives_up_after_five_quick_failures(clone):
    clone.script_statuses(*[1] * 9)
    done = clone.run("restart.sh", str(clone.root / ".venv/bin/sct-jax"), "train")
    assert done.returncode == 1
    assert len(clone.calls) == 5
    assert "giving up" in done.stderr.splitlines()[-1]


def test_failures_that_are_not_quick_are_no_reason_to_give_up(clone):
    clone.script_statuses(*[1] * 9)
    command = str(clone.root / ".venv/bin/sct-jax")
    assert clone.run("restart.sh", command, "train", SCT_QUICK_FAILURE="0").returncode == 0
    assert len(clone.calls) == 10


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143)])
def test_a_signal_is_handed_on_once_and_not_restarted_after(clone, signum: signal.Signals, status: int):
    saving = (
        '#!/usr/bin/env bash\ntrap "sleep 0.3; echo saved; exit {0}" {1}\necho ready\nwhile :; do sleep 0.05; done\n'
    )
    received = signal.SIGTERM if signum == signal.SIGHUP else signum
    clone.stub("sct-jax", saving.format(status, received.name[3:]))
    process = clone.start("restart.sh", "sct-jax", "train")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signum)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (status, "saved\n", "")


def test_training_that_is_killed_alone_goes_on(clone):
    clone.stub("sct-jax", "#!/usr/bin/env bash\n[[ -e again ]] && exit 0\ntouch again; echo $$; exec sleep 60\n")
    process = clone.start("restart.sh", "sct-jax", "train")
    pid = int(process.stdout.readline())
    time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "exit status 137: restarting" in err


def test_the_environment_is_made_once(clone):
    for _ in range(2):
        assert clone.run("tpu_vm.sh", *TRAIN).returncode == 0
    installs = (clone.root / ".venv/bin/pip.log").read_text().splitlines()
    assert len([line for line in installs if "install" in line]) == 1
    assert installs[-1].endswith(f"--editable {clone.root}[tpu]")
