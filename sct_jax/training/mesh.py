"""The device mesh: sharding is a property of arrays, so one device and many run the same code."""

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sct_jax.errors import UserError


def make_mesh(data: int = -1) -> Mesh:
    """A mesh with the axis ``data`` over ``data`` devices (−1: all).

    Raises:
      UserError: when there are fewer devices.
    """
    devices = jax.devices()
    count = len(devices) if data == -1 else data
    if not 1 <= count <= len(devices):
        raise UserError(
            f"config.mesh.data = {data}: there are {len(devices)} devices here; use 1 to {len(devices)}, or -1"
        )
    return jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices[:count])


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, P())


def split_batch(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """The array is split over the devices along ``axis``."""
    return NamedSharding(mesh, P(*(None,) * axis, "data"))


def check_divides(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Raises a UserError unless every device gets the same number of images of every micro-batch."""
    count = mesh.shape["data"]
    if batch_size % (count * accumulate):
        parts = f"{count} devices" + (f" x {accumulate} micro-batches" if accumulate > 1 else "")
        near = max(1, round(batch_size / (count * accumulate))) * count * accumulate
        raise UserError(f"config.batch_size = {batch_size} does not divide over {parts}; try {near}")
