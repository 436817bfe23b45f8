"""``sct-jax evaluate`` on a feature network: closed forms, repetitions, provenance, and what is refused."""

import json
import math

import numpy as np
import pytest
from feature_makers import DIMS, SPATIAL, expected_features, make_space
from gaussian_model import SIGMA, SIZE, deviation, make_model

import sct_jax
from sct_jax import cards
from sct_jax.data.spec import ArraySource
from sct_jax.errors import UserError
from sct_jax.evaluation import classifier, make_reference, meter, network_metrics, run, time_search
from sct_jax.evaluation.accumulate import Accumulator
from sct_jax.evaluation.embed import Embedding
from sct_jax.evaluation.frechet import frechet_distance, moments
from sct_jax.evaluation.network_metrics import METRICS, open_network_metrics
from sct_jax.evaluation.reference import Reference, load_reference, save_reference
from sct_jax.evaluation.run import evaluate_checkpoint
from sct_jax.evaluation.table import format_table
from sct_jax.features import NAMES, MissingWeights
from sct_jax.sampling.generate import to_uint8
from sct_jax.training.mesh import make_mesh


@pytest.fixture(autouse=True)
def spaces(monkeypatch):
    """All feature spaces are there, small ones."""
    spaces = {name: make_space(name, seed) for seed, name in enumerate(NAMES)}
    for module in (network_metrics, make_reference):
        monkeypatch.setattr(module, "open_space", lambda name, path="": spaces[name])
    return spaces


@pytest.fixture
def reference(sct_jax_command, tmp_path):
    """``reference("dinov2", ...)`` makes the digits' statistics by the command line and gives the file."""

    def make(space="inception", *arguments):
        out = tmp_path / f"{space}.npz"
        options = ("--data-path", "digits", "--split", "all", "--features", space, "--keep-features", "--out", out)
        finished = sct_jax_command("evaluate", "reference", *options, *arguments)
        assert finished.status == 0, finished.err
        assert finished.out.strip() == str(out)
        return out

    return make


@pytest.fixture
def gaussian(monkeypatch):
    """The wrong model of a Gaussian, wherever a checkpoint is loaded."""
    model = make_model(monkeypatch)
    for module in (run, time_search):
        monkeypatch.setattr(module, "load", lambda path, profile="", **boundary: model)
    return model


def gaussian_reference(space, path, sigma=SIGMA, **changes):
    """Statistics of infinitely many images of independent Gaussian pixels; a feature averages tiles of 2x2."""

    def cov(matrix):
        return np.asarray(matrix, np.float64).T @ np.asarray(matrix, np.float64) * sigma**2 / 4

    spatial = Accumulator.from_moments(10**9, np.zeros(SPATIAL), cov(space.params["spatial"]))
    fields = {
        **{"space": space.name, "version": space.version, "resolution": SIZE, "channels": 1, "num": 10**9},
        **{"mean": np.zeros(DIMS), "cov": cov(space.params["features"]), "features": None, "spatial": spatial},
        **{"card": {}, "sha256": ""},
    }
    return save_reference(path, Reference(**(fields | changes)))


def kept(num):
    """With features of each of so many images."""
    return {"features": np.ones((num, DIMS), np.float32), "num": num}


# What is measured.


@pytest.mark.parametrize(("times", "noise"), [(None, None), ((80.0, 0.4), "fresh")])
def test_the_distance_of_gaussians_is_the_closed_form(gaussian, spaces, tmp_path, times, noise):
    file = gaussian_reference(spaces["inception"], tmp_path / "real.npz")
    options = {"num": 20_000, "metrics": ["fid", "sfid"], "references": [file], "batch_size": 4000}
    steps = None if times else [1]
    (row,) = evaluate_checkpoint("gaussian", steps=steps, times=times, noise=noise, **options)["results"]
    for name, key in (("fid", "features"), ("sfid", "spatial")):
        trace = np.square(spaces["inception"].params[key]).sum() / 4
        expected = (deviation(*(times or ())[1:]) - SIGMA) ** 2 * trace
        assert row[name] == pytest.approx(expected, rel=0.1)  # of 20,000 samples
    assert row["sampling_steps"] == len(times or (80.0,))


