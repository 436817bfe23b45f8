"""TCM's stage 1: what may be one, what the second stage keeps of it, and where its own weights are not asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sct_jax
from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.evaluation.offline import make_evaluator
from sct_jax.interop import metadata
from sct_jax.objectives.table import ROWS
from sct_jax.sampling.generate import Generator
from sct_jax.training import loop, start

SPEC = DataSpec(8, 1, 10, 64)


def make_config(method, **fields):
    config = config_lib.default_config()
    config.total_steps, config.batch_size = 2, 16
    config.objective.update(ROWS[method])
    config.model.name, config.model.channels, config.model.num_blocks = "film_mlp", 16, 1
    config.model.conditional, config.model.dropout = True, 0.1
    config.log.tensorboard, config.checkpoint.every_steps, config.mesh.data = False, 2, 1
    config.sampling.num_images, config.sampling.steps, config.evaluation.target_queries = 4, (1,), 0
    config.sampling.mid_times = (1.0,)
    for key, value in fields.items():
        config_lib._set(config, key.replace("__", "."), value)
    return config_lib.validate(config)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The workdirs of both stages and the final state of the second."""
    first, second = (tmp_path_factory.mktemp("stages") / name for name in ("first", "second"))
    loop.train(make_config("tcm1"), first)
    fields = {"objective__stage1": str(first), "init__checkpoint": str(first), "optimizer__lr": 1e-2}
    return first, second, loop.train(make_config("tcm", **fields), second)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_stage_1_is_kept_as_it_was_while_the_student_moves(stages):
    first, _, state = stages
    stage1 = sct_jax.load(first).params
    assert same(state.context["stage1"], stage1)  # its first EMA profile
    assert not same(state.params, stage1)


def test_a_second_stage_answers_from_the_dividing_time_up(stages):
    _, second, _ = stages
    model = sct_jax.load(second)
    assert model.sample(4, steps=2).shape == (4, 8, 8, 1)
    with pytest.raises(UserError, match=r"--times 80.0,0.9 asks this model .* at noise level 0.9: below"):
        model.sample(4, times=(80.0, 0.9))
    x = jnp.zeros((2, 8, 8, 1))
    assert jnp.isfinite(model.denoise(x, jnp.array([1.0, 80.0]), jnp.zeros(2, int))).all()
    with pytest.raises(ValueError, match="noise levels from 1 up"):
        model.denoise(x, jnp.array([0.99, 80.0]), jnp.zeros(2, int))


def test_levels_that_steps_stand_for_are_checked_too():
    config = make_config("tcm", objective__stage1="there", sampling__mid_times=())
    generator = Generator(lambda *_: None, (8, 8, 1), config)
    assert generator.times(1) == (80.0,)
    with pytest.raises(UserError, match=r"--steps 3 asks this model"):
        generator.times(3)  # without mid times they go down to 0.8


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (ROWS["edm"], "is no consistency model: it was trained by 'edm'"),
        (ROWS["ect"] | {"phases": 2}, "has 2 phases: stage 1 is one consistency function"),
        (ROWS["tcm"] | {"stage1": "there"}, "is a stage 2 itself"),
        ({"model.channels": 24}, "is of another network than this run: .*shape"),
        ({"model.num_blocks": 2}, "is of another network than this run"),
        ({"model.conditional": False}, r"image size, channels and classes are \(8, 1, 0\) there and \(8, 1, 10\)"),
        ({"model.boundary": "sigma_min"}, "trained with model.boundary = 'sigma_min', not 'zero'"),
        ({"model.sigma_data": 0.7}, "trained with model.sigma_data = 0.7, not 0.5"),
        ({"data.image_size": 16}, r"\(16, 1, 10\) there and \(8, 1, 10\) here"),
    ],
)
def test_what_cannot_be_a_stage_1(monkeypatch, fields, problem):
    """Weights as a checkpoint's, without the training that made them."""
    changes = {key if "." in key else f"objective.{key}": value for key, value in fields.items()}
    theirs = make_config("tcm1", **{key.replace(".", "__"): value for key, value in changes.items()})
    spec = DataSpec(16, 1, 10, 64) if theirs.data.image_size else SPEC
    params = models.build(theirs.model, spec).init(jax.random.key(0))
    found = start.weights_lib.Weights(theirs, spec, params, 2, "raw", "runs/first/checkpoints/2", None)
    monkeypatch.setattr(start.weights_lib, "load", lambda path, profile: found)
    ours = make_config("tcm", objective__stage1="runs/first")
    with pytest.raises(UserError, match=rf"config\.objective\.stage1 = runs/first.*{problem}") as caught:
        start.load_stage1(ours, SPEC, models.build(ours.model, SPEC))
    assert "\n" not in str(caught.value)


def test_a_stage_1_that_is_not_there_is_named(tmp_path):
    config = make_config("tcm", objective__stage1=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"config.objective.stage1: .*nowhere"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_where_stage_1_lies_is_nobodys_concern():
    config = make_config("tcm", objective__stage1="somewhere/private")
    entries = metadata.describe(config, SPEC)
    assert "somewhere" not in str(entries)
    read = metadata.read(metadata.texts(entries) | {"names": "sct_jax"})
    assert read.rooms["objective"]["stage1"] == "unknown"
    assert read.rooms["objective"]["bootstrap"] == "divided"


def test_errors_of_a_mixture_are_those_of_levels_that_it_answers_at():
    fields = {"data__source": "gmm", "data__path": "2d", "model__conditional": False}
    for method, lowest in (("tcm1", 0.02), ("tcm", 1.0)):
        stage1 = {"objective__stage1": "there"} if method == "tcm" else {}
        config = make_config(method, **fields, **stage1)
        seen = []
        evaluator = make_evaluator(config, None, "2d", None, 2)
        evaluator.metrics(lambda x, t, labels, seen=seen: (seen.append(np.min(t)), 0 * x)[1], np.zeros((2, 1, 1, 2)))
        assert lowest <= min(seen) < 2 * lowest
