"""Whole plans: for this machine, for a TPU slice that is not there, and what is refused."""

import importlib.util
import json

import jax
import numpy as np
import pytest

from sct_jax import config as config_lib
from sct_jax import models
from sct_jax.data import DataSpec
from sct_jax.errors import UserError
from sct_jax.objectives.table import ROWS
from sct_jax.plan import data_spec, program, run, topology
from sct_jax.plan.run import make_plan
from sct_jax.plan.text import describe

SPEC = DataSpec(8, 1, 10, 1797)


@pytest.fixture(scope="module")
def on_eight(tiny_config):
    config = config_lib.load_config(tiny_config, {"mesh.data": "8", "model.channels": "64"})
    return config, make_plan(config, "local")


def parameter_bytes(config):
    shapes = jax.eval_shape(models.build(config.model, SPEC).init, jax.random.key(0))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def test_memory_is_that_of_the_arrays(on_eight):
    config, plan = on_eight
    memory, true = plan["memory"], parameter_bytes(config)
    assert memory["parameters"] == memory["ema"] == true == 4 * plan["parameters"]
    assert 0 <= memory["optimizer"] - 2 * true <= 64  # two moments and counters
    assert memory["batch"] == 2 * (64 + 4)  # two of the sixteen images and labels on each device
    assert memory["data_set"] == 1437 * (64 + 4)
    assert memory["context"] == 0
    assert memory["peak"] >= 4 * true


def test_gradients_are_summed_once_in_float32(on_eight):
    config, plan = on_eight
    sums = [each for each in plan["collectives"] if each["kind"] == "all-reduce" and each["dtype"] == "f32"]
    excess = sum(each["bytes"] for each in sums) - parameter_bytes(config)
    assert 0 <= excess <= 1024  # the loss and other metrics
    assert {each["group"] for each in sums} == {8}


def test_operations_of_an_mlp_are_about_those_of_its_weights(on_eight):
    """SCT takes the network forward twice and back once, and each weight costs an operation pair a pass and image."""
    config, plan = on_eight
    shapes = jax.eval_shape(models.build(config.model, SPEC).init, jax.random.key(0))
    weights = sum(leaf.size for leaf in jax.tree.leaves(shapes) if leaf.ndim == 2)
    expected = 2 * weights * config.batch_size * 4  # forward, forward of the target, two backward
    total = sum(plan["operations"]["step"].values())
    assert 0.7 * expected < total < 1.3 * expected
    assert plan["operations"]["chip"] == total / 8
    assert 0.9 < plan["operations"]["chip_xla"] / plan["operations"]["chip"] < 3  # it counts elementwise work too


def test_a_cpu_has_no_floor_and_the_plan_says_so(on_eight):
    _, plan = on_eight
    assert plan["floor"] is None
    assert plan["run"] is None
    assert any("no peaks" in note for note in plan["notes"])


def test_splitting_the_state_splits_its_bytes(tiny_config, on_eight):
    _, whole = on_eight
    overrides = {"mesh.data": "2", "mesh.fsdp": "4", "mesh.fsdp_min_size": "64", "model.channels": "64"}
    split = program.trace(config_lib.load_config(tiny_config, overrides), SPEC, topology.find("local")).state
    for part in ("parameters", "optimizer", "ema"):
        assert 0.25 <= split[part] / whole["memory"][part] < 0.3
    assert split["batch"] == whole["memory"]["batch"]


def test_distillation_needs_no_teacher_on_this_machine(tiny_config):
    overrides = {
        "objective.method": "cd",
        "objective.transition": "teacher_euler",
        "objective.teacher": "runs/nowhere",
        "init.checkpoint": "runs/nowhere",
    }
    config = config_lib.load_config(tiny_config, overrides)
    assert program.trace(config, SPEC, topology.find("local")).state["context"] >= parameter_bytes(config)


def test_a_second_stage_needs_no_stage_1_on_this_machine(tiny_config):
    overrides = {f"objective.{name}": str(value) for name, value in ROWS["tcm"].items()}
    overrides |= {"objective.stage1": "runs/nowhere", "sampling.mid_times": "1.0"}
    config = config_lib.load_config(tiny_config, overrides)
    assert program.trace(config, SPEC, topology.find("local")).state["context"] >= parameter_bytes(config)


def test_both_forms_of_the_td_difference_are_priced(on_eight, tiny_config):
    """A derivative is two forward passes in place of one; what is planned costs what the plan of it alone says."""
    _, plan = on_eight
    assert plan["difference"]["planned"] == "evaluated"
    assert plan["difference"]["operations"]["evaluated"] == sum(plan["operations"]["step"].values())
    ratio = plan["difference"]["operations"]["tangent"] / plan["difference"]["operations"]["evaluated"]
    assert 1.15 < ratio < 1.3
    low = config_lib.load_config(tiny_config, {"mesh.data": "1", "model.compute_dtype": "bfloat16"})
    found = make_plan(low, "local")
    assert found["difference"]["planned"] == "tangent"
    assert found["difference"]["operations"]["tangent"] == sum(found["operations"]["step"].values())
    assert "planned: tangent" in describe(found)
    ema = config_lib.load_config(tiny_config)
    ema.objective.update(ROWS["ct"])
    one, other = run._one_form(ema)
    assert one.objective.difference == "evaluated"
    assert other is None


