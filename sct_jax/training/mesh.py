"""The device mesh and how arrays lie on it: one device and many, one process and many, run the same code.

The mesh has two axes. Batches are split over both. Over ``fsdp`` the state is split as well (fully-sharded data
parallelism): parameters, optimizer state, averages and context, each array along one of its axes, chosen by its shape
alone (:func:`split_state`). ``fsdp = 1`` is plain data parallelism; with both axes above 1 each group of ``fsdp``
devices holds one copy of the state (hybrid).
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sct_jax.errors import UserError

AXES = ("data", "fsdp")
FORCED_DEVICES = "--xla_force_host_platform_device_count"


def split_cpu(count: int) -> None:
    """Makes JAX compute on this machine's CPU, as ``count`` devices; before it has started to.

    All share the cores: what one of them cannot do in parallel leaves a core to another.

    Raises:
      UserError: when the environment asks for another platform or has counted the devices already.
    """
    flags, platform = os.environ.get("XLA_FLAGS", ""), os.environ.get("JAX_PLATFORMS", "") or "cpu"
    if count < 1:
        raise UserError(f"--cpu-devices {count}: give a number from 1, such as that of the cores, {os.cpu_count()}")
    if platform.lower() != "cpu":
        raise UserError(f"--cpu-devices is for CPUs and JAX_PLATFORMS is {platform}: leave one of the two out")
    if FORCED_DEVICES in flags:
        raise UserError(f"--cpu-devices, and {FORCED_DEVICES} in XLA_FLAGS: leave one of the two out")
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of ``config.mesh.data`` (−1: all that ``fsdp`` leaves) times ``config.mesh.fsdp`` devices.

    Args:
      data: size of the axis over which the state is copied.
      fsdp: size of the axis over which it is split.
      devices: what to take instead of all devices of all processes, such as those of a machine that is not there.

    Raises:
      UserError: when the devices are too few or do not divide, or a process would have no device in the mesh.
    """
    devices = jax.devices() if devices is None else list(devices)
    if data == -1:
        data, rest = divmod(len(devices), fsdp)
        if rest or not data:
            raise UserError(
                f"config.mesh.fsdp = {fsdp} does not divide the {len(devices)} devices here; "
                f"use one of {', '.join(map(str, _divisors(len(devices))))}"
            )
    count = data * fsdp
    if not 1 <= count <= len(devices):
        limit = len(devices) // fsdp
        use = f"use 1 to {limit}, or -1" if limit else f"config.mesh.fsdp is at most {len(devices)}"
        product = f" (x config.mesh.fsdp = {fsdp})" if fsdp > 1 else ""
        raise UserError(f"config.mesh.data = {data}{product}: there are {len(devices)} devices here; {use}")
    chosen = devices[:count]
    idle = {device.process_index for device in devices} - {device.process_index for device in chosen}
    if idle:
        raise UserError(
            f"config.mesh takes {count} of {len(devices)} devices and leaves process {min(idle)} without one: "
            "set config.mesh.data = -1"
        )
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=chosen)


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The array is split over all devices along ``axis``."""
    return NamedSharding(mesh, P(*(None,) * axis, mesh.axis_names))


def split_state(mesh: Mesh, tree: Any, min_size: int) -> Any:
    """How a state lies on the mesh: a tree of shardings, by the shapes of the leaves alone.

    Arrays of fewer than ``min_size`` numbers, and those no axis of which divides by the devices of ``fsdp``, are whole
    on every device; all others are split along their longest axis that does (of equals, the last).
    """
    parts = mesh.shape["fsdp"]

    def place(leaf: Any) -> NamedSharding:
        fitting = [axis for axis, length in enumerate(leaf.shape) if length % parts == 0]
        if parts == 1 or leaf.size < max(min_size, parts) or not fitting:
            return replicated(mesh)
        axis = max(fitting, key=lambda axis: (leaf.shape[axis], axis))
        return NamedSharding(mesh, P(*(None,) * axis, "fsdp"))

    return jax.tree.map(place, tree)


def bytes_of_one(tree: Any) -> int:
    """Bytes on one device of a tree of arrays, or of their shapes with shardings."""

    def size(leaf: Any) -> int:
        shape = leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape
        return math.prod(shape) * np.dtype(leaf.dtype).itemsize

    return sum(map(size, jax.tree.leaves(tree)))


def put(tree: Any, sharding: Any) -> Any:
    """Puts arrays, the same in every process, on the mesh; ``sharding`` is one for all, or a tree of them.

    Arrays that lie on the devices of several processes already are moved as ``jax.device_put`` does.
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)

    def place(leaf: Any, where: NamedSharding) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, where)
        values = np.asarray(leaf)
        return jax.make_array_from_callback(values.shape, where, lambda index: values[index])

    return jax.tree.map(place, tree, sharding)


def put_rows(values: np.ndarray, sharding: NamedSharding, rows: np.ndarray, size: int, axis: int = 0) -> jax.Array:
    """An array of ``size`` rows along ``axis``; ``values`` are those of this process, ``rows`` (ascending)."""
    shape = (*values.shape[:axis], size, *values.shape[axis + 1 :])

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[axis].indices(size)
        low, high = np.searchsorted(rows, [start, stop])
        return values[(*index[:axis], slice(low, high), *index[axis + 1 :])]

    return jax.make_array_from_callback(shape, sharding, part)


def local_rows(mesh: Mesh, size: int) -> np.ndarray:
    """The rows of a batch of ``size`` that lie on the devices of this process, ascending."""
    places = split_batch(mesh).addressable_devices_indices_map((size,)).values()
    return np.unique(np.concatenate([np.arange(size)[place] for place in places]))


def is_first_process() -> bool:
    """Whether this process is the one that writes logs and pictures."""
    return jax.process_index() == 0


def from_first(value: int) -> int:
    """The number that the first process gave: for decisions by what is on disk, which all must make alike."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def all_processes(value: bool) -> bool:
    """Whether it is so in every process."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.int32(value)).min())


def put_parts(shape: tuple[int, ...], sharding: NamedSharding, read: Callable[[int, int], np.ndarray]) -> jax.Array:
    """An array split along its first axis, of which each process reads only its parts: ``read(start, stop)``."""
    return jax.make_array_from_callback(shape, sharding, lambda index: read(*index[0].indices(shape[0])[:2]))


def check_divides(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises a UserError unless every device gets the same number of images of every micro-batch."""
    count = mesh.size
    if batch_size % (count * accumulate):
        parts = f"{count} devices" + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
        near = max(1, round(batch_size / (count * accumulate))) * count * accumulate
        raise UserError(f"config.batch_size = {batch_size} does not divide over {parts}; try {near}")


def _divisors(count: int) -> list[int]:
    return [divisor for divisor in range(1, count + 1) if count % divisor == 0]
