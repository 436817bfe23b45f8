"""The command line's options, before any verb runs."""

import pytest

from sct_jax import arguments, cli
from sct_jax.errors import UserError


@pytest.mark.parametrize(
    ("given", "joined"),
    [
        (["--labels", "-1,0"], ["--labels=-1,0"]),
        (["--omega", "-1e-3", "--num", "3"], ["--omega=-1e-3", "--num", "3"]),
        (["--times", "-.5"], ["--times=-.5"]),
        (["--labels=0", "-1,0"], ["--labels=0", "-1,0"]),
        (["--out", "-name"], ["--out", "-name"]),
        (["report", "--", "-1run"], ["report", "--", "-1run"]),
        (["-1"], ["-1"]),
    ],
    ids=str,
)
def test_a_negative_value_belongs_to_the_option_before_it(given, joined):
    assert arguments._join_negative_values(given) == joined


def test_every_verb_is_given_its_function_and_its_overrides():
    assert {verb.__name__.rstrip("_").replace("_", " ") for verb in cli.VERBS} == set(arguments.ARGUMENTS)
    args = arguments.parse(["train", "--config", "a.py", "--config.batch_size", "8", "--config.ema.std=0.1"], cli.VERBS)
    assert args.run is cli.train
    assert args.overrides == [("batch_size", "8"), ("ema.std", "0.1")]
    assert arguments.parse(["evaluate", "times", "--checkpoint", "a"], cli.VERBS).run is cli.evaluate_times


def test_overrides_belong_to_the_verbs_that_read_a_config():
    with pytest.raises(UserError, match=r"^--config.seed belongs to train and plan, not to report$"):
        arguments.parse(["report", "run", "--out", "a.html", "--config.seed=1"], cli.VERBS)
