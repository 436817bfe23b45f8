"""The one pytree that training is: what is donated, sharded, checkpointed and restored."""

from dataclasses import dataclass
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """``step``, int32, counts finished updates; ``ema`` holds a tree like ``params`` for each profile.

    ``context`` is what an objective needs beside the parameters and does not train (a teacher, say); often empty.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    ema: dict[str, Any]
    context: dict[str, Any]
