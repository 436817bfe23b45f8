"""launch/gke.sh: what it fills in is a JobSet by the public API's schema, and restarts on all but mistakes."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

SCHEMA = json.loads((Path(__file__).parent / "jobset_schema.json").read_text())
NEEDED = ("--image", "gcr.io/me/sct-jax:tpu", "--claim", "shared")
TRAIN = ("--", "--config", "configs/imagenet64_sct.py", "--workdir", "/shared/a b", '--config.note="a\\b" @NAME@ & co')


def rendered(clone, *arguments: str) -> dict[str, Any]:
    done = clone.run("gke.sh", "--dry-run", *NEEDED, *arguments, *TRAIN)
    assert (done.returncode, done.stderr) == (0, "")
    return yaml.safe_load(done.stdout)


def job(jobset: dict[str, Any]) -> dict[str, Any]:
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_what_is_applied_fits_the_schema(clone):
    jobset = rendered(clone, "--name", "sct-64", "--accelerator", "tpu-v6e-slice", "--topology", "8x16")
    jsonschema.validate(jobset, SCHEMA)
    assert job(jobset)["parallelism"] == job(jobset)["completions"] == 32
    pod = job(jobset)["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "8x16"
    assert pod["containers"][0]["args"] == ["train", *TRAIN[1:]]


def test_the_schema_refuses_what_the_api_would(clone):
    for spoil in (
        lambda jobset: jobset["metadata"].update(name="Under_score"),
        lambda jobset: jobset["spec"].update(maxRestarts=3),
        lambda jobset: job(jobset).update(parallelism="4"),
        lambda jobset: job(jobset)["template"]["spec"].update(restartPolicy="OnFailure"),
        lambda jobset: job(jobset)["podFailurePolicy"]["rules"][0]["onExitCodes"].update(values=[0]),
        lambda jobset: jobset["spec"]["failurePolicy"]["rules"][0].update(action="Fail"),
    ):
        jobset = rendered(clone)
        spoil(jobset)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(jobset, SCHEMA)


def test_only_mistakes_fail_the_jobset(clone):
    jobset = rendered(clone)
    policy = jobset["spec"]["failurePolicy"]
    assert policy["maxRestarts"] >= 10
    assert [(rule["action"], rule["onJobFailureReasons"]) for rule in policy["rules"]] == [
        ("FailJobSet", ["PodFailurePolicy"])
    ]
    spec = job(jobset)
    assert [rule["onExitCodes"]["values"] for rule in spec["podFailurePolicy"]["rules"]] == [[2]]
    containers = [container["name"] for container in spec["template"]["spec"]["containers"]]
    assert spec["podFailurePolicy"]["rules"][0]["onExitCodes"]["containerName"] in containers
    assert spec["backoffLimit"] == 0  # one pod that fails ends the Job: training cannot go on without it


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--topology", "4"), "write it as 4x4"),
        (("--topology", "3x3"), "no whole hosts of 4"),
        (("--chips", "four"), "how many chips"),
        (("--name", "a b"), "only letters"),
        (("--queue", "x"), "unknown argument --queue"),
        (("--image",), "--image needs a value"),
    ],
)
def test_mistakes_are_one_line(clone, arguments: tuple[str, ...], says: str):
    done = clone.run("gke.sh", "--dry-run", *NEEDED, *arguments, *(TRAIN if len(arguments) == 2 else ()))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert says in done.stderr


def test_it_is_applied_with_kubectl(clone):
    clone.stub("kubectl", f'#!/bin/sh\necho "$@" >"{clone.root}/called"\ncat >"{clone.root}/applied"\n')
    assert clone.run("gke.sh", *NEEDED, *TRAIN).returncode == 0
    assert (clone.root / "called").read_text() == "apply -f -\n"
    assert yaml.safe_load((clone.root / "applied").read_text()) == rendered(clone)
