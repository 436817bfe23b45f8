"""Checkpoints made by the originals (make_checkpoints.py): imported, they predict what the originals predict."""

import json
import lzma
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import sct_jax
from sct_jax import cards, models
from sct_jax import config as config_lib
from sct_jax.diffusion.condition import Condition
from sct_jax.errors import UserError
from sct_jax.evaluation.offline import with_data
from sct_jax.interop import allowed, import_model, import_to, names, read
from sct_jax.interop.modules import find_network, submodule

CHECKPOINTS = Path(__file__).parent / "checkpoints"
FAST_COMPILE = {"xla_backend_optimization_level": 0}


def unpacked(name: str, folder: Path, name_there: str = "") -> Path:
    """A checkpoint as the original's script leaves it."""
    path = folder / (name_there or name)
    path.write_bytes(lzma.decompress((CHECKPOINTS / f"{name}.xz").read_bytes()))
    return path


def largest_error(ours: jax.Array, theirs: np.ndarray) -> float:
    """The largest difference of a sample over the largest value of that sample, worst sample."""
    axes = tuple(range(1, theirs.ndim))
    return float((np.abs(np.asarray(ours) - theirs).max(axes) / np.abs(theirs).max(axes)).max())


# File, the arrays beside it, what the config must say.
FORMATS = {
    "edm.pkl": ("edm", dict(name="ddpmpp", conditional=True, augment_dim=9, dropout=0.13, boundary="zero")),
    "ect.pkl": ("ect", dict(name="ddpmpp", encoder="residual", boundary="zero")),
    "edm2.pkl": ("edm2", dict(name="edm2", conditional=True, uncertainty_channels=16, dropout=0.1)),
    "tcm.pkl": ("tcm", dict(name="edm2", uncertainty_channels=0, boundary="zero", dropout_max_resolution=4)),
    "ct_imagenet.pt": ("openai", dict(name="adm", time_scale=1000.0, boundary="sigma_min", sigma_min=0.002)),
}
METHODS = {"edm.pkl": "edm", "ect.pkl": "ect", "edm2.pkl": "edm", "tcm.pkl": "ect", "ct_imagenet.pt": "ct"}


SLOW = [pytest.param(file, marks=pytest.mark.slow) for file in ("edm.pkl", "tcm.pkl", "ct_imagenet.pt")]


@pytest.mark.parametrize("file", ["ect.pkl", "edm2.pkl", *SLOW])
def test_an_imported_network_predicts_what_the_original_predicts(file, tmp_path):
    arrays_of, fields = FORMATS[file]
    arrays = np.load(CHECKPOINTS / f"{arrays_of}.npz")
    config, spec, params, _ = import_model(unpacked(file, tmp_path), image_size=8)
    assert {name: config.model[name] for name in fields} == fields
    assert config.objective.method == METHODS[file]
    limits = {"ect.pkl": 1.0, "tcm.pkl": 1 - 1 / 256}
    assert config.objective.ratio_limit == limits.get(file, 0.999)
    assert (spec.image_size, spec.channels, config.data.source) == (8, 3, "none")
    sampled = config_lib.sampled_model(config)
    shift = ("sigma_min", 0.003) if file == "ect.pkl" else (config.model.boundary, config.model.sigma_min)
    assert (sampled.boundary, sampled.sigma_min) == shift
    denoise = jax.jit(models.build(sampled, spec).denoise, compiler_options=FAST_COMPILE)
    output = denoise(params, arrays["x"], arrays["t"], Condition(*map(arrays.get, ("labels", "augment_labels"))))
    assert largest_error(output, arrays["output"]) < 1e-4