def test_an_imported_model_is_measured_by_the_data_it_is_given(gaussian):
    (row,) = evaluate_checkpoint("gaussian", steps=[1], num=50, metrics=["fd_pca"], data_path="digits")["results"]
    assert row["fd_pca"] > 1


def test_repetitions_are_disjoint_ranges_of_a_seed(gaussian, spaces, tmp_path):
    file = gaussian_reference(spaces["inception"], tmp_path / "real.npz")
    options = {"steps": [1], "metrics": ["fid"], "references": [file]}
    result = evaluate_checkpoint("gaussian", num=200, repeats=3, seeds=(4,), **options)
    (row,) = result["results"]
    each = [values["fid"] for values in row["per_seed"]]
    assert len(set(each)) == 3
    assert row["fid"] == pytest.approx(np.mean(each))
    assert row["fid_std"] == pytest.approx(np.std(each, ddof=1))
    assert row["minimum"] == {"fid": min(each)}
    assert result["provenance"]["image_ranges"] == [[0, 200], [200, 400], [400, 600]]
    whole = gaussian.sample(600, 1, seed=4)
    space, real = spaces["inception"], load_reference(file, spaces["inception"])
    for values, first in zip(each, (0, 200, 400), strict=True):
        rows = expected_features(space, to_uint8(whole[first : first + 200]))
        assert values == pytest.approx(frechet_distance(*moments(rows), real.mean, real.cov), rel=1e-5)
    assert f"min {min(each):.4f}"[:8] in format_table(result)


def test_every_metric_of_all_feature_spaces(sct_jax_command, tiny_run, reference, tmp_path):
    out = tmp_path / "metrics.json"
    names = [*METRICS, "fd_pca"]
    files = [reference(space) for space in NAMES]
    arguments = ("--metrics", ",".join(names), "--reference", *files, "--steps", "1", "--num", 1100, "--out", out)
    finished = sct_jax_command("evaluate", "--checkpoint", tiny_run, *arguments)
    assert finished.status == 0, finished.err
    result = json.loads(out.read_text())
    (row,) = result["results"]
    assert set(names) <= set(row)
    errors = {"kid_standard_error", "kid_standard_error_dinov2", "kid_standard_error_efficientnet"}
    assert errors | {"inception_score_split_std"} <= set(row)
    assert row["fid"] != row["fd_dinov2"]
    assert all(math.isfinite(row[name]) for name in names)
    assert 0 <= row["precision"] <= 1 <= row["inception_score"]
    assert set(result["floor"]) == {"fd_pca"}
    facts = result["provenance"]
    assert facts["weights_sha256"] == cards.hash_weights(sct_jax.load(tiny_run).params)
    assert (facts["step"], facts["ema_profile"], facts["seeds"], facts["num_samples"]) == (4, "constant:0.9", [0], 1100)
    assert facts["noise_levels"] == {"1": [80.0]}
    assert facts["quantisation"].startswith("uint8")
    assert facts["features"]["dinov2"] == {
        "version": "dinov2-of-tests",
        "weights_sha256": "0" * 64,
        "source_sha256": "1" * 64,  # of the file that was imported, which a reader can compare with his own
    }
    assert facts["references"]["inception"]["images"] == 1797
    assert len(facts["references"]["inception"]["sha256"]) == 64
    assert {"versions", "device", "date", "command", "commit"} <= set(facts)
    assert facts["references"]["inception"]["sha256"] != facts["references"]["dinov2"]["sha256"]


def test_real_images_score_as_real_ones(digits, spaces, reference):
    """Against themselves: no distance, all inside; against noise: the contrary."""
    space = spaces["inception"]
    evaluator = open_network_metrics(["fid", "sfid", "precision", "recall", "coverage"], [str(reference())])
    seeing = Embedding({"inception": space}, evaluator.wanted, make_mesh())
    same = evaluator.scores(seeing.images(ArraySource(*digits, 10)))
    assert same["fid"] < 1e-6
    assert same["sfid"] < 1e-6
    assert same["precision"] == same["recall"] == same["coverage"] == 1.0
    noise = np.random.default_rng(0).integers(0, 256, (1000, 8, 8, 1), dtype=np.uint8)
    other = evaluator.scores(seeing.images(ArraySource(noise, np.zeros(1000), 0)))
    assert other["fid"] > 1
    assert other["recall"] < 0.2


