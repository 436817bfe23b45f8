"""Post-hoc EMA: against EDM2's functions, against profiles that were really tracked, and the verb."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sct_jax
from sct_jax import cards, models
from sct_jax import config as config_lib
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.training import checkpoint, ema, posthoc_ema, saver
from sct_jax.training.posthoc_ema import Snapshot
from sct_jax.training.state import TrainState

GOLDEN = Path(__file__).parents[1] / "parity" / "golden" / "phema.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def test_exponents_are_edm2s(golden):
    np.testing.assert_allclose([ema.power_exponent(std) for std in golden["std"]], golden["exponent"], rtol=1e-10)


@pytest.mark.parametrize("case", ["two_profiles", "one_profile", "uneven"])
def test_inner_products_and_coefficients_are_edm2s(golden, case):
    part = {key.removeprefix(f"{case}/"): value for key, value in golden.items() if key.startswith(f"{case}/")}
    products = posthoc_ema.inner_products(part["steps"], part["stds"], part["steps"], part["stds"])
    np.testing.assert_allclose(products, part["inner_products"], rtol=1e-10)
    snapshots = [Snapshot(*pair) for pair in zip(part["steps"], part["stds"], strict=True)]
    for std, expected in zip(part["wanted"], part["coefficients"].T, strict=True):
        plan = posthoc_ema.fit(snapshots, std, part["steps"].max())
        np.testing.assert_allclose(plan.coefficients, expected, rtol=0, atol=1e-10)


def test_inner_products_are_integrals():
    # Numerically, of the profiles (γ + 1) τ^γ / t^{γ+1} that are 0 after t.
    middles = (np.arange(400_000) + 0.5) / 4000
    ends, stds = [37.0, 100.0, 100.0], [0.1, 0.05, 0.25]
    profiles = []
    for end, std in zip(ends, stds, strict=True):
        gamma = ema.power_exponent(std)
        profiles.append(np.where(middles <= end, (gamma + 1) * (middles / end) ** gamma / end, 0))
    integrals = np.array(profiles) @ np.array(profiles).T / 4000
    np.testing.assert_allclose(posthoc_ema.inner_products(ends, stds, ends, stds), integrals, rtol=1e-4)


@pytest.fixture(scope="module")
def tracked():
    """``{std: averages [kept, D]}`` of a random walk with drift, by the training's own updates, and the steps kept."""
    steps, every = 4096, 256
    stds = (0.05, 0.075, 0.1, 0.13)
    profiles = [ema.parse_profile(f"power:{std}") for std in stds]
    noise = np.random.default_rng(0).normal(size=(steps, 48))
    path = 3.0 + np.sin(np.arange(steps)[:, None] / 700 + np.arange(48)) + np.cumsum(noise, axis=0) / 64

    def update(averages, item):
        step, value = item
        decays = [ema.decay_at(profile, step, 128) for profile in profiles]
        averages = [ema.update(*pair, decay) for *pair, decay in zip(averages, [value] * 4, decays, strict=True)]
        return averages, averages

    start = [jnp.zeros(48)] * len(stds)
    _, averages = jax.lax.scan(update, start, (jnp.arange(steps), jnp.asarray(path, jnp.float32)))
    kept = np.arange(every, steps + 1, every)
    return {std: np.asarray(values)[kept - 1] for std, values in zip(stds, averages, strict=True)}, kept


