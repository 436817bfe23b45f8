"""Import of Inception-v3, DINOv2 and EfficientNet from files of each layout (make_feature_files.py in tests/parity).

Each array of a file holds one number, which belongs to its name: what was read where it should not be would show.
"""

import json
import lzma
import zlib
from pathlib import Path

import numpy as np
import pytest
from pickle_bytes import call, name, pickled, text, tuple_of, zipped
from safetensors.numpy import load_file, save_file

from sct_jax.cards import hash_weights
from sct_jax.errors import UserError
from sct_jax.features import efficientnet, inception, lpips, open_space, store
from sct_jax.interop import dinov2_names, efficientnet_names, feature_files, inception_names, read

CHECKPOINTS = Path(__file__).parent / "checkpoints"
INCEPTIONS = {
    "inception_pytorch_fid.pth": ("PyTorch file (before 1.6)", "pytorch-fid and torch-fidelity"),
    "inception_torch_fidelity.pth": ("PyTorch file", "pytorch-fid and torch-fidelity"),
    "inception_torchscript.pt": ("TorchScript program", "NVIDIA"),
    "inception_nvidia.pkl": ("pickle", "NVIDIA"),
}
SMALL = "dinov2_hugging_face.safetensors"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """The path of a file, decompressed once."""
    folder = tmp_path_factory.mktemp("feature_files")

    def path_of(file: str) -> Path:
        path = folder / file
        if not path.exists():
            path.write_bytes(lzma.decompress((CHECKPOINTS / f"{file}.xz").read_bytes()))
        return path

    return path_of


def number_of(original: str) -> np.float32:
    """What the arrays of this name hold, see drawn_feature_networks.number_of."""
    return np.float32(0.5 + zlib.crc32(original.encode()) / 2**32)


@pytest.mark.parametrize("file", INCEPTIONS)
def test_inception_comes_from_every_layout(file, unpacked):
    weights = feature_files.read(unpacked(file))
    assert (weights.name, weights.network) == ("inception", "inception-v3-2015-12-05")
    assert (weights.source["format"], weights.source["names"]) == INCEPTIONS[file]
    layer_name, parts, output = inception_names.SCHEMES[weights.source["names"]]
    assert {name: {part: array.shape for part, array in layer.items()} for name, layer in weights.params.items()} == (
        inception.shapes()
    )
    assert np.all(weights.params.pop("output")["kernel"] == number_of(output))
    for layer, arrays in weights.params.items():
        kernel, scale, shift, mean, variance = (
            np.float64(number_of(layer_name(layer) + part)) if part else 1.0 for part in parts
        )
        factor = scale / np.sqrt(variance + 0.001)
        np.testing.assert_allclose(arrays["kernel"], kernel * factor, rtol=1e-6, err_msg=layer)
        np.testing.assert_allclose(arrays["bias"], shift - mean * factor, rtol=1e-5, atol=1e-6, err_msg=layer)


def test_nvidias_two_files_hold_the_same_weights(unpacked):
    script, pickle = (feature_files.read(unpacked(f"inception_{file}")) for file in ("torchscript.pt", "nvidia.pkl"))
    assert hash_weights(script.params) == hash_weights(pickle.params)


def test_dinov2_comes_from_metas_file(unpacked):
    weights = feature_files.read(unpacked("dinov2_vits14.pth"))
    assert (weights.network, weights.source["names"]) == ("dinov2-vits14", "Meta")
    params, blocks = weights.params, weights.params["blocks"]
    assert params["positions"].shape == (37, 37, 384)
    assert params["patch"]["kernel"].shape == (14, 14, 3, 384)
    assert blocks["mlp"]["out"]["kernel"].shape == (12, 1536, 384)
    places = {
        "norm1.bias": blocks["norm1"]["bias"],
        "attn.qkv.weight": blocks["qkv"]["kernel"],
        "attn.proj.bias": blocks["out"]["bias"],
        "ls1.gamma": blocks["scale1"],
        "ls2.gamma": blocks["scale2"],
        "norm2.weight": blocks["norm2"]["scale"],
        "mlp.fc1.weight": blocks["mlp"]["in"]["kernel"],
        "mlp.fc2.bias": blocks["mlp"]["out"]["bias"],
    }
    for part, array in places.items():
        for index in range(12):
            assert np.all(array[index] == number_of(f"blocks.{index}.{part}")), part
    assert np.all(params["class_token"] == number_of("cls_token"))
    assert np.all(params["norm"]["scale"] == number_of("norm.weight"))


