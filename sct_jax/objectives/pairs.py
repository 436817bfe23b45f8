"""The time pair of a transition, ``(t, r)`` with ``r < t``: what ``config.objective`` says of it, as one function."""

from collections.abc import Callable
from typing import Any

import jax

from sct_jax.diffusion import times
from sct_jax.objectives import Array, divided

# draw(key, count, step) -> (t, r), each [count]
DrawPair = Callable[[Array, int, Array], tuple[Array, Array]]


def build(objective: Any, total_steps: int) -> DrawPair:
    """``pair = "mapping"``: ``t`` of ``times`` and ``r(t, stage)``; ``"grid"``: neighbours of a growing Karras grid."""
    if objective.pair == "grid":
        return _grid(objective, total_steps)
    two_networks = divided.is_used(objective)
    draw_t = build_times(objective, objective.dividing_time if two_networks else objective.t_min)

    def draw(key: Array, count: int, step: Array) -> tuple[Array, Array]:
        t = draw_t(key, (count,))
        if two_networks:
            t = divided.divided_times(objective, t)
        mapping = (objective.q, objective.k, objective.b, objective.ratio_limit, objective.ratio_limit_of)
        return t, times.map_to_r(t, stage(objective, step), *mapping)

    return draw


def stage(objective: Any, step: Array) -> Array:
    """The stage of the mapping at ``step``, a scalar."""
    return times.stage(step, objective.stage_steps, objective.schedule) + objective.first_stage


def build_times(objective: Any, low: float | None = None) -> Callable[[Array, tuple[int, ...]], Array]:
    """The distribution of ``t`` that ``objective.times`` names, ``draw(key, shape)``; truncated below at ``low``."""
    mean, std = objective.time_mean, objective.time_std
    bounds = (objective.t_min if low is None else low, objective.t_max)
    return {
        "lognormal": lambda key, shape: times.lognormal(key, shape, mean, std),
        "truncated_lognormal": lambda key, shape: times.truncated_lognormal(key, shape, mean, std, *bounds),
        "truncated_student": lambda key, shape: times.truncated_student(
            key, shape, mean, std, *bounds, objective.time_freedom
        ),
    }[objective.times]


def grid_points(objective: Any, total_steps: int, step: Array) -> Array:
    """The number of points of the grid at ``step``."""
    return times.num_scales(step, total_steps, objective.s_0, objective.s_1, objective.growth)


def _grid(objective: Any, total_steps: int) -> DrawPair:
    bounds = (objective.t_min, objective.t_max, objective.rho)
    most = times.most_scales(objective.s_0, objective.s_1, objective.growth)

    def draw(key: Array, count: int, step: Array) -> tuple[Array, Array]:
        points = grid_points(objective, total_steps, step)
        if objective.times == "uniform":
            index = jax.random.randint(key, (count,), 0, points - 1)
        else:
            mean, std = objective.time_mean, objective.time_std
            log_probabilities = times.grid_log_probabilities(points, most, mean, std, *bounds)
            index = jax.random.categorical(key, log_probabilities, shape=(count,))
        return times.karras_times(index + 1, points, *bounds), times.karras_times(index, points, *bounds)

    return draw