def test_from_the_command_line(sct_jax_command, tiny_config, tmp_path):
    out = tmp_path / "plan.json"
    call = ("plan", "--config", tiny_config, "--config.batch_size=32", "--topology", "local", "--out", out)
    finished = sct_jax_command(*call)
    assert finished.status == 0, finished.err
    plan = json.loads(out.read_text())
    assert plan["batch_size"] == 32
    assert plan["overrides"] == {"batch_size": "32"}
    assert f"{plan['parameters']:,} parameters" in finished.out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("v5e:9x9x9", "torus of 2 axes"),
        ("v5x:4x4", "'v5x:4x4'; did you mean v5e:4x4?"),
        ("v5e", "2x4"),
        ("v5e:0x4", "v4, v5p"),
        ("", "or local"),
    ],
)
def test_a_wrong_topology_lists_the_known_ones(sct_jax_command, tiny_config, name, said):
    complaint = sct_jax_command("plan", "--config", tiny_config, f"--topology={name}").complaint
    assert said in complaint
    assert "16x16" in complaint


def test_without_libtpu_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install libtpu .*\.\[plan\]"):
        topology.find("v5e:2x2")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("--config.batch_size=18", "--config.mesh.data=-1"), "does not divide"),
        (("--config.mesh.data=-1", "--config.mesh.fsdp=3"), "config.mesh.fsdp = 3"),
        (("--config.mesh.data=9",), "there are 8 devices"),
        (("--config.data.source=idx", "--config.data.path=nowhere"), "--data-spec"),
        (("--data-spec=64x32x3,10,10",), "square"),
        (("--efficiency=0",), "--efficiency 0"),
    ],
)
def test_what_does_not_fit_is_one_line(sct_jax_command, tiny_config, overrides, said):
    assert said in sct_jax_command("plan", "--config", tiny_config, *overrides).complaint


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("configs/cifar10_sct.py", data_spec.CIFAR10),
        ("configs/imagenet64_sct.py", DataSpec(64, 3, 1000, 1_281_167)),
        ("configs/digits_sct.py", SPEC),
    ],
)
def test_what_the_images_are_is_known_without_them(file, expected, request):
    config = config_lib.load_config(request.config.rootpath / file)
    found = data_spec.find(config)
    names = ("image_size", "channels", "num_classes", "num_examples")
    assert [getattr(found, name) for name in names] == [getattr(expected, name) for name in names]
    assert data_spec.find(config, "28x28x1,0,60000") == DataSpec(28, 1, 0, 60_000)


class Lowered:
    """Stands for a program and a compiler that knows no option."""

    def __init__(self, message):
        self.message, self.options = message, []

    def compile(self, compiler_options=None):
        self.options.append(compiler_options)
        if compiler_options:
            raise jax.errors.JaxRuntimeError(self.message)
        return "program"


def test_a_compiler_without_the_option_is_called_without_it():
    lowered = Lowered("INVALID_ARGUMENT: No such compile option: 'some_name'")
    assert program._compile(lowered, {"some_name": "1"}) == "program"
    assert lowered.options == [{"some_name": "1"}, None]


def test_other_failures_of_the_compiler_are_not_hidden():
    lowered = Lowered("RESOURCE_EXHAUSTED: out of HBM")
    with pytest.raises(jax.errors.JaxRuntimeError, match="out of HBM"):
        program._compile(lowered, program.QUICK)
    assert len(lowered.options) == 1