@pytest.mark.parametrize(
    ("file", "arrays_of", "kind"),
    [
        ("edm.pkl", "edm", "pickle"),
        ("edm_state_dict.pt", "edm", "PyTorch file"),
        ("edm_state_dict_legacy.pt", "edm", "PyTorch file (before 1.6)"),
        ("stf.pkl", "stf", "pickle"),
        ("ect_training_state.pt", "ect", "PyTorch file"),
    ],
)
def test_every_container_gives_the_originals_state_dict_and_fields(file, arrays_of, kind, tmp_path):
    imported = read(unpacked(file, tmp_path))
    arrays = np.load(CHECKPOINTS / f"{arrays_of}.npz")
    expected = {key.split("/")[1]: arrays[key] for key in arrays.files if key.startswith("weights/")}
    expected = names.without_prefix(expected)
    assert imported.state_dict.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(imported.state_dict[name], value)
    assert imported.source["format"] == kind
    assert imported.model_fields["channel_mult"] == (1, 2)
    assert imported.model_fields["attention_resolutions"] == (4,)
    assert imported.model_fields["resample_filter"] == ((1, 3, 3, 1) if arrays_of == "ect" else (1, 1))
    assert imported.objective_fields["method"] == ("ect" if arrays_of == "ect" else "edm")


def test_the_loss_in_a_snapshot_sets_the_objective(tmp_path):
    imported = read(unpacked("ect.pkl", tmp_path))
    assert {name: imported.objective_fields[name] for name in ("q", "k", "time_mean")} == dict(
        q=256, k=8, time_mean=-1.1
    )
    assert imported.model_fields["boundary"] == "zero"
    assert imported.sampling_fields == {"mid_times": (0.821,), "boundary": "sigma_min", "sigma_min": 0.003}
    as_diffusion = read(unpacked("ect.pkl", tmp_path), method="edm")  # evaluated as trained
    assert (as_diffusion.model_fields["boundary"], as_diffusion.sampling_fields) == ("zero", {"steps": (18,)})


def test_what_the_user_says_of_a_state_dict_wins(tmp_path):
    path = unpacked("edm_state_dict.pt", tmp_path)
    assert read(path).objective_fields["method"] == "edm"
    assert any("--method" in note for note in read(path).source["notes"])
    assert read(path, method="ect").objective_fields["method"] == "ect"
    with pytest.raises(UserError, match="--method etc: must be one of"):
        read(path, method="etc")


def edm2_without_head(name: str = "training.networks_edm2.Precond") -> allowed.Inert:
    """EDM2's preconditioner as ECT has it on ImageNet-64."""
    arrays = {
        "enc.8x8_conv.weight": (8, 4, 3, 3),
        "enc.8x8_block0.conv_res1.weight": (8, 8, 3, 3),
        "emb_noise.weight": (8, 8),
        "out_conv.weight": (3, 8, 3, 3),
    }
    unet = module("training.networks_edm2.UNet")
    unet.state["_parameters"] = {key: np.zeros(shape, np.float32) for key, shape in arrays.items()}
    return module(name, {"_modules": {"unet": unet}, "sigma_data": 0.5})


def read_content(content: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, **options):
    """What a pickle of ``content`` is read as."""
    reader = sys.modules["sct_jax.interop.read"]
    monkeypatch.setattr(reader, "_contents", lambda data: ("pickle", content))
    (tmp_path / "net.pkl").write_bytes(b"content")
    return reader.read(tmp_path / "net.pkl", **options)


def test_edm2_without_its_head_is_ect_unless_its_loss_is_there(monkeypatch, tmp_path):
    net = edm2_without_head()
    imported = read_content({"ema": net}, monkeypatch, tmp_path)
    assert imported.objective_fields["method"] == "ect"
    assert (imported.model_fields["boundary"], imported.sampling_fields) == ("zero", {"mid_times": (1.526,)})
    assert any("taken as ect" in note for note in imported.source["notes"])
    loss = allowed.Inert("training.training_loop.EDM2Loss")
    for content, method in (({"ema": net, "loss_fn": loss}, ""), ({"ema": net}, "edm")):
        imported = read_content(content, monkeypatch, tmp_path, method=method)
        assert (imported.objective_fields["method"], imported.source["notes"]) == ("edm", [])