# References.


def test_a_reference_holds_the_moments_of_the_images(digits, spaces, reference):
    space = spaces["inception"]
    made = load_reference(reference(), space)
    rows = expected_features(space, digits[0])
    np.testing.assert_allclose(made.mean, rows.mean(axis=0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.cov, np.cov(rows.T), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(made.features, rows, rtol=1e-4, atol=1e-5)
    assert (made.num, made.resolution, made.channels, made.version) == (1797, 8, 1, "inception-of-tests")
    assert made.card["features"] == space.provenance
    assert made.card["data"] == {"source": "digits", "path": "digits", "split": "all", "crop": "centre"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "needs --data-path, or --source"),
        (("--data-path", "/nowhere"), "/nowhere"),
        (("--source", "digitz"), "did you mean 'digits'?"),
        (("--source", "digits", "--num", "6"), "statistics of 6 features need at least 7 images, got 6"),
        (("--source", "digits", "--num", "2000"), "there are 1437 images"),
        (("--source", "digits", "--split", "valid"), "no split 'valid'"),
        (("--source", "gmm", "--data-path", "2d"), "points, not images"),
    ],
)
def test_a_reference_that_cannot_be_made(sct_jax_command, tmp_path, arguments, named):
    out = tmp_path / "real.npz"
    assert named in sct_jax_command("evaluate", "reference", "--out", out, *arguments).complaint
    assert not out.exists()


def test_a_wrong_ending_is_refused_before_any_image_is_seen(sct_jax_command, tmp_path, monkeypatch):
    monkeypatch.setattr(make_reference.Embedding, "images", None)  # would be called
    finished = sct_jax_command("evaluate", "reference", "--source", "digits", "--out", tmp_path / "real.txt")
    assert "written as .npz, not as real.txt" in finished.complaint


# What is refused, and what goes on without.


@pytest.mark.parametrize(
    ("metrics", "num", "changes", "named"),
    [
        ("fid", 6, {}, "--num 6: fid needs at least 7 samples"),
        ("sfid", 4, {}, "--num 4: sfid needs at least 5 samples"),
        ("inception_score", 9, {}, "--num 9: inception_score needs at least 10 samples"),
        (
            "kid",
            99,
            {"features": np.ones((2000, DIMS), np.float32), "num": 2000},
            "--num 99: kid needs at least 1,000 samples",
        ),
        ("kid", 2000, {"features": np.ones((50, DIMS), np.float32), "num": 50}, "kid needs at least 1,000 real images"),
        ("precision", 50, {}, "precision needs the features of each image"),
        ("sfid", 50, {"spatial": None}, "sfid needs moments of spatial features"),
        ("fid", 50, {"resolution": 16}, "16"),
        ("fid", 50, {"channels": 3}, "channels"),
        ("fid", 50, {"version": "inception-of-others"}, "inception-of-others"),
        ("fd_dinov2", 50, {}, "dinov2"),
        ("fidd", 50, {}, "unknown metric 'fidd': did you mean fid?"),
        ("FID", 50, {}, "unknown metric 'FID': did you mean fid?"),
        ("precison_dinov2", 50, {}, "did you mean precision_dinov2?"),
    ],
)
def test_what_does_not_fit_is_refused_before_sampling(
    sct_jax_command, gaussian, spaces, tmp_path, monkeypatch, metrics, num, changes, named
):
    monkeypatch.setattr(meter.Embedding, "samples", None)  # would be called
    file = gaussian_reference(spaces["inception"], tmp_path / "real.npz", **changes)
    arguments = ("--metrics", metrics, "--num", num, "--reference", file)
    finished = sct_jax_command("evaluate", "--checkpoint", "gaussian", *arguments)
    assert named in finished.complaint
    assert len(finished.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--steps", "1", "--times", "80"), "give one of the two"),
        (("--repeats", "0"), "--repeats 0"),
        (("--metrics", "inception_score", "--times", "1,80"), "descending"),
        (("--reference", "nowhere.npz"), "nowhere.npz"),  # the images that offline metrics need are not there either
        (("--metrics", "fid", "--reference", "nowhere.npz"), "nowhere.npz"),
        (("--metrics", "inception_score", "--reference", "nowhere.npz"), "no such file"),  # though it needs none
    ],
)
def test_a_call_that_cannot_be(sct_jax_command, gaussian, arguments, named):
    finished = sct_jax_command("evaluate", "--checkpoint", "gaussian", "--num", "50", *arguments)
    assert named in finished.complaint
    assert len(finished.err.splitlines()) == 1


