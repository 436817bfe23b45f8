"""The command line: it answers at once, passes on what was asked, and goes the whole way from images to a report."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sct_jax.version import __version__

VERBS = ("train", "sample", "evaluate", "prepare", "plan", "ema", "export", "report")
HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "grain", "tensorflow", "numpy", "sklearn", "PIL", "ml_collections")


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def trained_with(monkeypatch):
    """The list of ``(config, workdir)`` that reach training, which itself is left out."""
    from sct_jax.training import loop

    calls = []
    monkeypatch.setattr(loop, "train", lambda config, workdir, options: calls.append((config, workdir)))
    return calls


# What answers at once.


@pytest.mark.parametrize(
    "statement", ["import sct_jax", "from sct_jax import arguments, cli; arguments.parse(['train'], cli.VERBS)"]
)
def test_nothing_heavy_is_imported_before_it_is_needed(statement):
    report = "import sys; print([name for name in sys.modules if '.' not in name])"
    finished = python("-c", f"{statement}; {report}")
    assert finished.returncode == 0, finished.stderr
    imported = finished.stdout
    assert "'sct_jax'" in imported
    assert [name for name in HEAVY if f"'{name}'" in imported] == []


def test_help_names_every_verb():
    finished = python("-m", "sct_jax", "--help")
    assert finished.returncode == 0
    assert finished.stderr == ""
    assert all(f"\n    {verb} " in finished.stdout for verb in VERBS)


def test_without_a_verb_the_help_is_shown(sct_jax_command):
    bare, asked = sct_jax_command(), sct_jax_command("--help")
    assert bare.status == asked.status == 0
    assert bare.out == asked.out != ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(sct_jax_command, verb):
    finished = sct_jax_command(verb, "--help")
    assert finished.status == 0
    assert f"usage: sct-jax {verb}" in finished.out


def test_version(sct_jax_command):
    finished = sct_jax_command("--version")
    assert (finished.status, finished.out) == (0, f"{__version__}\n")


def test_help_config_lists_the_fields(sct_jax_command):
    finished = sct_jax_command("train", "--help-config")
    assert finished.status == 0
    assert "optimizer.lr = 0.0001" in finished.out


# What is asked reaches the room that does it.


def test_overrides_in_both_forms_reach_training(sct_jax_command, tiny_config, tmp_path, trained_with):
    finished = sct_jax_command(
        *("train", "--config.seed", "5", "--config", tiny_config, "--config.optimizer.lr=0.5"),
        *("--workdir", tmp_path / "run", "--config.data.path=a=b", "--config.objective.time_mean", "-0.5"),
    )
    assert finished.status == 0, finished.err
    [(config, workdir)] = trained_with
    assert Path(workdir) == tmp_path / "run"
    assert (config.seed, config.optimizer.lr, config.data.path) == (5, 0.5, "a=b")
    assert config.objective.time_mean == -0.5
    assert config.batch_size == 16  # of the file


def test_the_last_of_two_overrides_wins(sct_jax_command, tiny_config, trained_with):
    sct_jax_command("train", "--config", tiny_config, "--workdir", "run", "--config.seed=1", "--config.seed=2")
    assert trained_with[0][0].seed == 2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["trian"], "trian"),
        (["train"], "--config"),
        (["train", "--config", "{config}"], "--workdir"),
        (["train", "--config", "{config}", "--workdir", "run", "--config.seed"], "--config.seed"),
        (["train", "--config", "{config}", "--workdir", "run", "--config.seed", "--config.x=1"], "--config.seed"),
        (["train", "--config", "{config}", "--workdir", "run", "--bogus"], "--bogus"),
        (["train", "--conf", "{config}"], "--conf"),
        (["sample", "--checkpoint", "run", "--out", "a.png", "--config.seed=1"], "--config.seed"),
        (["sample", "--out", "a.png"], "--checkpoint"),
        (["sample", "--checkpoint", "run", "--out", "a.png", "--num", "few"], "--num"),
        (["sample", "--checkpoint", "run", "--out", "a.png", "--labels", "a"], "--labels"),
        (["sample", "--checkpoint", "run", "--out", "a.png", "--noise", "some"], "--noise"),
        (["sample", "--checkpoint", "run", "--out", "a.png", "--omega", "much"], "--omega"),
        (["evaluate", "--checkpoint", "run", "--seeds", ""], "--seeds"),
        (["report"], "workdirs"),
    ],
)
def test_a_wrong_call_is_one_line_that_names_the_argument(sct_jax_command, tiny_config, trained_with, arguments, named):
    finished = sct_jax_command(*(argument.format(config=tiny_config) for argument in arguments))
    assert named in finished.complaint
    assert len(finished.err.splitlines()) == 1
    assert not trained_with


def test_debug_shows_the_traceback(tmp_path):
    finished = python("-m", "sct_jax", "train", "--config", str(tmp_path / "no.py"), "--workdir", "run", "--debug")
    assert finished.returncode == 2  # a scheduler does not restart it
    assert "Traceback" in finished.stderr
    assert "UserError: no config file" in finished.stderr
    assert finished.stderr.splitlines()[-1].startswith("sct-jax: no config file")


# The whole way.


def test_a_run_leaves_config_metrics_samples_and_checkpoints(tiny_run):
    assert json.loads((tiny_run / "config.json").read_text())["model"]["channels"] == 16
    lines = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["step"]) for line in lines] == [("train", step) for step in (1, 2, 3, 4)]
    assert all(np.isfinite(line["loss"]) and line["grad_norm"] > 0 for line in lines)
    assert sorted(path.name for path in (tiny_run / "samples").iterdir()) == [
        "step_00000004_1step.png",
        "step_00000004_2step.png",
    ]
    assert sorted(path.name for path in (tiny_run / "checkpoints").iterdir()) == ["2", "4"]


def test_a_finished_run_says_so_and_stays_as_it_is(sct_jax_command, tiny_config, tiny_run):
    before = (tiny_run / "metrics.jsonl").read_bytes()
    finished = sct_jax_command("train", "--config", tiny_config, "--workdir", tiny_run)
    assert finished.status == 0
    assert "already trained to step 4" in finished.err
    assert (tiny_run / "metrics.jsonl").read_bytes() == before


def test_more_steps_go_on_from_the_newest_checkpoint(sct_jax_command, tiny_config, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    finished = sct_jax_command("train", "--config", tiny_config, "--workdir", run, "--config.total_steps=6")
    assert finished.status == 0, finished.err
    assert "resuming from step 4" in finished.err
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["4", "6"]  # the newest two are kept


@pytest.fixture(scope="module")
def sample(tiny_run, tmp_path_factory):
    """``sample("name.npz", "--seed", 1, ...)``: what the verb wrote there."""
    from sct_jax.cli import main

    folder = tmp_path_factory.mktemp("samples")

    def run(name, *arguments):
        out = folder / name
        with pytest.raises(SystemExit) as left:
            main([*map(str, ("sample", "--checkpoint", tiny_run, "--out", out, *arguments))])
        assert left.value.code == 0
        return out

    return run


@pytest.fixture(scope="module")
def five(sample):
    """Five images of classes 3 and 5 in turn."""
    with np.load(sample("five.npz", "--num", 5, "--labels", "3,5")) as file:
        return dict(file)


def test_an_npz_holds_images_and_the_labels_in_turn(five):
    assert five["images"].shape == (5, 8, 8, 1)
    assert five["images"].dtype == np.uint8
    assert len(np.unique(five["images"], axis=0)) == 5
    assert five["labels"].tolist() == [3, 5, 3, 5, 3]


def test_samples_are_a_function_of_the_seed(sample, five):
    again = np.load(sample("again.npz", "--num", 5, "--labels", "3,5", "--seed", 0))["images"]
    other = np.load(sample("other.npz", "--num", 5, "--labels", "3,5", "--seed", 1))["images"]
    np.testing.assert_array_equal(again, five["images"])
    assert (other != five["images"]).any(axis=(1, 2, 3)).all()


def test_without_labels_every_class_has_its_turn(sample):
    assert np.load(sample("default.npz", "--num", 12))["labels"].tolist() == [*range(10), 0, 1]


def test_a_folder_holds_the_same_images_as_png(sample, five):
    files = sorted(sample("folder", "--num", 5, "--labels", "3,5").iterdir())
    assert [file.name for file in files] == [f"{index:06d}.png" for index in range(5)]
    np.testing.assert_array_equal([np.asarray(Image.open(file))[..., None] for file in files], five["images"])


def test_a_png_is_one_grid(sample, five):
    with Image.open(sample("grid.png", "--num", 5, "--labels", "3,5")) as grid:
        pixels = np.asarray(grid.convert("L"))
    assert pixels.size >= five["images"].size
    assert set(np.unique(five["images"])) <= set(np.unique(pixels))


def test_evaluate_writes_metrics_with_provenance(sct_jax_command, tiny_run, tmp_path):
    out = tmp_path / "new" / "metrics.json"
    arguments = ("--checkpoint", tiny_run, "--steps", "1,2", "--num", "80", "--seeds", "0,1", "--out", out)
    finished = sct_jax_command("evaluate", *arguments)
    assert finished.status == 0, finished.err
    result = json.loads(out.read_text())
    assert [row["sampling_steps"] for row in result["results"]] == [1, 2]
    for row in result["results"]:
        assert row["fd_pca"] > result["floor"]["fd_pca"] > 0  # four steps teach nothing
        assert 0 <= row["class_agreement"] <= 1
        each = [values["fd_pca"] for values in row["per_seed"]]
        assert len(set(each)) == 2
        assert row["fd_pca"] == pytest.approx(np.mean(each))
    made_from = result["provenance"]
    assert (made_from["step"], made_from["num_samples"], made_from["seeds"]) == (4, 80, [0, 1])
    assert f"{result['results'][0]['fd_pca']:.4f}" in finished.out


def test_evaluate_records_how_the_samples_were_guided(sct_jax_command, tiny_run, tmp_path):
    guide = tiny_run / "checkpoints" / "2"
    options = ("--guide", guide, "--omega", "2.5", "--noise", "none", "--boundary", "sigma_min", "--sigma-min", "0.01")
    results = []
    for number, extra in enumerate([(), options]):
        out = tmp_path / f"{number}.json"
        arguments = ("--checkpoint", tiny_run, "--steps", "2", "--num", "80", "--metrics", "fd_pca", "--out", out)
        finished = sct_jax_command("evaluate", *arguments, *extra)
        assert finished.status == 0, finished.err
        results.append(json.loads(out.read_text()))
    plain, guided = results
    assert plain["provenance"]["sampling"] == {"kind": "consistency", "noise": "fresh", "boundary": "zero"}
    facts = guided["provenance"]["sampling"]
    assert str(facts.pop("guide")).endswith("2")
    assert facts == {
        **{"kind": "consistency", "noise": "none", "omega": 2.5, "guide_step": 2, "guide_ema_profile": "constant:0.9"},
        **{"boundary": "sigma_min", "sigma_min": 0.01},
    }
    assert [r["results"][0]["evaluations"] for r in results] == [2, 4]
    assert plain["results"][0]["fd_pca"] != guided["results"][0]["fd_pca"]


def test_a_guide_pulls_the_samples(sample, tiny_run, five):
    early = ("--guide", tiny_run / "checkpoints" / "2")
    common = ("--num", 5, "--labels", "3,5")
    one = np.load(sample("guided.npz", *common, *early, "--omega", "300"))["images"]
    assert (one != five["images"]).any(axis=(1, 2, 3)).all()  # two steps apart, the networks are nearly alike
    none = np.load(sample("unguided.npz", *common, *early, "--omega", "0"))["images"]
    np.testing.assert_array_equal(none, five["images"])


def test_the_unconditional_prediction_guides_what_trained_with_label_dropout(sct_jax_command, tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for meta in run.glob("checkpoints/*/meta/metadata"):
        text = meta.read_text()
        assert '"label_dropout": 0.0' in text
        meta.write_text(text.replace('"label_dropout": 0.0', '"label_dropout": 0.1'))
    out = tmp_path / "images.npz"
    arguments = ("--num", 3, "--guide", "unconditional", "--omega", "-0.5", "--out", out)
    finished = sct_jax_command("sample", "--checkpoint", run, *arguments)
    assert finished.status == 0, finished.err
    assert np.load(out)["images"].shape == (3, 8, 8, 1)


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--omega", "0.5"], "--omega 0.5 needs --guide"),
        (["--guide", "unconditional"], "label_dropout > 0"),
        (["--guide", "nowhere"], "no checkpoint nowhere"),
        (["--guide", "{run}", "--omega", "nan"], "--omega nan"),
        (["--eta", "0.5"], "only phased models"),
        (["--eta", "-0.5"], "--eta -0.5: must be above 0"),
        (["--boundary", "one"], "--boundary: invalid choice: 'one'"),
        (["--sigma-min", "0.003"], "--sigma-min 0.003 needs --boundary sigma_min"),
        (["--boundary", "sigma_min", "--sigma-min", "-1"], "--sigma-min -1: must be above 0"),
    ],
    ids=lambda value: "_".join(value) if isinstance(value, list) else "",
)
def test_a_guide_or_step_that_cannot_be_is_one_line(sct_jax_command, tiny_run, tmp_path, verb, arguments, named):
    arguments = [argument.format(run=tiny_run) for argument in arguments]
    out = tmp_path / ("images.npz" if verb == "sample" else "metrics.json")
    finished = sct_jax_command(verb, "--checkpoint", tiny_run, "--out", out, *arguments)
    assert named in finished.complaint
    assert len(finished.err.splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("verb", ["sample", "evaluate", "export"])
def test_steps_and_times_that_are_hardly_meant_are_one_line_of_warning(sct_jax_command, tiny_run, tmp_path, verb):
    """And the work is done all the same."""
    out = {"sample": "images.npz", "evaluate": "metrics.json", "export": "sampler.stablehlo"}[verb]
    more = {"sample": ["--num", 4], "evaluate": ["--num", 80, "--seeds", "0,1"], "export": ["--format", "stablehlo"]}
    calls = [(["--steps", 4], "--steps 4: config.sampling.mid_times has 1 noise level, not 3")]
    calls += [(["--times", "100,1"], "--times 100.0,1.0 starts at 100, above 80")] * (verb != "export")
    for arguments, said in calls:
        finished = sct_jax_command(verb, "--checkpoint", tiny_run, "--out", tmp_path / out, *more[verb], *arguments)
        assert finished.status == 0, finished.err
        lines = [line for line in finished.err.splitlines() if line.startswith("warning:")]
        assert len(lines) == 1
        assert said in lines[0]
        assert "SamplingWarning" not in finished.err
        assert (tmp_path / out).exists()


def test_the_label_minus_one_is_read_as_one_and_needs_label_dropout(sct_jax_command, tiny_run, tmp_path):
    arguments = ("--num", 4, "--labels", "-1,5", "--out", tmp_path / "none.npz")
    complaint = sct_jax_command("sample", "--checkpoint", tiny_run, *arguments).complaint
    assert "label -1 (none) needs a model trained with config.model.label_dropout" in complaint


def test_report_is_one_file_with_the_runs(sct_jax_command, tiny_run, tmp_path):
    out = tmp_path / "report.html"
    finished = sct_jax_command("report", tiny_run, "--out", out)
    assert finished.status == 0, finished.err
    assert str(out) in finished.out
    text = out.read_text(encoding="utf-8")
    assert "tiny" in text
    assert "data:image/png;base64," in text
    assert 'src="http' not in text
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize("turned", ["", "ImportError"])
def test_an_interrupt_before_training_is_one_line_and_not_the_configs_fault(sct_jax_command, tmp_path, turned):
    """Also where a library that was being imported made an error of its own of it."""
    config = tmp_path / "config.py"
    raised = f"    raise {turned}('half') from None\n" if turned else "    raise\n"
    config.write_text(
        f"import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n{raised}"
    )
    left = sct_jax_command("train", "--config", config, "--workdir", tmp_path / "run")
    assert (left.status, left.err) == (130, "sct-jax: interrupted: nothing was saved yet\n")


def test_an_interrupt_says_what_there_is(sct_jax_command, tiny_run, tmp_path):
    config = tmp_path / "config.py"
    config.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    left = sct_jax_command("train", "--config", config, "--workdir", tiny_run)
    assert (left.status, left.err) == (130, f"sct-jax: interrupted: the newest checkpoint in {tiny_run} is step 4\n")
