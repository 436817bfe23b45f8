"""launch/tpu_pod.sh against a stub of gcloud: it asks for the slice, trains, and asks again after a preemption."""

import subprocess

import pytest

HERE = ("--name", "sct", "--zone", "us-west4-a")
TRAIN = ("--", "--config", "configs/cifar10_sct.py", "--workdir", "/shared/a b")

# States are told, and ends of ssh come, in the order of the lines of the files states and ends.
GCLOUD = """#!/usr/bin/env bash
here=$(dirname "$0")
next() { head -n 1 "$here/$1"; sed -i 1d "$here/$1"; }
words=$*
echo "${words%%$'\\n'*}" >>"$here/calls"
case $* in
  *describe*) state=$(next states); [[ $state != MISSING ]] || exit 1; echo "$state" ;;
  *" ssh "*) status=$(next ends); [[ $status == 255 ]] || echo "host ended with status $status"; exit "$status" ;;
esac
"""


@pytest.fixture
def cloud(clone):
    clone.stub("gcloud", GCLOUD)
    for command in (["init", "-q"], ["add", "launch"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qma"]):
        subprocess.run(["git", *command], cwd=clone.root, check=True)

    def run(states: list[str], ends: list[int], *arguments: str) -> tuple[subprocess.CompletedProcess, list[str]]:
        (clone.bin / "states").write_text("".join(f"{state}\n" for state in states))
        (clone.bin / "ends").write_text("".join(f"{end}\n" for end in ends))
        done = clone.run("tpu_pod.sh", *HERE, *arguments, *TRAIN, SCT_POLL="0")
        calls = (clone.bin / "calls").read_text().splitlines()
        verbs = [next(word for word in call.split()[3:] if word in VERBS) for call in calls if " tpus " in call]
        assert all("--zone=us-west4-a" in call for call in calls if " ssh " not in call)
        return done, verbs

    return run


VERBS = ("describe", "create", "delete", "scp", "ssh")


def test_asks_waits_and_trains(cloud):
    done, calls = cloud(["MISSING", "WAITING_FOR_RESOURCES", "ACTIVE"], [0], "--type", "v5litepod-16", "--spot")
    assert done.returncode == 0, done.stderr
    assert calls == ["describe", "create", "describe", "describe", "scp", "ssh"]


def test_asks_again_after_a_preemption(cloud):
    done, calls = cloud(["ACTIVE", "SUSPENDED", "MISSING", "ACTIVE"], [255, 0], "--type", "v6e-64")
    assert done.returncode == 0, done.stderr
    assert calls == ["describe", "scp", "ssh", "describe", "delete", "describe", "create", "describe", "scp", "ssh"]


def test_goes_on_where_a_connection_broke_or_training_failed(cloud):
    done, calls = cloud([], [255, 1, 75, 0])
    assert done.returncode == 0, done.stderr
    assert calls == ["scp", "ssh"] * 4


def test_a_mistake_ends_it(cloud):
    done, calls = cloud([], [2, 0])
    assert done.returncode == 2
    assert calls == ["scp", "ssh"]


def test_a_request_that_failed_ends_it(cloud):
    done, calls = cloud(["FAILED"], [], "--type", "v4-16")
    assert (done.returncode, calls) == (2, ["describe"])
    assert "the request for v4-16 failed" in done.stderr


def test_dry_run(clone):
    clone.stub("gcloud", "#!/bin/sh\nexit 9\n")
    done = clone.run("tpu_pod.sh", "--dry-run", *HERE, "--type", "v5p-32", "--spot", "--setup", "mount it", *TRAIN)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == (
        "gcloud compute tpus queued-resources create sct --node-id=sct --accelerator-type=v5p-32 "
        "--runtime-version=v2-alpha-tpuv5 --spot --zone=us-west4-a --quiet"
    )
    assert lines[1].startswith("git -C ")
    assert [line.split()[4] for line in lines[2:4]] == ["scp", "ssh"]
    assert "mount it" in lines[3]
    assert "SCT_COORDINATOR=auto" in lines[3]
    assert lines[-1] == "gcloud compute tpus queued-resources delete sct --force --zone=us-west4-a --quiet"
    short = clone.run("tpu_pod.sh", "--dry-run", *HERE, *TRAIN).stdout.splitlines()
    assert [line.split()[0] for line in short] == ["git", "gcloud", "gcloud"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (TRAIN, "--name NAME --zone ZONE"),
        (HERE, "say what to train"),
        ((*HERE, "--type", "v3-8", *TRAIN), "with --version"),
        ((*HERE, "--config", "x"), "comes after --"),
    ],
)
def test_mistakes_are_one_line(clone, arguments: tuple[str, ...], says: str):
    done = clone.run("tpu_pod.sh", "--dry-run", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr


def test_what_the_hosts_run_is_a_program(clone):
    """The remote command, run here with stubs: it unpacks, sets up, trains under the lock, and tells its status."""
    done = clone.run("tpu_pod.sh", "--dry-run", *HERE, "--setup", "echo set up", *TRAIN)
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {done.stdout.splitlines()[2]}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")
    command = next(word for word in words if word.startswith("--command=")).removeprefix("--command=")
    home = clone.root / "home"
    clone.stub("tpu_vm.sh", '#!/bin/sh\necho "$SCT_COORDINATOR" "$@"\nexit 75\n', home / "pack/launch")
    subprocess.run(["tar", "-czf", home / "sct-jax.tar.gz", "-C", home / "pack", "launch"], check=True)
    ran = subprocess.run(
        ["bash", "-c", command], env=clone.environment | {"HOME": str(home)}, capture_output=True, text=True
    )
    assert ran.stdout.splitlines() == [
        "set up",
        "auto --config configs/cifar10_sct.py --workdir /shared/a b",
        "host ended with status 75",
    ], ran.stderr
    assert ran.returncode == 75
