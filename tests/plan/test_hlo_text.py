"""The text of a compiled program: shapes, loops, and what each instruction moves through memory."""

import jax
import jax.numpy as jnp
import pytest

from sct_jax.plan import hlo, traffic

LOOP = """HloModule jit_f, is_scheduled=true, num_partitions=4

%fused (p0: f32[10,8], p1: s32[]) -> f32[1,8] {
  %p0 = f32[10,8]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %take = f32[1,8]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,8}
}

%body (state: (s32[], f32[10,8], f32[1,8])) -> (s32[], f32[10,8], f32[1,8]) {
  %state = (s32[], f32[10,8]{1,0}, f32[1,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %rows = f32[10,8]{1,0} get-tuple-element(%state), index=1
  %total = f32[1,8]{1,0} get-tuple-element(%state), index=2
  %row = f32[1,8]{1,0} fusion(%rows, %i), kind=kLoop, calls=%fused
  %sum = f32[1,8]{1,0} add(%total, %row)
  %one = s32[]{:S(1)} constant(1)
  %next = s32[]{:T(128)S(1)} add(%i, %one)
  ROOT %out = (s32[], f32[10,8]{1,0}, f32[1,8]{1,0}) tuple(%next, %rows, %sum)
}

%condition (state.1: (s32[], f32[10,8], f32[1,8])) -> pred[] {
  %state.1 = (s32[], f32[10,8]{1,0}, f32[1,8]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(10)
  ROOT %less = pred[]{:S(1)} compare(%i.1, %limit), direction=LT
}

ENTRY %main (rows.1: f32[10,8]) -> f32[1,8] {
  %rows.1 = f32[10,8]{1,0:T(8,128)} parameter(0)
  %start = s32[] constant(0)
  %nothing = f32[1,8]{1,0} constant({...})
  %initial = (s32[], f32[10,8]{1,0}, /*index=2*/f32[1,8]{1,0}) tuple(%start, %rows.1, %nothing)
  %loop = (s32[], f32[10,8]{1,0}, f32[1,8]{1,0}) while(%initial), condition=%condition, body=%body
  ROOT %result = f32[1,8]{1,0} get-tuple-element(%loop), index=2
}
"""


@pytest.mark.parametrize(
    ("shape", "sizes", "spaces"),
    [
        ("f32[8,128]{1,0:T(8,128)S(1)}", [4096], [1]),
        ("(bf16[3,5]{1,0}, u32[]{:S(2)}, /*index=2*/pred[7]{0})", [30, 4, 7], [0, 2, 0]),
        ("(f8e4m3fn[16]{0}, s4[6]{0}, token[], c64[2])", [16, 3, 0, 16], [0, 0, 0, 0]),
    ],
)
def test_shapes_have_bytes_and_places(shape, sizes, spaces):
    arrays = hlo.arrays_of(shape)
    assert [array.bytes for array in arrays] == sizes
    assert [array.space for array in arrays] == spaces


def test_a_loop_counts_as_often_as_it_runs():
    module = hlo.parse(LOOP)
    times = {instruction.name: count for _, instruction, count in module.executed()}
    assert module.partitions == 4
    assert times["loop"] == 1
    assert times["row"] == times["less"] == 10
    assert module.unknown_loops() == 0
    # Each turn: a row read and written by the fusion, two rows read and one written by the sum, i read three times (by
    # the fusion, the condition and the sum) and the limit once; one lies in the scratch memory.
    assert traffic.count(module) == 10 * (2 * 32 + 3 * 32 + 4 * 4)


def test_the_compilers_note_of_a_loops_length_comes_first():
    noted = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}')
    assert hlo.parse(noted).trip_count(hlo.parse(noted).computations["main"]["loop"]) == 7


def test_a_loop_of_unknown_length_is_owned_up_to():
    assert hlo.parse(LOOP.replace("direction=LT", "direction=NE")).unknown_loops() == 1


def test_traffic_of_a_compiled_product_is_its_operands_and_result():
    product = jax.jit(lambda a, b: a @ b).lower(jnp.zeros((64, 32)), jnp.zeros((32, 16))).compile()
    expected = 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert traffic.count(hlo.parse(product.as_text())) == expected
    assert product.cost_analysis()["bytes accessed"] == expected


def test_traffic_of_a_compiled_loop_is_every_turns():
    def total(rows):
        return jax.lax.scan(lambda carry, row: (jnp.tanh(carry @ row), None), jnp.ones((32, 32)), rows)[0]

    def bytes_of(turns):
        compiled = jax.jit(total).lower(jnp.zeros((turns, 32, 32))).compile()
        return traffic.count(hlo.parse(compiled.as_text()))

    assert bytes_of(40) - bytes_of(30) == bytes_of(30) - bytes_of(20)
    assert bytes_of(40) - bytes_of(30) >= 10 * 3 * 4 * 32 * 32


SCRATCH = """HloModule jit_g

%update (all: f32[10,8], new: f32[1,8], at: s32[]) -> f32[10,8] {
  %all = f32[10,8]{1,0} parameter(0)
  %new = f32[1,8]{1,0} parameter(1)
  %at = s32[]{:S(4)} parameter(2)
  ROOT %done = f32[10,8]{1,0} dynamic-update-slice(%all, %new, %at, %at)
}

ENTRY %main (x: f32[10,8], y: f32[1,8]) -> f32[10,8] {
  %x = f32[10,8]{1,0} parameter(0)
  %y = f32[1,8]{1,0} parameter(1)
  %begin = (f32[10,8]{1,0:S(1)}, f32[10,8]{1,0}, u32[]{:S(2)}) copy-start(%x)
  %near = f32[10,8]{1,0:S(1)} copy-done(%begin)
  %row = f32[1,8]{1,0:S(1)} slice(%near), slice={[0:1], [0:8]}
  %where = s32[]{:S(4)} constant(3)
  %twice = f32[1,8]{1,0} add(%row, %y)
  ROOT %out = f32[10,8]{1,0} fusion(%x, %twice, %where), kind=kLoop, calls=%update
}
"""


def test_scratch_memory_is_free_and_updates_in_place_move_what_they_change():
    prefetch, twice, update = 320, 32 + 32, 32 + 32
    assert traffic.count(hlo.parse(SCRATCH)) == prefetch + twice + update


def test_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("HloModule nothing\n")