def test_averages_of_training_states_come_first_and_what_was_chosen_is_said(monkeypatch, tmp_path):
    net = edm2_without_head()
    raw = find_network(net).state_dict
    online, narrow, wide = ({name: value + i for name, value in raw.items()} for i in (1, 2, 3))
    content = {"net": net, "optimizer_state": {}, "online_ema_state": online}
    found = find_network(content)
    assert (found.part, found.module, found.notes) == ("online_ema_state", net, ())
    np.testing.assert_array_equal(found.state_dict["unet.emb_noise.weight"], 1)
    found = find_network(content | {"ema_state": {"stds": [0.05, 0.1], "emas": [narrow, wide]}})
    assert (found.part, found.module) == ("ema_state.emas.0", net)
    np.testing.assert_array_equal(found.state_dict["unet.emb_noise.weight"], 2)
    imported = read_content(content | {"ema_state": {"emas": [narrow, wide]}}, monkeypatch, tmp_path)
    assert (imported.objective_fields["method"], imported.source["class"]) == ("ect", "Precond")
    assert "the first of 2 averages" in imported.source["notes"]
    imported = read_content({"net": net, "optimizer_state": {}}, monkeypatch, tmp_path)
    assert any("those being trained" in note for note in imported.source["notes"])


@pytest.mark.parametrize("latents", ["channels", "encoder"])
def test_latents_are_no_pictures(latents, monkeypatch, tmp_path):
    net, content = edm2_without_head(), {}
    if latents == "channels":
        submodule(net, "unet").state["_parameters"]["out_conv.weight"] = np.zeros((4, 8, 3, 3), np.float32)
    else:
        content = {"encoder": allowed.Inert("training.encoders.StabilityVAEEncoder")}
    imported = read_content({"ema": net} | content, monkeypatch, tmp_path)
    assert imported.spec.dtype == "float32"
    assert any("no decoder" in note for note in imported.source["notes"])
    pictures = read_content({"ema": edm2_without_head()}, monkeypatch, tmp_path)
    assert pictures.spec.dtype == "uint8"


def test_the_image_size_that_weights_do_not_tell_must_be_given(tmp_path):
    with pytest.raises(UserError, match=r"ct_imagenet.pt: the image size .*--image-size"):
        read(unpacked("ct_imagenet.pt", tmp_path))
    path = unpacked("ct_imagenet.pt", tmp_path, "edm_imagenet.pt")
    imported = read(path, image_size=8)  # by its name, as OpenAI's teachers are called
    assert (imported.objective_fields["method"], imported.model_fields["boundary"]) == ("edm", "zero")


def module(name: str, state: dict | None = None, source: str = "") -> allowed.Inert:
    """A module without parts."""
    return allowed.Inert(name, (), {"_parameters": {}, "_buffers": {}, "_modules": {}} | (state or {}), source)


@pytest.mark.parametrize("name", ["VPPrecond", "VEPrecond", "iDDPMPrecond", "Unheard"])
def test_other_preconditioning_is_refused_by_its_name(name, tmp_path):
    content = lzma.decompress((CHECKPOINTS / "edm.pkl.xz").read_bytes())
    old, new = b"\x8c\nEDMPrecond", b"\x8c" + bytes([len(name)]) + name.encode()
    assert old in content
    path = tmp_path / "other.pkl"
    path.write_bytes(content.replace(old, new))
    with pytest.raises(UserError, match=rf"other.pkl: the network is .*{name}"):
        read(path)


def test_weights_that_lack_an_array_say_which(tmp_path):
    path = unpacked("edm_state_dict.pt", tmp_path)
    path.write_bytes(path.read_bytes().replace(b"map_layer1.bias", b"map_layer9.bias"))
    with pytest.raises(UserError, match=r"missing \(map_layer1.bias\).*too many \(map_layer9.bias\)"):
        import_model(path)


def test_weights_that_are_not_finite_are_refused(tmp_path):
    imported = read(unpacked("edm.pkl", tmp_path))
    arrays = {name: np.array(value) for name, value in imported.state_dict.items()}
    arrays["map_layer0.bias"][0] = np.nan
    save_safetensors(tmp_path / "nan.safetensors", arrays)
    with pytest.raises(UserError, match=r"map_layer0\.bias' are not finite"):
        read(tmp_path / "nan.safetensors")


