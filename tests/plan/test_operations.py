"""Operations counted in a jaxpr: against the formulas, and against XLA where it counts the same."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from sct_jax.plan import operations
from sct_jax.training import mesh


def counted(function, *arguments):
    return operations.count(jax.jit(function).trace(*arguments).jaxpr)


def test_a_product_and_its_gradient():
    x, w = jnp.zeros((32, 64)), jnp.zeros((64, 16))
    once = 2 * 32 * 64 * 16
    assert counted(lambda x, w: x @ w, x, w) == {"float32 default": once}
    both = jax.grad(lambda x, w: jnp.sum((x @ w) ** 2), argnums=(0, 1))
    assert counted(both, x, w) == {"float32 default": 3 * once}


@pytest.mark.parametrize(
    ("precision", "dtype", "name"),
    [
        ("highest", "float32", "float32 highest"),
        ("tensorfloat32", "float32", "float32 high"),
        ("default", "float32", "float32 default"),
        ("default", "bfloat16", "bfloat16"),
    ],
)
def test_precisions_are_told_apart(precision, dtype, name):
    def product(x):
        with jax.default_matmul_precision(precision):
            return x @ x

    assert list(counted(product, jnp.zeros((4, 4), dtype))) == [name]


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_and_their_gradients_as_xla_counts_them(padding, stride, groups):
    def loss(x, w):
        numbers = ("NHWC", "HWIO", "NHWC")
        options = {"dimension_numbers": numbers, "feature_group_count": groups}
        return jax.lax.conv_general_dilated(x, w, (stride, stride), padding, **options).sum()

    x, w = jnp.zeros((2, 9, 8, 16)), jnp.zeros((3, 3, 16 // groups, 8))
    ours = sum(counted(loss, x, w).values())
    elementwise = 2 * 9 * 8 * 8  # at most: the sum
    assert 0 <= jax.jit(loss).lower(x, w).cost_analysis()["flops"] - ours <= elementwise
    # The gradient of a convolution to its kernel has as many products as itself.
    assert sum(counted(jax.grad(loss, argnums=1), x, w).values()) == 2 * ours


def test_loops_count_as_often_as_they_run_and_branches_the_longest():
    w = jnp.zeros((8, 8))
    once = 2 * 8**3
    loop = lambda w: jax.lax.scan(lambda c, _: (c @ w, None), w, None, length=7)[0]  # noqa: E731
    assert counted(loop, w) == {"float32 default": 7 * once}
    branch = lambda w: jax.lax.cond(w[0, 0] > 0, lambda: w @ w @ w, lambda: w @ w)  # noqa: E731
    assert counted(branch, w) == {"float32 default": 2 * once}
    again = jax.grad(jax.checkpoint(lambda w: jnp.sin(jnp.sin(w @ w)).sum()))
    assert counted(again, w) == {"float32 default": 4 * once}


def test_a_shard_maps_work_is_that_of_all_devices():
    devices = mesh.make_mesh(8, 1)
    product = jax.shard_map(lambda x, w: x @ w, mesh=devices, in_specs=(P("data"), P()), out_specs=P("data"))
    assert counted(product, jnp.zeros((32, 4)), jnp.zeros((4, 4))) == {"float32 default": 2 * 32 * 4 * 4}