@pytest.mark.parametrize("std", [0.075, 0.13])
@pytest.mark.parametrize("last", [16, 9])
def test_a_profile_that_was_really_tracked_is_reconstructed(tracked, std, last):
    averages, kept = tracked
    snapshots = [Snapshot(int(step), width) for step in kept[:last] for width in (0.05, 0.1)]
    read = lambda s: {"w": averages[s.std][s.step // 256 - 1]}  # noqa: E731
    plan = posthoc_ema.fit(snapshots, std, int(kept[last - 1]))
    wanted = averages[std][last - 1]
    assert relative_error(posthoc_ema.reconstruct(snapshots, plan.coefficients, read)["w"], wanted) < 1e-3
    assert relative_error(averages[0.1][last - 1], wanted) > 5e-3  # the stored neighbour will not do
    assert plan.residual < 0.05


def relative_error(found, wanted):
    return np.linalg.norm(found - wanted) / np.linalg.norm(wanted)


def test_the_residual_is_the_error_on_white_noise():
    # Profiles of steps are differences of (k/t)^{γ+1}: what the updates' decays come to.
    kept = [250, 500, 750, 1000]
    snapshots = [Snapshot(step, std) for step in kept for std in (0.05, 0.1)]
    weights = np.array([profile_of_steps(step, std, 1000) for step, std, *_ in snapshots])
    wanted = profile_of_steps(1000, 0.2, 1000)
    plan = posthoc_ema.fit(snapshots, 0.2, 1000)
    values = np.random.default_rng(1).normal(size=(1000, 4000))
    error = np.std((plan.coefficients @ weights - wanted) @ values) / np.std(wanted @ values)
    assert error == pytest.approx(plan.residual, rel=0.05)
    assert plan.residual > 0.05


def profile_of_steps(step, std, total):
    share = np.minimum(np.arange(total + 1) / step, 1.0) ** (ema.power_exponent(std) + 1)
    return np.diff(share)


def test_a_stored_width_is_taken_as_it_is():
    snapshots = [Snapshot(step, std) for step in (10, 20, 30) for std in (0.05, 0.1)]
    plan = posthoc_ema.fit(snapshots, 0.1, 20)
    assert plan.coefficients.tolist() == [0, 0, 0, 1, 0, 0]
    assert plan.residual == 0
    values = np.float32([0.1, 1e-30, 3e38])
    read = {(20, 0.1): values}  # nothing else is read
    np.testing.assert_array_equal(
        posthoc_ema.reconstruct(snapshots, plan.coefficients, lambda s: read[s.step, s.std]), values
    )


def test_more_snapshots_fit_better():
    residuals = []
    for every in (400, 200, 100):
        snapshots = [Snapshot(step, std) for step in range(every, 1601, every) for std in (0.05, 0.1)]
        residuals.append(posthoc_ema.fit(snapshots, 0.15, 1600).residual)
    assert residuals == sorted(residuals, reverse=True)
    assert residuals[-1] < residuals[0] / 3


def test_one_width_tracked_under_two_names_is_one_snapshot(tmp_path):
    tree = {"a": np.ones(2, np.float32)}
    profiles = ("power:0.05", "power:0.050", "power:0.1")
    checkpoint.write_weights(tmp_path, tree, make_config(profiles), SPEC, 10, dict.fromkeys(profiles, tree))
    assert [(s.step, s.std) for s in posthoc_ema.find_snapshots(tmp_path)] == [(10, 0.05), (10, 0.1)]


# The verb.


SPEC = DataSpec(4, 1, 2, 10, ("a", "b"))


def make_config(profiles):
    config = config_lib.default_config()
    config.model.update({"name": "film_mlp", "channels": 8, "num_blocks": 1})
    config.ema.profiles = profiles
    config.checkpoint.keep = 9
    return config


@pytest.fixture(scope="module")
def initial():
    shapes = jax.eval_shape(models.build(make_config(("power:0.1",)).model, SPEC).init, jax.random.key(0))
    draw = np.random.default_rng(2).normal
    return jax.tree.map(lambda leaf: np.float32(draw(size=leaf.shape)), shapes)


@pytest.fixture(scope="module")
def linear_run(tmp_path_factory, initial):
    """A workdir whose parameters are ``step · initial``, and its averages theirs."""
    workdir, profiles = tmp_path_factory.mktemp("runs") / "run", ("constant:0.9", "power:0.05", "power:0.1")
    keeper = saver.Checkpointer(workdir, make_config(profiles), SPEC)
    for step in (100, 200, 300):
        averages = {name: scaled(initial, mean_step(name, step)) for name in profiles}
        keeper.save(TrainState(jnp.int32(step), scaled(initial, step), {}, averages, {}))
    keeper.close()
    return workdir


def scaled(tree, factor):
    return jax.tree.map(lambda leaf: leaf * np.float32(factor), tree)


def mean_step(profile, step):
    """The mean of τ under a power profile that ends at ``step``: ``t (γ + 1)/(γ + 2)``."""
    kind, _, width = profile.partition(":")
    gamma = ema.power_exponent(float(width)) if kind == "power" else 1.0
    return step * (gamma + 1) / (gamma + 2)


@pytest.mark.parametrize(("arguments", "end"), [((), 300), (("--step", "200"), 200)])
def test_the_verb_writes_a_workdir_that_loads(sct_jax_command, linear_run, initial, tmp_path, arguments, end):
    out = tmp_path / "out"
    finished = sct_jax_command("ema", "--checkpoint", linear_run, "--std", "0.075,0.10", "--out", out, *arguments)
    assert finished.status == 0, finished.err
    lines = finished.out.splitlines()
    assert lines[0].startswith(f"power:0.075: from {end // 50} snapshots; its profile is fitted with an error of ")
    assert lines[1:] == ["power:0.1: as it was tracked", str(out)]
    model = sct_jax.load(out)
    assert (model.profile, model.step, model.spec) == ("power:0.075", end, SPEC)
    snapshots = [Snapshot(step, std) for step in range(100, end + 1, 100) for std in (0.05, 0.1)]
    plan = posthoc_ema.fit(snapshots, 0.075, end)
    mixed = plan.coefficients @ [mean_step(f"power:{snapshot.std}", snapshot.step) for snapshot in snapshots]
    for profile, factor in (("power:0.075", mixed), ("power:0.1", mean_step("power:0.1", end)), ("raw", end)):
        found, expected = sct_jax.load(out, profile).params, scaled(initial, factor)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)
    assert mixed == pytest.approx(mean_step("power:0.075", end), rel=0.02)
    facts = cards.read(out)["source"]
    assert (facts["step"], len(facts["snapshots"])) == (end, end // 50)
    np.testing.assert_array_equal(facts["profiles"]["power:0.075"]["coefficients"], plan.coefficients)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--std", "0.3"), "--std 0.3"),
        (("--std", "0"), "--std 0:"),
        (("--std", "nan"), "--std nan"),
        (("--std", "wide"), "--std"),
        (("--std", "0.07", "--step", "250"), "--step 250: no checkpoint of that step; there are 100, 200, 300"),
        (("--checkpoint", "nowhere", "--std", "0.07"), "no checkpoint nowhere"),
        (("--checkpoint", "{run}/checkpoints/100", "--std", "0.07"), "is one checkpoint"),
        (("--std", "0.07", "--out", "{run}"), "exists already"),
        (("--std", "0.07", "--out", "{run}/file/x"), "cannot write"),
    ],
    ids=str,
)
def test_a_wrong_call_is_one_line(sct_jax_command, linear_run, tmp_path, arguments, complaint):
    (linear_run / "file").touch()
    given = [argument.format(run=linear_run) for argument in arguments]
    for option, value in (("--checkpoint", str(linear_run)), ("--out", str(tmp_path / "out"))):
        given += [] if option in given else [option, value]
    assert complaint in sct_jax_command("ema", *given).complaint
    assert not (tmp_path / "out").exists()


def test_runs_without_enough_power_profiles_say_what_to_do(initial, tmp_path):
    for name in ("constant:0.9", "power:0.05"):
        checkpoint.write_weights(tmp_path / name, initial, make_config((name,)), SPEC, 10, {name: initial})
    with pytest.raises(UserError, match=r"has no power profiles .*it has constant:0\.9.*ema\.profiles=power"):
        posthoc_ema.write_averages(tmp_path / "constant:0.9", [0.05], tmp_path / "out")
    with pytest.raises(UserError, match=r"needs at least two; keep more with --config\.checkpoint\.keep_every_steps"):
        posthoc_ema.write_averages(tmp_path / "power:0.05", [0.05, 0.06], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert posthoc_ema.write_averages(tmp_path / "power:0.05", [0.05], tmp_path / "out")["power:0.05"].residual == 0