def test_dinov2_comes_from_hugging_faces_file(unpacked):
    weights = feature_files.read(unpacked(SMALL))
    assert (weights.network, weights.source["names"]) == ("dinov2-vit-64-14", "Hugging Face")
    qkv = weights.params["blocks"]["qkv"]["kernel"]
    assert qkv.shape == (2, 64, 192)
    for block in range(2):
        parts = [
            number_of(f"encoder.layer.{block}.attention.attention.{part}.weight") for part in ("query", "key", "value")
        ]
        np.testing.assert_array_equal(qkv[block], np.broadcast_to(np.repeat(parts, 64), (64, 192)))
    assert np.all(weights.params["blocks"]["scale2"][1] == number_of("encoder.layer.1.layer_scale2.lambda1"))


@pytest.fixture(scope="module")
def lite_arrays():
    """EfficientNet-Lite2's arrays by PyTorch's names, with their numbers, as the published file has them."""
    golden = np.load(Path(__file__).parents[1] / "parity" / "golden" / "features_efficientnet.npz")
    shapes = json.loads(str(golden["parameters"]))
    return {key: np.full(shape, number_of(key)) for key, shape in shapes.items()}


def test_efficientnet_comes_from_pypis_names(lite_arrays, tmp_path):
    counts = {"_bn0.num_batches_tracked": np.zeros((), np.int64)}
    save_file(lite_arrays | counts, tmp_path / "lite.safetensors")
    weights = feature_files.read(tmp_path / "lite.safetensors")
    assert (weights.name, weights.network) == ("efficientnet", "efficientnet-lite2")
    assert {name: {part: array.shape for part, array in layer.items()} for name, layer in weights.params.items()} == (
        efficientnet.shapes()
    )
    assert len(weights.params) == 2 + 3 * 21 - 1  # the first block does not expand
    for layer, arrays in weights.params.items():
        kernel, scale, shift, mean, variance = (
            np.float64(number_of(key)) for key in efficientnet_names.names_of(layer)
        )
        factor = scale / np.sqrt(variance + 0.001)
        np.testing.assert_allclose(arrays["kernel"], kernel * factor, rtol=1e-6, err_msg=layer)
        np.testing.assert_allclose(arrays["bias"], shift - mean * factor, rtol=1e-5, atol=1e-6, err_msg=layer)


def test_other_efficientnets_say_so(lite_arrays, sct_jax_command, tmp_path):
    layer = "_blocks.20._project_conv.weight"
    cases = {
        "b0": (lite_arrays | {"_blocks.0._se_reduce.weight": np.zeros((8, 32, 1, 1), "f4")}, "squeeze and excitation"),
        "lite0": (lite_arrays | {layer: np.zeros((320, 1152, 1, 1), "f4")}, f"1 of another shape ({layer}"),
        "lite4": (lite_arrays | {"_blocks.21._bn1.bias": np.zeros(3, "f4")}, "1 too many (_blocks.21._bn1.bias)"),
    }
    for case, (content, expected) in cases.items():
        path = tmp_path / f"{case}.safetensors"
        save_file(content, path)
        complaint = sct_jax_command("import", "--source", path, "--out", tmp_path / "out").complaint
        assert str(path) in complaint
        assert expected in complaint
        path.unlink()


@pytest.fixture(scope="module", params=["alex", "squeeze"])
def lpips_arrays(request):
    """Name, backbone and heads with their numbers, by the originals' names."""
    golden = np.load(Path(__file__).parents[1] / "parity" / "golden" / f"lpips_{request.param}.npz")
    shapes = json.loads(str(golden["parameters"]))
    backbone = {key: np.full(shape, number_of(key)) for key, shape in shapes.items()}
    heads = {key: np.full(golden[key].shape, number_of(key)) for key in golden.files if key.startswith("lin")}
    return request.param, backbone, heads


