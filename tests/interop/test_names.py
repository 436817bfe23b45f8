"""Tables of names: layouts undo each other, what does not fit is refused with its cause."""

import numpy as np
import pytest

from sct_jax.errors import UserError
from sct_jax.interop import names
from sct_jax.interop.names import AS_IS, CONV, LINEAR, Entry, interleaved_qkv, pointwise

SHAPES = {
    "map_label": {"kernel": (5, 8)},
    "encoder": {"level0_block0": {"conv0": {"kernel": (3, 3, 4, 8), "bias": (8,)}}},
}
ENTRIES = [
    Entry(("map_label", "kernel"), "map_label.weight", LINEAR),
    Entry(("encoder", "level0_block0", "conv0", "kernel"), "enc.16x16_block0.conv0.weight", CONV),
    Entry(("encoder", "level0_block0", "conv0", "bias"), "enc.16x16_block0.conv0.bias", AS_IS),
]
STATE_DICT = {
    "map_label.weight": np.zeros((8, 5)),
    "enc.16x16_block0.conv0.weight": np.zeros((8, 4, 3, 3), np.float16),
    "enc.16x16_block0.conv0.bias": np.zeros(8),
}


@pytest.mark.parametrize(
    ("layout", "there", "here"),
    [
        (CONV, (5, 4, 3, 2), (3, 2, 4, 5)),
        (LINEAR, (5, 4), (4, 5)),
        (pointwise(), (5, 4, 1, 1), (4, 5)),
        (pointwise(1), (5, 4, 1), (4, 5)),
        (interleaved_qkv(), (12,), (12,)),
        (interleaved_qkv().then(pointwise()), (12, 4, 1, 1), (4, 12)),
    ],
)
def test_layouts_undo_each_other_exactly(layout, there, here):
    array = np.random.default_rng(0).standard_normal(there)
    ours = layout.to_ours(array)
    assert ours.shape == here
    np.testing.assert_array_equal(layout.to_original(ours), array, strict=True)


def test_interleaved_channels_are_sorted_into_q_k_v():
    there = np.array(["q0", "k0", "v0", "q1", "k1", "v1"])
    assert interleaved_qkv().to_ours(there).tolist() == ["q0", "q1", "k0", "k1", "v0", "v1"]


def test_a_convolution_means_the_same_here_and_there():
    there = np.arange(2 * 3 * 3 * 3).reshape(2, 3, 3, 3)
    assert CONV.to_ours(there)[1, 2, 0, 1] == there[1, 0, 1, 2]


@pytest.mark.parametrize("prefix", ["", "model.", "module.model."])
def test_what_comes_in_goes_out_under_the_same_names(prefix):
    generator = np.random.default_rng(0)
    arrays = {name: generator.standard_normal(a.shape).astype(np.float32) for name, a in STATE_DICT.items()}
    named = {prefix + name: array for name, array in arrays.items()}
    params, missing, extra = names.import_params(ENTRIES, named, SHAPES)
    assert missing == extra == []
    exported = names.export_state_dict(ENTRIES, params, {"filter": np.ones(2)}, prefix)
    np.testing.assert_array_equal(exported.pop(prefix + "filter"), [1, 1])
    assert exported.keys() == named.keys()
    assert all(np.array_equal(exported[name], named[name]) for name in named)


def test_imported_arrays_are_float32_copies():
    original = np.zeros(8, np.float32)
    params, _, _ = names.import_params(ENTRIES, STATE_DICT | {"enc.16x16_block0.conv0.bias": original}, SHAPES)
    original[:] = 1
    layer = params["encoder"]["level0_block0"]["conv0"]
    assert layer["kernel"].dtype == layer["bias"].dtype == np.float32
    assert not layer["bias"].any()


def test_a_parameter_without_a_name_is_not_lost_in_silence():
    params, _, _ = names.import_params(ENTRIES, STATE_DICT, SHAPES)
    params["encoder"]["new"] = np.zeros(1)
    with pytest.raises(ValueError, match=r"encoder\.new"):
        names.export_state_dict(ENTRIES, params)


def test_names_are_told_where_they_are_asked_for():
    arrays = {"map_label.weight": STATE_DICT["map_label.weight"], "other": np.zeros(1)}
    params, missing, extra = names.import_params(ENTRIES, arrays, SHAPES, strict=False)
    assert list(params) == ["map_label"]
    assert missing == ["enc.16x16_block0.conv0.weight", "enc.16x16_block0.conv0.bias"]
    assert extra == ["other"]


def without(*gone: str) -> dict:
    return {name: array for name, array in STATE_DICT.items() if name not in gone}


def moved(old: str, new: str) -> dict:
    return {name.replace(old, new): array for name, array in STATE_DICT.items()}


@pytest.mark.parametrize(
    ("state_dict", "cause"),
    [
        (STATE_DICT | {"unet.emb_noise.weight": np.zeros(1)}, "these names are EDM2's"),
        ({"input_blocks.0.0.weight": np.zeros(1)}, "these names are OpenAI's ADM"),
        (STATE_DICT | {"dec.16x16_aux_norm.weight": np.zeros(1)}, r"NVIDIA's DDPM\+\+"),
        (STATE_DICT | {"enc.8x8_aux_residual.weight": np.zeros(1)}, r"NVIDIA's NCSN\+\+"),
        (without("map_label.weight"), r"the weights are not \(model.conditional=False\)"),
        (STATE_DICT | {"map_augment.weight": np.zeros(1)}, r"model.augment_dim=9"),
        (moved("16x16", "64x64"), "another image size or number of levels: 64 there, 16 here"),
        (STATE_DICT | {"enc.16x16_block1.conv0.weight": np.zeros(1)}, "another model.num_blocks; 1 too many"),
        (STATE_DICT | {"enc.16x16_block0.qkv.weight": np.zeros(1)}, "another model.attention_resolutions"),
        (
            STATE_DICT | {"enc.16x16_block0.conv0.weight": np.zeros((16, 4, 3, 3))},
            r"another width .*: 16 there, 8 here; 1 of another shape \(.*conv0.weight \[16, 4, 3, 3\], "
            r"not \[8, 4, 3, 3\]\)",
        ),
        (STATE_DICT | {"map_label.weight": np.zeros((8, 7))}, "another number of classes"),
        (STATE_DICT | {"map_label.weight": np.zeros(3)}, r"map_label.weight \[3\], not \[8, 5\]"),
        ({}, "there are no weights in it; 3 missing"),
        (STATE_DICT | {"filter": np.zeros(2)}, "filter has other values"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_with_its_cause(state_dict, cause):
    with pytest.raises(UserError, match=cause) as found:
        names.import_params(ENTRIES, state_dict, SHAPES, constants={"filter": np.ones(2)})
    assert "\n" not in str(found.value)
    assert len(str(found.value)) < 300


def test_labels_nobody_asked_for_are_named():
    unconditional = {"encoder": SHAPES["encoder"]}
    with pytest.raises(UserError, match=r"class-conditional but the config is not \(model.conditional=True\)"):
        names.import_params(ENTRIES[1:], STATE_DICT, unconditional)


def test_the_shape_expected_of_a_wide_layer_costs_no_memory():
    entries = [Entry(("qkv",), "qkv.weight", interleaved_qkv().then(pointwise()))]
    with pytest.raises(UserError, match=r"1 of another shape \(qkv.weight \[3, 1, 1, 1\]\)"):
        names.import_params(entries, {"qkv.weight": np.zeros((3, 1, 1, 1))}, {"qkv": (1 << 18, 3 << 18)})
