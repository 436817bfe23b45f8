"""What an objective is built from: a network whose inputs it trains."""

import pytest

from sct_jax import config as config_lib
from sct_jax import objectives
from sct_jax.errors import UserError
from sct_jax.objectives.table import ROWS


@pytest.mark.parametrize("method", ROWS)
@pytest.mark.parametrize("field", ["target_time", "guidance_input"])
def test_an_input_that_the_method_never_trains_is_refused(method, field):
    config = config_lib.default_config()
    config.objective.update(ROWS[method])
    config.model[field] = True
    if method == "cd":
        config.objective.teacher = "runs/teacher"
    if method == "tcm":
        config.objective.stage1 = "runs/tcm1"
        config.sampling.mid_times = (1.0,)
    config_lib.validate(config)  # weights that have the input can be loaded and sampled
    with pytest.raises(UserError, match=rf"config.model.{field} = True: objective.method = '{method}' never trains"):
        objectives.build(config, None, objectives.Teacher(None, None))