def save_safetensors(path: Path, arrays: dict[str, np.ndarray]) -> None:
    from safetensors.numpy import save_file

    save_file(arrays, path)


def test_safetensors_hold_the_same_network(tmp_path):
    imported = read(unpacked("edm_state_dict.pt", tmp_path))
    save_safetensors(tmp_path / "m.safetensors", {f"model.{k}": np.array(v) for k, v in imported.state_dict.items()})
    again = read(tmp_path / "m.safetensors")
    assert again.model_fields == imported.model_fields
    assert all(np.array_equal(again.state_dict[k], v) for k, v in imported.state_dict.items())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:-8])
    with pytest.raises(UserError, match="safetensors file is damaged or cut short"):
        read(tmp_path / "cut.safetensors")


def test_modules_that_contain_each_other_are_refused():
    inner = module("A")
    inner.state["_modules"]["self"] = inner
    with pytest.raises(UserError, match="without end"):
        find_network(inner)
    layers = [module("A")]
    for _ in range(25):
        layers.append(module("A", {"_modules": {"a": layers[-1], "b": layers[-1]}}))
    with pytest.raises(UserError, match="without end"):
        find_network(layers[-1])


def test_modules_that_share_many_parameters_are_refused():
    shared = {f"p{i}": np.zeros(1) for i in range(2000)}
    children = {str(i): module("A", {"_parameters": shared}) for i in range(2000)}
    with pytest.raises(UserError, match="without end"):
        find_network(module("A", {"_modules": children}))


@pytest.mark.parametrize("as_module", [True, False])
def test_names_without_end_are_refused(as_module):
    arrays = {"net." * 50_000 + "weight": np.zeros(1)}
    with pytest.raises(UserError, match="names of more than 300"):
        find_network(module("A", {"_parameters": arrays}) if as_module else arrays)
    assert list(names.without_prefix({"net." * 10 + "weight": np.zeros(1)})) == ["net.net.weight"]


def _nested() -> tuple:
    nest = ()
    for _ in range(100_000):
        nest = (nest,)
    return nest


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (_nested(), "an object of type tuple"),
        (np.zeros(3), "an object of type ndarray"),
        (10**5000, "an object of type int"),
        ("\x1b[2J", r"'\\x1b\[2J'"),
        (True, "True"),
    ],
    ids=("nested", "array", "large", "escape", "true"),
)
def test_an_option_of_the_file_is_shown_in_short(value, shown, monkeypatch, tmp_path):
    net = edm2_without_head()
    net.state["_init_kwargs"] = {"emb_norm": value}
    with pytest.raises(UserError, match=rf"net.pkl: .* emb_norm={shown}: only False is supported"):
        read_content({"ema": net}, monkeypatch, tmp_path)


@pytest.mark.parametrize("shape", [(1, 1, 1, 100_000), (1, 1, 17, 17), (4,), (1, 1, 0, 0)])
def test_a_resampling_filter_of_another_shape_is_refused(shape, tmp_path):
    arrays = {name: np.array(value) for name, value in read(unpacked("edm.pkl", tmp_path)).state_dict.items()}
    filters = [name for name in arrays if name.endswith("resample_filter")]
    save_safetensors(tmp_path / "m.safetensors", arrays | {name: np.ones(shape, np.float32) for name in filters})
    with pytest.raises(UserError, match="resampling filter is not square"):
        read(tmp_path / "m.safetensors")


def test_levels_and_blocks_are_bounded(monkeypatch, tmp_path):
    net = edm2_without_head()
    parameters = submodule(net, "unet").state["_parameters"]
    parameters |= {f"enc.8x8_block{i}.conv_res1.weight": np.zeros((8, 8, 3, 3), np.float32) for i in range(65)}
    with pytest.raises(UserError, match="1 levels of 65 blocks"):
        read_content({"ema": net}, monkeypatch, tmp_path)


