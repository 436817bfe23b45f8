"""Consistency training as temporal-difference learning; the methods are rows of one table (``objectives/table.py``).

State ``(x_t, t)``; transition, one Euler step of the probability-flow ODE to ``(x_r, r)`` with an estimate ``x̂_0`` of
the clean image; bootstrap target by the network at ``(x_r, r)`` under a stop-gradient and the same dropout masks; loss
``w(t, r) d(prediction, target)``.

With a phased ODE path (SCT, arXiv 2410.18958, sec. 4.3) the function maps to the edge ``s`` below:
``f(x, t→s) = (s/t) x + (1 − s/t) g(x, t)``. Both sides divided by ``1 − s/t`` are predictions of the clean image, and
the target is then a convex combination, ``α x̂_0 + (1 − α) g(x_r, r)`` with ``α = s (t − r) / (r (t − s))``: terminal
states (``r = s``) have ``α = 1`` and bootstrap nothing, and the plain model (``s = 0``) has ``α = 0`` elsewhere.

``objective.difference`` says how ``g(x_r, r)`` is made: see `bootstrap.py`. Two methods change more than one choice:
`divided.py` (TCM's two networks) and `generated.py` (GC's images).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from sct_jax.diffusion import process, times
from sct_jax.diffusion.condition import Condition
from sct_jax.objectives import (
    Array,
    Context,
    Draws,
    Objective,
    Perceptual,
    Teacher,
    distances,
    divided,
    generated,
    pairs,
    references,
)
from sct_jax.objectives import bootstrap as bootstrap_lib


def build(
    config: Any,
    denoise: Callable[..., Array],
    teacher: Teacher | None = None,
    device_mesh: Any = None,
    forward: Callable[..., Array] | None = None,
    perceptual: Perceptual | None = None,
    stage1: Any = None,
) -> Objective:
    """The consistency objective of ``config.objective``, over a pure denoiser ``g``; ``forward`` is ``Network``'s.

    Raises:
      ValueError: when a teacher, or the parameters of ``stage1``, are asked for and not given.
    """
    objective, sigma_data = config.objective, config.model.sigma_data
    distance = distances.build(objective, perceptual and perceptual.distance)
    weight = distances.WEIGHTS[objective.weight]
    edges = times.phase_edges(objective.phases, objective.t_min, objective.t_max, objective.rho)
    draw_pair = pairs.build(objective, config.total_steps)
    reduced = objective.transition == "posterior_mean"
    posterior_mean = references.build(config, device_mesh) if reduced else None
    form, forward = bootstrap_lib.form(config), forward or denoise
    two_networks, generates = divided.is_used(objective), objective.transition == "generated"
    if two_networks and stage1 is None:
        raise ValueError("bootstrap 'divided' needs the parameters of stage 1")
    if objective.transition.startswith("teacher") and teacher is None:
        raise ValueError(f"transition {objective.transition!r} needs a teacher")

    def draw(images: Array, labels: Array, key: Array, step: Array, rows: Any = None) -> Draws:
        time_key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, images.shape)
        t, r = draw_pair(time_key, len(images), step)
        scale = weight(t, r, sigma_data)  # of the gap before it is cut at an edge: there t − r may be anything
        if objective.normalize_stage:
            scale *= objective.q ** -pairs.stage(objective, step)
        if two_networks:
            scale *= divided.factors(objective, len(images))
        s = times.phase_start(t, edges)
        r = jnp.maximum(r, s)
        draws = {"labels": labels, "t": t, "r": r, "s": s, "weight": scale, "x_t": process.add_noise(images, noise, t)}
        if two_networks:
            draws["boundary"] = divided.on_boundary(objective, len(images))
        if generates:
            draws[generated.CHOSEN] = generated.choose(objective, key, r)
        if teacher is not None:
            return draws
        at_r = process.add_noise(images, noise, r)
        if posterior_mean is None:  # x̂_0 = x_0: the Euler step is x_0 + r ε
            return draws | {"estimate": images, "x_r": at_r}
        posterior = posterior_mean(images, noise, t, labels, rows, key)
        return draws | {
            "estimate": posterior.estimate,
            # The Euler step with x̂_0, as CT's and what the mean moves it by: the large noise does not cancel.
            "x_r": at_r + process.per_image(1.0 - r / t, images) * (posterior.estimate - images),
            "reference_ess": posterior.effective_sample_size,
            "reference_shift": posterior.own_distance,
        }

    def transition(context: Context, draws: Draws) -> tuple[Array, Array, Array]:
        """``(x_t, x_r, x̂_0)``: where the step begins and ends, and the clean image that it takes."""
        if generates:
            make = lambda x, t: denoise(context[generated.GENERATOR], x, t, Condition(draws["labels"]))  # noqa: E731
            return generated.states(make, draws)
        if teacher is None:
            return draws["x_t"], draws["x_r"], draws["estimate"]
        x_t, t, r = draws["x_t"], draws["t"], draws["r"]
        solve = lambda x, t: teacher.denoise(context["teacher"], x, t, Condition(draws["labels"]))  # noqa: E731
        if objective.transition == "teacher_euler":
            estimate = solve(x_t, t)
            return x_t, process.euler_step(x_t, estimate, t, r), estimate
        x_r = process.heun_step(solve, x_t, t, r)
        ratio = process.per_image(r / t, x_t)
        return x_t, x_r, (x_r - ratio * x_t) / (1.0 - ratio)  # the x̂_0 with which Euler's step would end there

    def loss(params: Any, context: Context, draws: Draws, dropout_key: Array) -> tuple[Array, dict[str, Array]]:
        t, r, s, condition = draws["t"], draws["r"], draws["s"], Condition(draws["labels"])
        x_t, x_r, estimate = jax.lax.stop_gradient(transition(context, draws))
        prediction = denoise(params, x_t, t, condition, dropout_key=dropout_key)
        frozen = jax.lax.stop_gradient(context["target"] if objective.bootstrap == "ema" else params)
        constant = jax.lax.stop_gradient(prediction)
        below = divided.is_below(objective, r) if two_networks else jnp.zeros(r.shape, bool)  # stage 1 answers at r

        def evaluated() -> Array:
            return denoise(frozen, x_r, r, condition, dropout_key=dropout_key)

        def derived(chosen: Array) -> Array:
            at = lambda x, t: forward(frozen, x, t, condition, dropout_key=dropout_key)  # noqa: E731
            return bootstrap_lib.by_derivative(at, x_t, estimate, x_r, t, r, constant, chosen)

        if form == "evaluated":
            bootstrap = evaluated()
        elif form == "tangent":
            bootstrap = derived(~below)
        else:
            derivative = context[bootstrap_lib.DECISION] == 1
            chosen = derivative[bootstrap_lib.octave(t)] & ~below
            bootstrap = jax.lax.cond(jnp.any(derivative), lambda: derived(chosen), evaluated)
        if two_networks:
            answer = denoise(context[divided.STAGE1], x_r, r, condition, dropout_key=dropout_key)
            bootstrap = divided.answer(bootstrap, answer, below)
        target = combine(estimate, bootstrap, t, r, s)
        difference = prediction - target
        per_image = draws["weight"] * distance(context, prediction, target)
        metrics = {
            "td_error": jnp.mean(difference**2, axis=tuple(range(1, difference.ndim))),
            "terminal": (r == s).astype(jnp.float32),
        }
        if two_networks:
            metrics["boundary_loss"] = jnp.where(draws["boundary"], per_image, 0.0)  # its part of the loss
        return per_image, metrics | {k: v for k, v in draws.items() if k.startswith("reference_")}

    def start(params: Any) -> Context:
        context: Context = {}
        if objective.bootstrap == "ema":
            context["target"] = jax.tree.map(jnp.array, params)
        if teacher is not None:
            context["teacher"] = jax.tree.map(jnp.array, teacher.params)
        if perceptual is not None:
            context[distances.LPIPS] = jax.tree.map(jnp.array, perceptual.params)
        if two_networks:
            context[divided.STAGE1] = jax.tree.map(jnp.array, stage1)
        if generates:
            context[generated.GENERATOR] = jax.tree.map(jnp.array, params)
        if form == "mixed":  # the octaves of t whose difference is a derivative; td_signal.py finds them
            context[bootstrap_lib.DECISION] = bootstrap_lib.undecided()
        return context

    def advance(context: Context, params: Any, step: Array) -> Context:
        if generates:
            decay = generated.decay_at(objective, step)
            context = context | {generated.GENERATOR: moved(context[generated.GENERATOR], params, decay)}
        if objective.bootstrap != "ema":
            return context
        decay = jnp.float32(objective.target_decay)
        if objective.target_decay_adaptive:
            points = pairs.grid_points(objective, config.total_steps, step)
            decay = times.target_decay(points, objective.s_0, objective.target_decay)
        return context | {"target": moved(context["target"], params, decay)}

    return Objective(draw, loss, start, advance)


def moved(average: Any, params: Any, decay: Array) -> Any:
    """An average of parameters after one more update: ``decay · average + (1 − decay) · params``."""
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), average, params)


def combine(estimate: Array, bootstrap: Array, t: Array, r: Array, s: Array) -> Array:
    """The TD target as a clean image: ``α x̂_0 + (1 − α) g(x_r, r)``, ``α = s (t − r) / (r (t − s))``, 1 where r = s."""
    terminal = r <= s
    alpha = s * (t - r) / jnp.where(terminal, 1.0, r * (t - s))
    alpha, terminal = process.per_image(alpha, estimate), process.per_image(terminal, estimate) > 0
    return jnp.where(terminal, estimate, bootstrap + alpha * (estimate - bootstrap))