def test_lpips_comes_from_backbone_and_heads_or_from_the_whole_module(
    lpips_arrays, sct_jax_command, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    name, backbone, heads = lpips_arrays
    save_file(backbone | {"classifier.1.weight": np.zeros((2, 2), "f4")}, tmp_path / "backbone.safetensors")
    save_file(heads, tmp_path / "heads.safetensors")
    done = sct_jax_command(
        "import", "--source", tmp_path / "backbone.safetensors", "--heads", tmp_path / "heads.safetensors"
    )
    assert (done.status, done.out.strip()) == (0, str(tmp_path / "sct_jax" / "features" / "lpips")), done.err
    stored = store.load("lpips")
    assert stored.card["network"] == f"lpips-{name}"
    assert len(stored.card["source"]["heads"]["sha256"]) == 64
    assert lpips.kind(stored.params) == name
    for layer, parts in lpips.shapes(name).items():
        assert {part: array.shape for part, array in stored.params[layer].items()} == parts
        for part, array in stored.params[layer].items():
            file_part = "weight" if part == "kernel" else part
            original = f"features.{layer.replace('/', '.')}.{file_part}"
            if layer.startswith("head_"):
                original = f"lin{layer[5:]}.model.1.weight"
            assert np.all(array == number_of(original)), layer
    sliced = {key.replace("features.", "net.slice1."): value for key, value in backbone.items()}
    again = {key.replace("lin", "lins.", 1): value for key, value in heads.items()}
    save_file(
        sliced | heads | again | {"scaling_layer.shift": np.zeros((1, 3, 1, 1), "f4")}, tmp_path / "all.safetensors"
    )
    whole = feature_files.read(tmp_path / "all.safetensors")
    assert hash_weights(whole.params) == hash_weights(stored.params)


def test_lpips_says_what_is_missing(lpips_arrays, lite_arrays, sct_jax_command, tmp_path):
    _, backbone, heads = lpips_arrays
    contents = {
        "backbone": backbone,
        "heads": heads,
        "cut": dict(list(backbone.items())[:-1]),
        "fewer": dict(list(heads.items())[:-1]),
        "other": {"features.0.weight": np.zeros((4, 3, 3, 3), "f4")},
        "lite": lite_arrays,
    }
    for file, content in contents.items():
        save_file(content, tmp_path / file)
    cases = {
        ("backbone", ""): "linear heads are missing",
        ("heads", ""): "as --source, and this one as --heads",
        ("heads", "heads"): "as --source, and this one as --heads",
        ("backbone", "backbone"): "no linear heads of LPIPS",
        ("cut", "heads"): "1 missing",
        ("backbone", "fewer"): "1 missing",
        ("other", "heads"): "missing",
        ("lite", "heads"): "--heads goes with a backbone",
    }
    for (source, given), expected in cases.items():
        arguments = ("--heads", tmp_path / given) if given else ()
        complaint = sct_jax_command(
            "import", "--source", tmp_path / source, *arguments, "--out", tmp_path / "out"
        ).complaint
        assert expected in complaint
        assert not (tmp_path / "out").exists()


def test_the_command_puts_weights_where_spaces_look(unpacked, sct_jax_command, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = sct_jax_command("import", "--source", unpacked("inception_torchscript.pt"))
    assert (done.status, done.out.strip()) == (0, str(tmp_path / "sct_jax" / "features" / "inception"))
    space = open_space("inception")
    assert (space.version, space.resolution, space.dims) == ("inception-v3-2015-12-05", 299, 2048)
    assert hash_weights(space.params) == hash_weights(feature_files.read(unpacked("inception_torchscript.pt")).params)
    card = json.loads((tmp_path / "sct_jax" / "features" / "inception" / "card.json").read_text())
    assert card["source"]["sha256"] == space.source_sha256
    assert str(tmp_path) not in json.dumps(card)
    assert open_space("inception", variant="pytorch-fid").version == "inception-v3-2015-12-05-pytorch-fid"
    again = sct_jax_command("import", "--source", unpacked("inception_torchscript.pt"))
    assert "exists already" in again.complaint


@pytest.mark.parametrize("file", [*INCEPTIONS, "dinov2_vits14.pth", SMALL])
@pytest.mark.parametrize("share", [0.01, 0.97])
def test_a_truncated_file_is_one_line(file, share, unpacked, sct_jax_command, tmp_path):
    whole = unpacked(file).read_bytes()
    cut = tmp_path / file
    cut.write_bytes(whole[: int(share * len(whole))])
    complaint = sct_jax_command("import", "--source", cut, "--out", tmp_path / "out").complaint
    assert str(cut) in complaint
    assert any(word in complaint for word in ("cut short", "damaged"))
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_those_networks_say_so(unpacked, sct_jax_command, tmp_path):
    arrays = {key: np.array(value) for key, value in load_file(unpacked(SMALL)).items()}
    layer = "encoder.layer.1.mlp.fc2.weight"
    cases = {
        "torchvision": ({"Mixed_5b.x": np.zeros(1, "f4"), "fc.weight": np.zeros((1000, 2048), "f4")}, "1008 classes"),
        "lacking": ({key: arrays[key] for key in arrays.keys() - {layer}}, r"1 missing (blocks.1.mlp.fc2.weight)"),
        "shape": (arrays | {layer: np.zeros((64, 3), "f4")}, "1 of another shape (blocks.1.mlp.fc2.weight"),
        "registers": (arrays | {"embeddings.register_tokens": np.zeros((1, 4, 64), "f4")}, "register tokens"),
        "nan": (arrays | {layer: np.full((64, 256), np.nan, "f4")}, "not finite"),
        "vit": ({"cls_token": np.zeros((1, 1, 64), "f4"), "pos_embed": np.zeros((1, 5, 64), "f4")}, "none of DINOv2's"),
        "other": ({"weight": np.zeros(3, "f4")}, "these arrays"),
    }
    for case, (content, expected) in cases.items():
        path = tmp_path / f"{case}.safetensors"
        save_file(content, path)
        complaint = sct_jax_command("import", "--source", path, "--out", tmp_path / "out").complaint
        assert str(path) in complaint
        if case != "other":
            assert expected in complaint
    assert "--out" in sct_jax_command("import", "--source", tmp_path / "other.safetensors").complaint


def test_nothing_of_a_program_is_run_or_called(tmp_path):
    module = name("__torch__.os", "system")
    hostile = module + b")\x81}" + b"(" + text("mixed") + call(name("os", "system"), text("true")) + b"ub"
    for pickle, expected in ((pickled(hostile), "os.system"), (pickled(module + tuple_of(text("x")) + b"R"), "")):
        path = tmp_path / "program.pt"
        path.write_bytes(zipped({"a/data.pkl": pickle, "a/code/x.py": b"raise SystemExit"}))
        if expected:
            with pytest.raises(UserError, match=expected):
                feature_files.read(path)
        else:
            assert feature_files.read(path) is None
            with pytest.raises(UserError, match="it is a TorchScript program"):
                read(path)


def test_a_program_that_contains_itself_ends(tmp_path):
    module = name("__torch__", "N") + b")\x81q\x01}(" + text("layers") + b"h\x01ub"
    path = tmp_path / "program.pt"
    path.write_bytes(zipped({"a/data.pkl": pickled(module), "a/code/x.py": b""}))
    with pytest.raises(UserError, match="contain each other"):
        feature_files.read(path)


def test_every_layer_has_one_name_in_each_scheme():
    layers = inception.shapes().keys() - {"output"}
    for layer_name, _, _ in inception_names.SCHEMES.values():
        assert len({layer_name(layer) for layer in layers}) == len(layers) == 94
    assert inception_names.torchvision("mixed_8/tower_1/conv_3") == "Mixed_7a.branch7x7x3_4"
    assert inception_names.nvidia("mixed_10/tower_2/conv") == "layers.mixed_10.tower_2_conv"
    assert dinov2_names.scheme_of({"cls_token": np.zeros(1)}) == ""