@pytest.mark.parametrize(
    ("spare", "name", "full_search", "warned"),
    [
        (2.9, "v5e:2x2", False, True),
        (3.1, "v5e:2x2", False, False),
        (2.9, "v5e:2x2", True, False),
        (2.9, "local", False, False),
        (-0.1, "v5e:2x2", False, False),
    ],
)
def test_a_narrow_fit_of_a_quick_plan_is_said(spare, name, full_search, warned):
    """The program of a full search may be four times as large, so three of it must be to spare."""
    memory = {"capacity": 16e9, "code": 1e9, "peak": 16e9 - spare * 1e9}
    plan = {"memory": memory, "fits": spare > 0, "topology": name, "full_search": full_search}
    assert ["--full-search" in note for note in run._narrow(plan)] == ([True] if warned else [])


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install libtpu")
class TestOnTpu:
    @pytest.fixture(scope="class")
    def plan(self, tiny_config):
        config = config_lib.load_config(tiny_config, {"mesh.data": "-1", "batch_size": "16"})
        return config, make_plan(config, "v5e:2x2", price=2.0, efficiency=0.5)

    def test_it_fits_and_something_binds(self, plan):
        _, plan = plan
        assert plan["fits"] is True
        assert (plan["chip"], plan["chips"]) == ("v5e", 4)
        floor = plan["floor"]
        assert floor["step"] == floor[floor["binds"]] == max(floor[n] for n in ("compute", "memory", "interconnect"))
        assert floor["compute"] == pytest.approx(plan["operations"]["chip"] * 6 / 197e12)
        assert floor["memory"] == pytest.approx(plan["hbm_bytes"]["chip"] / 819e9)

    def test_gradients_are_summed_in_float32_over_the_slice(self, plan):
        config, plan = plan
        sums = [each for each in plan["collectives"] if each["kind"] == "all-reduce" and each["dtype"] == "f32"]
        # XLA leaves out the gradients that are zero, and adds the metrics.
        assert abs(sum(each["bytes"] for each in sums) - parameter_bytes(config)) <= 1024
        sent = sum(each["sent_by_chip"] for each in sums)
        assert sent == pytest.approx(1.5 * sum(each["bytes"] for each in sums))
        # Two links of 50 GB/s within a square of two by two.
        assert sum(each["seconds"] for each in sums) == pytest.approx(sent / 100e9)

    @pytest.mark.parametrize(("chosen", "dtype"), [("float32", "f32"), ("compute", "bf16")])
    def test_gradients_of_bfloat16_products_are_summed_as_chosen(self, tiny_config, chosen, dtype):
        fields = {"mesh.data": "-1", "model.compute_dtype": "bfloat16", "model.gradient_dtype": chosen}
        plan = make_plan(config_lib.load_config(tiny_config, fields), "v5e:2x2")
        sums = {each["dtype"]: each["bytes"] for each in plan["collectives"] if each["kind"] == "all-reduce"}
        assert max(sums, key=sums.get) == dtype
        assert ("bf16" in sums) == (dtype == "bf16")

    def test_the_quick_search_changes_the_program_alone(self, tiny_config, monkeypatch):
        """Kernels are chosen otherwise, and nothing else that a plan says; the option is one this libtpu has."""
        fields = {"mesh.data": "-1", "model.name": "ddpmpp", "model.channels": "64", "model.channel_mult": "(1, 2)"}
        fields |= {"model.num_blocks": "1", "model.compute_dtype": "bfloat16", "model.gradient_dtype": "float32"}
        config = config_lib.load_config(tiny_config, fields)
        options = []

        def compile_with(lowered, chosen):  # without the way out for a compiler that has not got the option
            options.append(chosen)
            return lowered.compile(compiler_options=chosen or None)

        monkeypatch.setattr(program, "_compile", compile_with)
        quick, full = make_plan(config, "v5e:2x2"), make_plan(config, "v5e:2x2", full_search=True)
        assert options == [program.QUICK, {}]
        assert (quick["full_search"], full["full_search"]) == (False, True)
        for name in ("operations", "hbm_bytes", "collectives", "floor", "run", "weak_scaling"):
            assert quick[name] == full[name], name
        assert {n for n in full["memory"] if quick["memory"][n] != full["memory"][n]} <= {"code", "peak"}

    def test_memory_moves_at_least_the_state_in_and_out(self, plan):
        _, plan = plan
        state = sum(plan["memory"][part] for part in ("parameters", "optimizer", "ema"))
        assert state <= plan["hbm_bytes"]["chip"]

    def test_the_run_follows_from_the_floor(self, plan):
        config, plan = plan
        best, real = plan["run"]["at_floor"], plan["run"]["at_efficiency"]
        assert best["images_per_second"] == pytest.approx(config.batch_size / plan["floor"]["step"])
        assert real["hours"] == pytest.approx(2 * best["hours"])
        assert real["cost"] == pytest.approx(real["hours"] * 4 * 2.0)
        assert np.all(np.diff([row["exposed"] for row in plan["weak_scaling"][3:]]) <= 0)

    def test_what_does_not_fit_is_told_by_the_compiler(self, tiny_config):
        config = config_lib.load_config(tiny_config, {"mesh.data": "-1", "model.channels": "16384"})
        plan = make_plan(config, "v5e:2x2")
        assert plan["fits"] is False
        assert plan["memory"]["peak"] > sum(plan["memory"][part] for part in ("parameters", "optimizer", "ema"))
        assert "DOES NOT FIT: peak" in describe(plan)
        assert "config.mesh.fsdp" in describe(plan)
        assert plan["floor"]["memory"] is None

    def test_a_shape_that_is_no_slice_is_refused(self):
        with pytest.raises(UserError, match=r"does not know the topology 'v5e:3x3'.*v5e, v6e"):
            topology.find("v5e:3x3")
