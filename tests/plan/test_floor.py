"""Floors, runs and weak scaling against arithmetic by hand."""

import pytest

from sct_jax.plan import chips, floor, scaling, topology
from sct_jax.plan.collectives import Collective

V5E = chips.TPUS["v5e"]
ROW = [(0, y, 0) for y in range(4)]
SQUARE = [(x, y, 0) for x in range(4) for y in range(4)]


def test_a_tpu_multiplies_float32_in_six_passes():
    assert V5E.operations["bfloat16"] == 197e12
    assert V5E.operations["float32 highest"] == 197e12 / 6
    assert V5E.operations["float32 high"] == 197e12 / 3


def test_the_largest_of_the_three_is_the_floor():
    work = {"bfloat16": 197e9, "float32 highest": 197e9}  # 1 ms and 6 ms
    assert floor.floor(V5E, work, 819e6, 0.002) == floor.Floor(pytest.approx(0.007), pytest.approx(0.001), 0.002)
    assert floor.floor(V5E, work, 819e6, 0.002).binds == "compute"
    moved = floor.floor(V5E, work, 8.19e9, 0.002)
    assert (moved.binds, moved.step) == ("memory", pytest.approx(0.01))
    assert floor.floor(V5E, {}, 0, 0.002).binds == "interconnect"


def test_collectives_use_the_links_that_lead_to_their_group():
    summed = Collective("all-reduce", "f32", (0, 1, 2, 3), 1, 4_000_000)  # 6 MB sent by each
    assert floor.seconds(V5E, summed, ROW) == pytest.approx(6e6 / (2 * 50e9))
    pair = Collective("all-reduce", "f32", (0, 1), 1, 6_000_000)
    assert floor.seconds(V5E, pair, ROW) == pytest.approx(6e6 / 50e9)
    square = Collective("all-gather", "f32", tuple(range(16)), 1, 16_000_000)  # 15 MB
    assert floor.seconds(V5E, square, SQUARE) == pytest.approx(15e6 / (4 * 50e9))
    column = Collective("all-gather", "f32", (0, 4, 8, 12), 1, 16_000_000)  # 12 MB along one axis of the square
    assert floor.seconds(V5E, column, SQUARE) == pytest.approx(12e6 / (2 * 50e9))


def test_a_run_at_a_step_time():
    run = floor.run(0.1, batch_size=128, total_steps=72_000, chips=8, price=1.5)
    assert run == pytest.approx(
        {"step_seconds": 0.1, "images_per_second": 1280, "hours": 2, "chip_hours": 16, "cost": 24}
    )
    assert "cost" not in floor.run(0.1, 128, 72_000, 8)


def test_weak_scaling_of_a_sum_approaches_the_rings_limit():
    gradients = Collective("all-reduce", "f32", tuple(range(8)), 1, 200_000_000)
    rows = scaling.weak_scaling(V5E, floor.Floor(0.010, 0.004, 0.001), [gradients], split=False)
    assert [row["chips"] for row in rows] == [4, 8, 16, 32, 64, 128, 256]
    last = rows[-1]
    assert last["shape"] == "16x16"
    assert last["interconnect_seconds"] == pytest.approx(2 * 255 / 256 * 200e6 / (4 * 50e9))
    assert last["overlapped"] == 1.0
    assert last["exposed"] == pytest.approx(0.010 / (0.010 + last["interconnect_seconds"]))
    assert rows[0]["interconnect_seconds"] == pytest.approx(2 * 3 / 4 * 200e6 / (2 * 50e9))


def test_weak_scaling_of_what_gathers_the_batch_grows_with_it_but_not_that_of_parameters():
    gathered = [Collective("all-gather", "f32", tuple(range(8)), 1, 8_000_000)]
    batch = scaling.weak_scaling(V5E, floor.Floor(0.01, 0, 0), gathered, split=False, counts=(256,))[0]
    split = scaling.weak_scaling(V5E, floor.Floor(0.01, 0, 0), gathered, split=True, counts=(256,))[0]
    assert batch["interconnect_seconds"] == pytest.approx(32 * split["interconnect_seconds"])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_chips_by_the_names_that_jax_gives_them(kind, name):
    assert chips.find(kind).name == name


def test_a_cpu_has_no_published_peak():
    assert chips.find("cpu") is None


def test_known_slices_have_as_many_axes_as_their_torus():
    for chip, shapes in topology.KNOWN.items():
        assert {len(topology.parse(f"{chip}:{shape}")[1]) for shape in shapes} == {chips.TPUS[chip].axes}
