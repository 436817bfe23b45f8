"""Provenance says where a number comes from and never names the machine."""

import json
import os
import subprocess
from pathlib import Path

import sct_jax
from sct_jax.evaluation import provenance


def test_facts_are_json_and_complete():
    facts = json.loads(json.dumps(provenance(num=5000, seeds=[0, 1, 2])))
    assert (facts["num"], facts["seeds"]) == (5000, [0, 1, 2])
    assert facts["versions"]["sct_jax"] == sct_jax.__version__
    assert {"python", "jax", "flax", "optax", "numpy"} <= set(facts["versions"])
    assert facts["date"].endswith("+00:00")


def test_commit_is_that_of_the_checkout():
    package = Path(sct_jax.__file__).parent
    done = subprocess.run(["git", "-C", package, "rev-parse", "HEAD"], capture_output=True, text=True)
    tracked = subprocess.run(
        ["git", "-C", package, "ls-files", "evaluation/provenance.py"], capture_output=True, text=True
    )
    commit = provenance()["commit"]
    if done.returncode == 0 and tracked.stdout:
        assert commit["hash"] == done.stdout.strip()
        assert isinstance(commit["dirty"], bool)
    else:
        assert commit is None


def test_absolute_paths_are_shortened_relative_ones_kept(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    inside = str(tmp_path / "runs" / "a")
    command = [
        "/opt/venv/bin/sct-jax",
        "evaluate",
        f"--checkpoint={inside}",
        "--out",
        "/srv/elsewhere/m.json",
        "--num=5",
    ]
    monkeypatch.setattr("sys.argv", command)
    facts = provenance(checkpoint="runs/sct", data={"path": Path("/data/secret/cifar"), "home": "~/x"}, list=["/a/b"])
    assert facts["command"] == ["sct-jax", "evaluate", "--checkpoint=runs/a", "--out", "…/m.json", "--num=5"]
    assert facts["checkpoint"] == "runs/sct"
    assert facts["data"] == {"path": "…/cifar", "home": "…/x"}
    assert facts["list"] == ["…/b"]
    assert str(tmp_path) not in json.dumps(facts)
    assert os.path.expanduser("~") not in json.dumps(facts)
