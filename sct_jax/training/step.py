"""The pure train step ``(state, batch) -> (state, metrics)``; its randomness follows from ``(seed, step, purpose)``."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import Mesh

from sct_jax.data.augment import augment
from sct_jax.diffusion.process import to_unit_range
from sct_jax.objectives import Objective
from sct_jax.training import ema, loss_scale, mesh, optimizer
from sct_jax.training.state import TrainState

Array = jax.Array
Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, dict[str, Array]], tuple[TrainState, Metrics]]
Projection = Callable[[Any], Any]

# What a seed's random numbers are for (sampling has a room of its own), and, within a training step, which of them.
INIT, TRAIN, SIGNAL = 0, 1, 3
FLIP, DRAW, DROPOUT, AUGMENT = range(4)


def room_key(seed: int, room: int) -> Array:
    """The key of all random numbers of one kind that follow from ``seed``."""
    return jax.random.fold_in(jax.random.key(seed), room)


def draw_key(seed: int, step: Array) -> Array:
    """The key of the draws of training step ``step``: times, noise and references follow from it."""
    return jax.random.fold_in(jax.random.fold_in(room_key(seed, TRAIN), step), DRAW)


def initial_state(config: Any, params: Any, project: Projection | None = None) -> TrainState:
    """The state before the first step, from initial parameters, without what the objective adds to its context.

    Every EMA profile starts at them.
    ``project`` is the network's, as in the train step: training starts from parameters that have gone through it.
    """
    copy = lambda: jax.tree.map(jnp.array, params)  # noqa: E731  donation needs buffers of their own
    rule = optimizer.build(config.optimizer, config.total_steps)
    averages = {profile: copy() for profile in config.ema.profiles}
    trained = project(copy()) if project else copy()
    context = {loss_scale.NAME: loss_scale.initial(config)} if loss_scale.is_used(config) else {}
    return TrainState(jnp.zeros((), jnp.int32), trained, rule.init(params), averages, context)


def random_flip(images: Array, key: Array) -> Array:
    """Mirrors each image ``[B, H, W, C]`` left-right with probability 1/2."""
    flip = jax.random.bernoulli(key, 0.5, (images.shape[0], 1, 1, 1))
    return jnp.where(flip, images[:, :, ::-1], images)


def make_train_step(
    config: Any, objective: Objective, device_mesh: Mesh, project: Projection | None = None
) -> TrainStep:
    """Builds the step.

    A batch is ``{"image": uint8 [B, H, W, C], "label": int32 [B]}``, B the global batch size; ``"references"`` is there
    too where the objective takes them from elsewhere than the batch (``data.references``). ``project`` is what the
    network does to its parameters after each update (``models.Network``); the averages are of the parameters as the
    optimizer leaves them, as EDM2's are.
    """
    rule = optimizer.build(config.optimizer, config.total_steps)
    rate = optimizer.learning_rate(config.optimizer, config.total_steps)
    profiles = {text: ema.parse_profile(text) for text in config.ema.profiles}
    split, smallest = mesh.split_batch(device_mesh), config.mesh.fsdp_min_size
    pin = lambda tree: jax.lax.with_sharding_constraint(tree, mesh.split_state(device_mesh, tree, smallest))  # noqa: E731
    on_cpu = device_mesh.devices.flat[0].platform == "cpu"
    objective = _gathering(objective, device_mesh) if device_mesh.shape["fsdp"] > 1 else objective

    def train_step(state: TrainState, batch: dict[str, Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(room_key(config.seed, TRAIN), state.step)
        purpose = lambda number: jax.random.fold_in(key, number)  # noqa: E731
        images = jax.lax.with_sharding_constraint(to_unit_range(batch["image"]), split)
        if config.data.flip:
            images = random_flip(images, purpose(FLIP))
        done = {}
        if config.data.augment:
            images, done["augment_labels"] = augment(images, purpose(AUGMENT), config.data.augment)
        key_of_draws = draw_key(config.seed, state.step)
        draws = objective.draw(images, batch["label"], key_of_draws, state.step, batch.get("references", {}), **done)
        draws = jax.lax.with_sharding_constraint(draws, split)
        parts = (config.optimizer.accumulate, pin, on_cpu)
        scale = state.context.get(loss_scale.NAME)
        factor = None if scale is None else scale["scale"]
        grads, metrics = gradients(objective, state.params, state.context, draws, purpose(DROPOUT), *parts, factor)
        if scale is not None:
            grads, taken = loss_scale.unscaled(grads, scale)
            metrics |= {"loss_scale": factor, "overflow": 1.0 - taken}
        updates, opt_state = rule.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        averages = {
            text: ema.update(state.ema[text], params, ema.decay_at(profile, state.step, config.batch_size))
            for text, profile in profiles.items()
        }
        metrics |= {"grad_norm": optax.global_norm(grads), "lr": rate(state.step)}
        if project:
            params = project(params)
        context = objective.advance(state.context, params, state.step)
        if scale is not None:
            old = (state.params, state.opt_state, state.ema, state.context)
            params, opt_state, averages, context = loss_scale.chosen(taken, (params, opt_state, averages, context), old)
            context = context | {loss_scale.NAME: loss_scale.moved(scale, taken)}
        return pin(TrainState(state.step + 1, params, opt_state, averages, context)), metrics

    return train_step


def _gathering(objective: Objective, device_mesh: Mesh) -> Objective:
    """The objective for a state that is split over devices: its loss puts the arrays together where it needs them.

    They are not kept for the backward pass, but put together once more.
    """
    whole = mesh.replicated(device_mesh)

    def gather(tree: Any) -> Any:
        name = lambda x: checkpoint_name(jax.lax.with_sharding_constraint(x, whole), "gathered")  # noqa: E731
        return jax.tree.map(name, tree)

    def loss(params: Any, context: Any, draws: Any, dropout_key: Array) -> Any:
        return objective.loss(gather(params), gather(context), draws, dropout_key)

    again = jax.checkpoint_policies.save_anything_except_these_names("gathered")
    return objective._replace(loss=jax.checkpoint(loss, policy=again))


def gradients(
    objective: Objective,
    params: Any,
    context: Any,
    draws: Any,
    dropout_key: Array,
    accumulate: int,
    pin: Callable[[Any], Any] = lambda tree: tree,
    unroll: bool = False,
    factor: Array | None = None,
) -> tuple[Any, Metrics]:
    """The gradient of the mean loss over the draws, and mean metrics; in ``accumulate`` equal parts, one after another.

    With ``factor`` the gradient is that of the loss times it (``loss_scale.py``).

    The parts interleave the batch, so that each device's images stay on it. ``pin`` lays a tree of gradients out;
    ``unroll`` writes the parts out one after another: on a CPU gradients of convolutions are 20 times slower in a loop.
    """

    def mean_loss(params: Any, part: Any, key: Array) -> tuple[Array, Metrics]:
        losses, metrics = objective.loss(params, context, part, key)
        loss = jnp.mean(losses)
        return loss if factor is None else loss * factor, {"loss": loss} | jax.tree.map(jnp.mean, metrics)

    def gradient(params: Any, part: Any, key: Array) -> tuple[Any, Metrics]:
        grads, metrics = jax.grad(mean_loss, has_aux=True)(params, part, key)
        return pin(grads), metrics

    if accumulate == 1:
        return gradient(params, draws, dropout_key)
    parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), draws)

    def add(total: Any, numbered: Any) -> tuple[Any, None]:
        index, part = numbered
        result = gradient(params, part, jax.random.fold_in(dropout_key, index))
        return jax.tree.map(lambda a, b: a + b / accumulate, total, result), None

    first = jax.tree.map(lambda x: x[0], parts)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, params, first, dropout_key))
    total, _ = jax.lax.scan(add, zero, (jnp.arange(accumulate), parts), unroll=accumulate if unroll else 1)
    return total


def make_dispatch(
    train_step: TrainStep, fetch: Callable[[Any, Any], dict[str, Array]], donate: bool = True
) -> Callable[..., Any]:
    """Several steps in one call, jitted: ``dispatch(state, arrays, items, flags=None) -> (state, metrics)``.

    ``items`` has the steps as its leading axis, and so have the metrics; ``fetch(arrays, item)`` makes a batch. The
    state is donated. With ``flags``, int32 and an entry a device, the metrics hold the largest, ``"flag"``.
    """

    def dispatch(state: TrainState, arrays: Any, items: Any, flags: Array | None = None) -> tuple[TrainState, Metrics]:
        count = jax.tree.leaves(items)[0].shape[0]
        if count == 1:
            state, metrics = train_step(state, fetch(arrays, jax.tree.map(lambda x: x[0], items)))
            metrics = jax.tree.map(lambda x: x[None], metrics)
        else:
            state, metrics = jax.lax.scan(lambda state, item: train_step(state, fetch(arrays, item)), state, items)
        return state, metrics if flags is None else metrics | {"flag": jnp.max(flags)}

    return jax.jit(dispatch, donate_argnums=0 if donate else ())