@pytest.mark.slow
def test_an_imported_checkpoint_is_sampled_from_in_one_command(tmp_path, sct_jax_command):
    source, out = unpacked("ect.pkl", tmp_path), tmp_path / "out" / "imported"
    assert sct_jax_command("import", "--source", source, "--out", out).status == 0
    samples = tmp_path / "samples.npz"
    assert sct_jax_command("sample", "--checkpoint", out, "--num", 2, "--out", samples).status == 0
    assert np.load(samples)["images"].shape == (2, 8, 8, 3)
    in_memory = sct_jax.load(source)
    assert (in_memory.kind, in_memory.profile, in_memory.config.sampling.mid_times) == ("consistency", "raw", (0.821,))

    card = json.loads((out / cards.FILE).read_text())
    assert card["source"]["class"] == "ECMPrecond"
    assert card["weights_sha256"] == cards.hash_weights(in_memory.params)
    assert "exists already" in sct_jax_command("import", "--source", source, "--out", out).complaint
    with pytest.raises(UserError, match="--data-path"):
        with_data(in_memory.config, in_memory.spec, "", str(out))
    assert with_data(in_memory.config, in_memory.spec, "digits", str(out)).data.source == "digits"


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.pkl", None, "cannot read"),
        ("empty.pkl", b"", "is empty"),
        ("page.pkl", b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        ("pointer.pkl", b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        ("text.pt", b"these are no weights", "not a checkpoint"),
        ("plain.pkl", b"\x80\x04}.", "no network in it"),
        ("array.pt", b"\x93NUMPY\x01\x00", "numpy array"),
        ("flax", b"\x84\xa4step\x00", "Flax"),
        ("sampler.stablehlo", b"\x40\x00\x00\x00\x18\x00\x3c\x00", "perhaps a sampler"),
        ("zeros.pt", bytes(64), "nor safetensors"),
        ("cut.safetensors", b'\x90\x00\x00\x00\x00\x00\x00\x00{"weight', "cut short"),
        ("image.pt", b"PK\x03\x04", "cut short"),
    ],
)
def test_what_is_no_checkpoint_is_one_line(name, content, says, tmp_path, sct_jax_command):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    complaint = sct_jax_command("import", "--source", path, "--out", tmp_path / "out").complaint
    assert says in complaint
    assert str(path) in complaint
    assert not (tmp_path / "out").exists()


def test_a_folder_and_a_cut_file_are_one_line(tmp_path, sct_jax_command):
    assert "is a folder" in sct_jax_command("import", "--source", tmp_path, "--out", tmp_path / "out").complaint
    path = unpacked("edm.pkl", tmp_path)
    path.write_bytes(path.read_bytes()[:100_000])
    assert "cut short" in sct_jax_command("import", "--source", path, "--out", tmp_path / "out").complaint


def test_a_run_that_starts_from_an_imported_file_says_so(tmp_path, tiny_run):
    from sct_jax.interop import weights

    found = weights.load(unpacked("edm.pkl", tmp_path))
    expected = jax.tree.map(np.asarray, found.params)
    without = {name: part for name, part in expected.items() if name != "map_augment"}
    assert weights.start_from(found, without, found.config.model).keys() == without.keys()
    assert "map_augment" in weights.start_from(found, expected, found.config.model)
    other = found.config.model.copy_and_resolve_references()
    with other.unlocked():
        other.sigma_data = 0.3
    with pytest.raises(UserError, match=r"trained with model.sigma_data = 0.5, not 0.3"):
        weights.start_from(found, expected, other)
    assert weights.source(found)["card"]["source"]["sha256"] == found.card["source"]["sha256"]
    run = cards.read(tiny_run)
    assert run["source"] is None
    assert run["config"]["total_steps"] == 4
    with pytest.raises(UserError, match="taken as they are"):
        weights.load(tmp_path / "edm.pkl", "power:0.05")


@pytest.mark.slow
def test_an_import_that_fails_leaves_nothing(tmp_path, monkeypatch):
    path = unpacked("edm.pkl", tmp_path)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cards, "write", fail)
    with pytest.raises(UserError, match="No space left"):
        import_to(path, tmp_path / "out")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["edm.pkl"]
