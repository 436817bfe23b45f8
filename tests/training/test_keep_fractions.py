"""Snapshots at fractions of a run: which steps they are, and that nothing deletes them."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import sct_jax
from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.objectives.table import ROWS
from sct_jax.training import loop, saver, step

SPEC = DataSpec(8, 1, 10, 1797)


def make_config(total_steps=20, every=1, **fields):
    config = config_lib.default_config()
    config.total_steps, config.log.every_steps, config.checkpoint.every_steps = total_steps, every, every
    config.model.name, config.model.channels, config.model.num_blocks = "film_mlp", 4, 1
    config.checkpoint.update(fields)
    return config_lib.validate(config)


@pytest.mark.parametrize(
    ("total", "every", "fractions", "steps"),
    [
        (100, 1, (), ()),
        (100, 1, (0.25, 0.5, 0.75), (25, 50, 75)),
        (100, 1, (0.75, 0.25, 0.25), (25, 75)),
        (10, 1, (0.25, 0.75), (3, 8)),  # halves go up
        (5000, 100, (0.25, 0.503, 0.76), (1300, 2500, 3800)),  # 1250 lies half way
        (1000, 100, (0.001, 1.0), (100, 1000)),  # no earlier than the first call's end
        (1009, 100, (0.97, 1.0), (1000, 1009)),
        (1060, 100, (1.0,), (1060,)),  # within the run
    ],
)
def test_the_steps_of_the_fractions(total, every, fractions, steps):
    assert saver.kept_steps(make_config(total, every, keep_fractions=fractions)) == tuple(sorted(set(steps)))


@pytest.mark.parametrize(
    ("total", "every", "fractions"), [(1500, 1000, (0.25, 0.5)), (900, 1000, (0.25,)), (1000, 100, (0.51, 0.52))]
)
def test_fractions_that_share_a_step_or_are_the_end_are_refused(tmp_path, total, every, fractions):
    config = make_config(total, every, keep_fractions=fractions)
    with pytest.raises(UserError, match=r"keep_fractions = .* fall on steps \[.*make checkpoint.every_steps"):
        loop.train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_steps_divide_as_all_periods_do():
    config = make_config(10_000, 1000, keep_fractions=(0.33,))
    config.sampling.every_steps, config.evaluation.every_steps = 400, 600
    assert saver.kept_steps(config) == (3400,)  # multiples of 200; 3300 goes up


def saved(workdir, steps, **fields):
    """The checkpoints that are left after saves at ``steps``."""
    config = make_config(**fields)
    keeper = saver.Checkpointer(workdir, config, SPEC)
    state = step.initial_state(config, jax.jit(models.build(config.model, SPEC).init)(jax.random.key(0)))
    for number in steps:
        keeper.save(dataclasses.replace(state, step=jnp.int32(number)))
    keeper.close()
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def test_snapshots_outlive_keep_one(tmp_path):
    assert saved(tmp_path, range(1, 21), keep=1, keep_fractions=(0.25, 0.5, 0.75)) == [5, 10, 15, 20]
    # A later process goes on, and still leaves them.
    assert saved(tmp_path, (21, 22), keep=1, keep_fractions=(0.25, 0.5, 0.75)) == [5, 10, 15, 22]
    assert sct_jax.load(tmp_path / "checkpoints" / "5").step == 5
    assert sct_jax.load(tmp_path).step == 22


def test_snapshots_outlive_a_longer_run(tmp_path):
    fractions = {"keep": 1, "keep_fractions": (0.25, 0.5, 0.75)}
    saved(tmp_path, range(1, 21), **fractions)
    assert saved(tmp_path, range(21, 41), total_steps=40, **fractions) == [5, 10, 15, 20, 30, 40]
    assert saved(tmp_path, range(41, 51), total_steps=50, keep=1) == [5, 10, 15, 20, 30, 50]


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        ({"keep": 1}, [12]),
        ({"keep": 3}, [10, 11, 12]),
        ({"keep": 2, "keep_every_steps": 4}, [4, 8, 11, 12]),
        ({"keep": 2, "keep_every_steps": 4, "keep_fractions": (0.25, 0.4)}, [4, 5, 8, 11, 12]),
    ],
)
def test_keep_and_keep_every_steps_mean_what_they_meant(tmp_path, fields, left):
    assert saved(tmp_path, range(1, 13), **fields) == left


def test_a_run_saves_at_its_fractions_and_is_guided_by_them(tmp_path):
    config = make_config(8, 8, keep=1, keep_fractions=(0.25, 0.5))
    config.log.every_steps, config.log.tensorboard, config.mesh.data, config.batch_size = 2, False, 1, 16
    config.evaluation.target_queries, config.sampling.num_images = 0, 2
    config.objective.update(ROWS["ect"])
    loop.train(config_lib.validate(config), tmp_path)
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [2, 4, 8]
    model = sct_jax.load(tmp_path)
    guided = model.sample(2, guide=tmp_path / "checkpoints" / "2", omega=1.0)
    assert not (guided == model.sample(2)).all()