def test_a_metric_without_its_reference_says_how_to_make_one(sct_jax_command, gaussian):
    complaint = sct_jax_command("evaluate", "--checkpoint", "gaussian", "--metrics", "fid").complaint
    assert "sct-jax evaluate reference" in complaint
    assert "--reference FILE" in complaint


def test_without_weights_the_offline_metrics_run(sct_jax_command, tiny_run, monkeypatch, tmp_path):
    monkeypatch.undo()  # the networks are not there
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(classifier.RECIPE, "steps", {"tiny": 20})
    arguments = ("--checkpoint", tiny_run, "--steps", "1", "--num", "80")
    finished = sct_jax_command("evaluate", *arguments)
    assert finished.status == 0, finished.err
    assert "fd_pca" in finished.out
    training, line = finished.err.splitlines()
    assert "inception-2015-12-05.pkl" in line
    assert training.startswith("training the classifier of the offline metrics on ")
    complaint = sct_jax_command("evaluate", *arguments, "--metrics", "fid").complaint
    assert "inception-2015-12-05.pkl" in complaint
    assert "sct-jax import" in complaint


def test_with_weights_and_a_reference_fid_is_measured_unasked(
    sct_jax_command, tiny_run, reference, monkeypatch, tmp_path
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(classifier.RECIPE, "steps", {"tiny": 20})
    arguments = ("--steps", "1", "--num", "80", "--reference", reference())
    finished = sct_jax_command("evaluate", "--checkpoint", tiny_run, *arguments)
    assert finished.status == 0, finished.err
    (line,) = finished.err.splitlines()
    assert line.startswith("training the classifier")  # nothing is left out
    assert {"fid", "fd_pca", "class_agreement"} <= set(finished.out.split())
    assert "kid" not in finished.out


def test_a_reference_that_does_not_fit_is_a_mistake_though_offline_metrics_would_run(
    sct_jax_command, tiny_run, spaces, tmp_path
):
    file = gaussian_reference(spaces["inception"], tmp_path / "real.npz", resolution=16)
    finished = sct_jax_command("evaluate", "--checkpoint", tiny_run, "--num", "80", "--reference", file)
    assert "images of 16 pixels, but the samples have 8" in finished.complaint
    assert len(finished.err.splitlines()) == 1
    file.write_bytes(file.read_bytes()[:200])
    finished = sct_jax_command("evaluate", "--checkpoint", tiny_run, "--num", "80", "--reference", file)
    assert finished.complaint.count("cut short") == 1  # not once for each feature space


def test_a_reference_that_no_weights_are_there_for_is_noted(tiny_run, spaces, tmp_path, monkeypatch):
    """Beside another one that is used."""

    def open_space(name, path=""):
        if name == "dinov2":
            raise MissingWeights("no weights of dinov2")
        return spaces[name]

    monkeypatch.setattr(network_metrics, "open_space", open_space)
    real = [str(gaussian_reference(space, tmp_path / f"{name}.npz")) for name, space in spaces.items()]
    model = sct_jax.load(tiny_run)
    assert meter.Meter(model, references=real).notes == ["FD-DINOv2 is left out: no weights of dinov2"]
    assert meter.Meter(model, references=real[:1]).notes == []
    assert "statistics of dinov2 features" in meter.Meter(model, references=real[1:]).notes[0]  # offline metrics go on
    with np.load(real[0]) as own:
        np.savez(tmp_path / "moments.npz", mu=own["mu"], sigma=own["sigma"])
    (note,) = meter.Meter(model, references=[tmp_path / "moments.npz"]).notes
    assert note.startswith("the reference does not tell how images were resized")

    def stop(line):
        raise InterruptedError(line)

    with pytest.raises(InterruptedError, match="does not tell how"):  # the search says so too, before it draws
        time_search.search_times(tiny_run, num=100, references=[tmp_path / "moments.npz"], say=stop)
    file = gaussian_reference(spaces["inception"], tmp_path / "large.npz", resolution=16)
    with pytest.raises(UserError, match="images of 16 pixels"):
        meter.Meter(model, references=[str(file)])


def test_a_reference_of_no_feature_space_that_is_there_is_a_mistake(tiny_run, tmp_path):
    np.savez(tmp_path / "real.npz", mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(UserError, match=r"statistics of 3 features, where inception has 6.*where dinov2 has 6"):
        meter.Meter(sct_jax.load(tiny_run), references=[str(tmp_path / "real.npz")])


# The search for times.


def test_the_best_time_of_a_wrong_gaussian_is_found(sct_jax_command, gaussian, spaces, tmp_path):
    file, out = gaussian_reference(spaces["inception"], tmp_path / "real.npz"), tmp_path / "times.json"
    dense = np.geomspace(0.02, 20, 4001)
    truth = dense[np.argmin([abs(deviation(t) - SIGMA) for t in dense])]
    assert 0.3 < truth < 0.6
    arguments = ("--steps", 2, "--num", 1000, "--tolerance", 0.05, "--reference", file, "--out", out)
    finished = sct_jax_command("evaluate", "times", "--checkpoint", "gaussian", *arguments)
    assert finished.status == 0, finished.err
    found = json.loads(out.read_text())
    assert found["best"]["times"][0] == 80.0
    assert math.log(found["best"]["times"][1] / truth) == pytest.approx(0, abs=0.15)
    assert found["best"]["fid"] == min(row["fid"] for row in found["tried"]) < found["start"]["fid"]
    assert found["start"]["times"] == [80.0, 0.821]
    assert len(finished.err.splitlines()) == len(found["tried"])
    assert f"--times 80,{found['best']['times'][1]:g}" in finished.out
    assert "config.sampling.mid_times" in finished.out
    assert found["provenance"]["features"]["inception"]["version"] == "inception-of-tests"
    # The same seeds for each: a candidate measured by itself has the same score.
    one = found["tried"][3]
    options = {"metrics": ["fid"], "num": 1000, "references": [file]}
    (row,) = evaluate_checkpoint("gaussian", times=one["times"], **options)["results"]
    assert row["fid"] == pytest.approx(one["fid"], rel=1e-9)


def test_a_metric_of_which_more_is_better_is_maximised(gaussian, spaces):
    found = time_search.search_times("gaussian", metric="inception_score", num=200, tries=9)
    scores = [row["inception_score"] for row in found["tried"]]
    assert found["best"]["inception_score"] == max(scores) > min(scores)
    assert not found["done"]
    assert "all 9 tries are used up" in time_search.format_search(found)
    assert "tries" not in time_search.format_search(found | {"done": True})


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--steps", "1"), "use 2 or more"),
        (("--low", "5", "--high", "5.1"), "no room"),
        (("--low", "-1"), "no room"),
        (("--tolerance", "0"), "--tolerance 0"),
        (("--tries", "0"), "--tries 0"),
        (("--metric", "fdi"), "did you mean"),
    ],
)
def test_a_search_that_cannot_be(sct_jax_command, gaussian, arguments, named):
    finished = sct_jax_command("evaluate", "times", "--checkpoint", "gaussian", "--num", "50", *arguments)
    assert named in finished.complaint


def test_only_a_consistency_model_has_times_to_choose(sct_jax_command, monkeypatch):
    for module in (run, time_search):
        monkeypatch.setattr(module, "load", lambda path, profile="", **boundary: make_model(monkeypatch, method="edm"))
    complaint = sct_jax_command("evaluate", "times", "--checkpoint", "edm").complaint
    assert "edm is a diffusion model" in complaint
