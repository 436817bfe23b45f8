"""Hostile content of files that unpickle well: an import ends with one line, printable, whatever is in them."""

import contextlib
import lzma
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pickle_bytes import call, integer, name, pickled, text, tuple_of

from sct_jax.errors import UserError
from sct_jax.interop import import_model, torch_files, unpickle

CHECKPOINTS = Path(__file__).parent / "checkpoints"
SECONDS = 8.0
ESCAPES = "\x1b]0;owned\x07\x1b[2J"


def complaint(path: Path, reader=import_model) -> str:
    """The one line with which importing ends."""
    with pytest.raises(UserError) as caught:
        reader(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message.removeprefix(f"{path}: ")) < 800
    return message


def changed(path: Path, monkeypatch: pytest.MonkeyPatch, change) -> Path:
    """EDM2's checkpoint whose unpickled content is changed before it is looked at."""
    content, _ = unpickle.loads(lzma.decompress((CHECKPOINTS / "edm2.pkl.xz").read_bytes()))
    net = content["ema"]
    change(net, net.state["_modules"]["unet"])
    monkeypatch.setattr(sys.modules["sct_jax.interop.read"], "_contents", lambda data: ("pickle", content))
    path.write_bytes(b"content")
    return path


def test_an_array_that_was_never_filled_is_damage(tmp_path):
    path = tmp_path / "net.pkl"
    unfilled = call(name("numpy.core.multiarray", "_reconstruct"), name("numpy", "ndarray"), tuple_of(integer(0)))
    path.write_bytes(pickled(b"}", text("input_blocks.0.0.weight"), unfilled, b"s"))
    assert "damaged" in complaint(path)


@pytest.mark.parametrize("names", [[ESCAPES], ["x" * 250, ESCAPES]], ids=("escapes", "long"))
def test_names_of_the_file_are_shown_without_their_escapes(names, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "m.safetensors"
    save_file({name: np.zeros(2) for name in names}, path)
    assert "\\x1b" in complaint(path)


def test_names_too_many_are_shown_without_their_escapes(monkeypatch, tmp_path):
    def change(net, unet):
        unet.state["_parameters"] = unet.state["_parameters"] | {ESCAPES: np.zeros(1, np.float32)}

    assert "1 too many ('unet.\\x1b" in complaint(changed(tmp_path / "net.pkl", monkeypatch, change))


def _deep() -> tuple:
    nest: tuple = ()
    for _ in range(100_000):
        nest = (nest,)
    return nest


@pytest.mark.parametrize(
    "value", [_deep(), np.zeros((2, 2)), 10**400, -1, "x" * 10**6, {}, None, float("nan")], ids=type
)
@pytest.mark.parametrize("option", ["dropout", "clip_act", "channels_per_head", "resample_filter", "dout_resolutions"])
def test_options_of_any_kind_are_read_or_refused(option, value, monkeypatch, tmp_path):
    def change(net, unet):
        unet.state["_init_kwargs"] = {option: value}

    complaint(changed(tmp_path / "net.pkl", monkeypatch, change))


@pytest.mark.parametrize("part", ["_modules", "_parameters", "_buffers", "_non_persistent_buffers_set", "_init_kwargs"])
@pytest.mark.parametrize("value", [(), _deep(), {1: 2}, np.zeros(2), "x"], ids=type)
def test_parts_of_any_kind_are_read_or_refused(part, value, monkeypatch, tmp_path):
    def change(net, unet):
        net.state[part] = value

    path = changed(tmp_path / "net.pkl", monkeypatch, change)
    with contextlib.suppress(UserError):
        sys.modules["sct_jax.interop.read"].read(path)


@pytest.mark.parametrize("file", ["edm_state_dict.pt", "edm2.pkl"])
def test_mutations_import_or_are_refused(file, tmp_path):
    data = lzma.decompress((CHECKPOINTS / f"{file}.xz").read_bytes())
    regions = [(0, min(6000, len(data))), (len(data) - 3000, len(data))]
    if file.endswith(".pt"):
        (directory,) = [view for key, view in torch_files.zip_members(memoryview(data)).items() if "data.pkl" in key]
        begin = data.index(bytes(directory))
        regions = [(begin, begin + len(directory))]
    generator, loaded, complaints = random.Random(0), 0, []
    path = tmp_path / file
    for attempt in range(32):
        mutated = bytearray(data)
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(*generator.choice(regions))
            mutated[at] = generator.choice((mutated[at] ^ 1, generator.randrange(256)))
        path.write_bytes(mutated)
        began = time.process_time()
        try:
            (import_model if attempt % 4 == 0 else sys.modules["sct_jax.interop.read"].read)(path)
            loaded += 1
        except UserError as error:
            complaints.append(str(error))
        assert time.process_time() - began < SECONDS
    assert loaded
    assert complaints
    assert all(map(str.isprintable, complaints))
