"""Collectives: found in text as compilers write it and in programs really compiled for eight devices."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from sct_jax.plan import collectives, hlo
from sct_jax.plan.collectives import Collective
from sct_jax.training import mesh

TEXT = """HloModule jit_step, num_partitions=8

%async_start (a: bf16[16]) -> (bf16[16], bf16[64]) {{
  %a = bf16[16]{{0}} parameter(0)
  %piece = bf16[64]{{0}} all-gather(%a), channel_id=9, replica_groups={gather}, attributes={{chain_id="3"}}
  ROOT %call = (bf16[16]{{0}}, bf16[64]{{0}}) custom-call(%piece), custom_call_target="AsyncCollectiveStart"
}}

%async_part (b: bf16[16]) -> bf16[64] {{
  %b = bf16[16]{{0}} parameter(0)
  ROOT %again = bf16[64]{{0}} all-gather(%b), channel_id=9, replica_groups={gather}, attributes={{chain_id="3"}}
}}

%all-reduce-scatter.1 (c: f32[80]) -> f32[10] {{
  %c = f32[80]{{0}} parameter(0)
  %sum = f32[80]{{0}} all-reduce(%c), replica_groups={{{{0,1,2,3,4,5,6,7}}}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %own = f32[10]{{0}} dynamic-slice(%sum, %zero), dynamic_slice_sizes={{10}}
}}

ENTRY %main (x: f32[10], y: s32[6], z: bf16[16], w: f32[80]) -> f32[10] {{
  %x = f32[10]{{0:T(128)}} parameter(0)
  %y = s32[6]{{0}} parameter(1)
  %z = bf16[16]{{0}} parameter(2)
  %w = f32[80]{{0}} parameter(3)
  %both = (f32[10]{{0}}, /*index=1*/s32[6]{{0}}) all-reduce(%x, /*index=1*/%y), replica_groups={{}}, to_apply=%add
  %begun = (f32[10]{{0}}, f32[20]{{0}}) all-gather-start(%x), replica_groups=[4,2]<=[2,4]T(1,0), dimensions={{0}}
  %ended = f32[20]{{0}} all-gather-done(%begun)
  %alone = f32[10]{{0}} all-reduce(%x), replica_groups={{{{0}},{{1}},{{2}},{{3}},{{4}},{{5}},{{6}},{{7}}}}
  %moved = s32[6]{{0}} collective-permute(%y), source_target_pairs={{{{0,1}},{{1,0}}}}
  %start = (bf16[16]{{0}}, bf16[64]{{0}}) fusion(%z), kind=kCustom, calls=%async_start
  %part = bf16[64]{{0}} fusion(%z), kind=kCustom, calls=%async_part
  ROOT %kept = f32[10]{{0}} fusion(%w), kind=kCustom, calls=%all-reduce-scatter.1
}}
"""


def test_every_form_is_read():
    found = collectives.find(hlo.parse(TEXT.format(gather="mesh['data'=2,'fsdp'=4] {'fsdp'}")))
    whole = tuple(range(8))
    assert set(found) == {
        Collective("all-reduce", "f32", whole, 1, 40),
        Collective("all-reduce", "s32", whole, 1, 24),
        Collective("all-gather", "f32", (0, 4), 1, 2 * 40),
        Collective("collective-permute", "s32", (0, 1), 1, 24),
        Collective("all-gather", "bf16", (0, 1, 2, 3), 1, 4 * 32),  # its pieces are one
        Collective("reduce-scatter", "f32", whole, 1, 320),
    }


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("{{0,2},{1,3}}", (0, 2)),
        ("[2,4]<=[8]", (0, 1, 2, 3)),
        ("[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("mesh['a'=8] {'a':(1)2}", (0, 4)),
        ("mesh['a'=8] {'a':(2)4}", (0, 1, 2, 3)),
    ],
)
def test_groups(groups, first):
    found = collectives.find(hlo.parse(TEXT.format(gather=groups)))
    assert [each.group for each in found if each.dtype == "bf16"] == [first]


@pytest.mark.parametrize(
    ("kind", "share"),
    [("all-reduce", 2 * 3 / 4), ("all-gather", 3 / 4), ("reduce-scatter", 3 / 4), ("collective-permute", 1)],
)
def test_a_ring_sends(kind, share):
    assert Collective(kind, "f32", (0, 1, 2, 3), 1, 1000).sent == share * 1000


# What lax calls it, the local shape's sizes before, and the whole's size: f32[16] on each of eight devices.
ONES = {
    "all-reduce": (lambda x: jax.lax.psum(x, "data"), P(), 64),
    "all-gather": (lambda x: jax.lax.all_gather(x, "data"), P("data"), 8 * 64),
    "reduce-scatter": (lambda x: jax.lax.psum_scatter(x, "data", tiled=True), P("data"), 64),
    "all-to-all": (lambda x: jax.lax.all_to_all(x.reshape(8, 2), "data", 0, 0), P("data"), 64),
    "collective-permute": (lambda x: jax.lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)]), P("data"), 64),
}


@pytest.mark.parametrize("kind", ONES)
@pytest.mark.parametrize("turns", [1, 5])
def test_compiled_programs_hold_what_was_written(kind, turns):
    one, out, size = ONES[kind]

    def repeated(x):
        if turns == 1:
            return one(x)
        return jax.lax.scan(lambda carry, scale: (carry, one(x * scale)), 0.0, jnp.arange(1.0, turns + 1))[1].sum(0)

    devices = mesh.make_mesh(8, 1)
    program = jax.jit(jax.shard_map(repeated, mesh=devices, in_specs=P("data"), out_specs=out, check_vma=False))
    text = program.lower(jax.ShapeDtypeStruct((128,), jnp.float32)).compile().as_text()
    (found,) = collectives.find(hlo.parse(text))
    assert found == Collective(kind, "f32", tuple(range(8)), turns, turns * size)
