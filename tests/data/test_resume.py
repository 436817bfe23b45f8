"""``prepare`` broken off and gone on with: the same bytes in the end, or one line that says why not."""

import fcntl
import json
import os
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from data_makers import encode, random_images, write_class_folder, write_zip
from test_sources import assert_holds

from sct_jax.data import open_source, prepare, shards, verify, writing
from sct_jax.data.stores import ZipStore
from sct_jax.errors import UserError

IMAGES = random_images(30, 6)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(source, out, **arguments):
    return prepare(source, out, **({"shard_size": 4, "workers": 1} | arguments))


@pytest.fixture
def folder(tmp_path):
    write_class_folder(tmp_path / "in", IMAGES)
    return tmp_path / "in"


@pytest.fixture
def broken_off(folder, tmp_path, monkeypatch):
    """Ctrl-C after three of eight shards; gives the unfinished folder."""
    done, as_always = [], shards.finish

    def finish(task):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(task.file)
        return as_always(task)

    with monkeypatch.context() as patch:
        patch.setattr(writing.shards, "finish", finish)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    return tmp_path / ".out-incomplete"


def test_what_is_finished_is_kept_and_the_result_is_the_same(folder, broken_off, tmp_path, capsys):
    kept = {path: path.stat().st_mtime_ns for path in broken_off.glob("*array_record*")}
    assert len(kept) == 3
    (broken_off / ".1234-images-train.array_record-00003-of-00008").write_bytes(b"half a shard")
    run(folder, tmp_path / "out")
    assert "8/8 shards (3 found finished)" in capsys.readouterr().err
    assert contents(run(folder, tmp_path / "whole")) == contents(tmp_path / "out")
    for path, changed in kept.items():
        assert (tmp_path / "out" / path.name).stat().st_mtime_ns == changed, "written again"
    assert_holds(open_source("tfds", tmp_path / "out"), *open_source("folder", folder).read_all())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_a_finished_shard_that_was_damaged_since_is_written_again(folder, broken_off, tmp_path):
    shard = sorted(broken_off.glob("*array_record*"))[1]
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    run(folder, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(run(folder, tmp_path / "whole"))


@pytest.mark.parametrize(
    ("arguments", "change"),
    [
        ({"image_size": 8}, "image_size was 0, now 8"),
        ({"compress": True}, "compress was False, now True"),
        ({"shard_size": 5}, "shard_size was 4, now 5"),
    ],
)
def test_other_arguments_are_refused(folder, broken_off, tmp_path, arguments, change):
    before = contents(broken_off / shards.PROGRESS)
    with pytest.raises(UserError, match=rf"\.out-incomplete was begun otherwise \({change}\): give what it was"):
        run(folder, tmp_path / "out", **arguments)
    assert contents(broken_off / shards.PROGRESS) == before


@pytest.mark.parametrize("change", ["content", "more", "less", "class"])
def test_a_changed_source_is_refused(folder, broken_off, tmp_path, change):
    victim = folder / "ant" / "0003.png"
    if change == "content":
        victim.write_bytes(encode(255 - IMAGES[3]))
    elif change == "more":
        (folder / "ant" / "9.png").write_bytes(encode(IMAGES[0]))
    elif change == "less":
        victim.unlink()
    else:
        (folder / "ant").rename(folder / "ape")
    with pytest.raises(UserError, match=r"begun otherwise \(the source has changed since\)"):
        run(folder, tmp_path / "out")


def test_a_zip_is_known_by_its_checksums(tmp_path):
    write_zip(tmp_path / "a.zip", IMAGES, None)
    write_zip(tmp_path / "b.zip", IMAGES[:, ::-1], None)
    marks = {name: open_source("zip", tmp_path / name).fingerprint() for name in ("a.zip", "b.zip")}
    os.utime(tmp_path / "a.zip", (1, 1))
    assert open_source("zip", tmp_path / "a.zip").fingerprint() == marks["a.zip"] != marks["b.zip"]


def test_two_at_once_are_refused(folder, broken_off, tmp_path):
    other = os.open(broken_off, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UserError, match=r"\.out-incomplete is being written by another process"):
        run(folder, tmp_path / "out")
    assert len(list(broken_off.glob("*array_record*"))) == 3
    os.close(other)
    run(folder, tmp_path / "out")


def damage(folder):
    """One image that ends early, one that is none."""
    for name, keep in (("bee/0019.png", 0.5), ("ant/0021.png", 0)):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(keep * len(data))])


def test_a_damaged_image_stops_or_is_left_out_and_counted(folder, tmp_path, capsys):
    damage(folder)
    with pytest.raises(UserError, match=r"cannot read image .*ant/0021\.png"):
        run(folder, tmp_path / "out")
    out = run(folder, tmp_path / "out", skip_damaged=True)  # goes on: this changes no finished shard
    assert "2 damaged images left out; manifest.json names them" in capsys.readouterr().err
    order = [number for first in range(3) for number in range(first, 30, 3) if number not in (19, 21)]
    assert_holds(open_source("tfds", out), IMAGES[order], np.array(order) % 3)
    assert "28 images in 8 shards, 2 damaged ones left out" in verify(out)
    named = [line for shard in json.loads((out / "manifest.json").read_text())["shards"] for line in shard["skipped"]]
    assert ["0021.png" in named[0], "0019.png" in named[1]] == [True, True]


@pytest.mark.slow
def test_a_damaged_image_is_named_by_worker_processes_too(tmp_path):
    write_class_folder(tmp_path / "in", IMAGES)
    data = (tmp_path / "in" / "cow" / "0029.png").read_bytes()
    (tmp_path / "in" / "cow" / "0029.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cannot read image .*cow/0029\.png"):
        run(tmp_path / "in", tmp_path / "out", workers=2)
    assert "1 damaged ones left out" in verify(run(tmp_path / "in", tmp_path / "out", workers=2, skip_damaged=True))


def test_nothing_but_damage_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(encode(IMAGES[0])[:60])
    with pytest.raises(UserError, match=r"no image of .* can be read: cannot read image .*0\.png"):
        run(tmp_path / "in", tmp_path / "out", skip_damaged=True, image_size=6)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("fault", ["shard", "missing", "info"])
def test_verify_finds_every_kind_of_damage(folder, tmp_path, fault, sct_jax_command):
    out = run(folder, tmp_path / "out")
    assert sct_jax_command("prepare", "--verify", "--out", out).out.startswith(f"{out}: 30 images in 8 shards, every")
    victim = out / ("dataset_info.json" if fault == "info" else "images-train.array_record-00002-of-00008")
    if fault == "missing":
        victim.unlink()
    else:
        data = bytearray(victim.read_bytes())
        data[-1] ^= 1
        victim.write_bytes(data)
    complaint = sct_jax_command("prepare", "--verify", "--out", out).complaint
    what = "cannot be read: No such file" if fault == "missing" else "is not what was written"
    assert f"{victim.name} {what}" in complaint
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        verify(folder)


def test_compressed_pixels_are_the_same_pixels(folder, tmp_path):
    small, plain = (run(folder, tmp_path / str(flag), compress=flag) for flag in (True, False))
    assert_holds(open_source("tfds", small), *open_source("tfds", plain).read_all())


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_part_of_a_zip_reads_its_members_and_notices_damage(tmp_path, method):
    path = tmp_path / "in.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        for number in range(4):
            archive.writestr(f"{number}.bin", bytes([number]) * 1000 + os.urandom(50))
    store = ZipStore(path)
    part = store.part(["1.bin", "3.bin"])
    assert part.names() == ["1.bin", "3.bin"]
    for name in part.names():
        assert part.open(name).read() == store.open(name).read()
    place = store._zip.getinfo("3.bin").header_offset + 60
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(Exception, match=r"CRC|rror|orrupt"):
        part.open("3.bin")


PROGRAM = """
import sys
from sct_jax.data import prepare
if __name__ == "__main__":
    prepare(sys.argv[1], sys.argv[2], shard_size=8, workers=int(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_again_and_again_it_ends_with_the_same_bytes(tmp_path, workers):
    """SIGKILL at random moments while shards are written: nothing finished is lost, nothing half-written is kept."""
    write_zip(tmp_path / "in.zip", random_images(400, 64), [number % 7 for number in range(400)])
    expected = contents(run(tmp_path / "in.zip", tmp_path / "whole", shard_size=8))
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, tmp_path / "program.py", tmp_path / "in.zip", tmp_path / "out", str(workers)]
    rng, before = np.random.default_rng(workers), 0
    kills = 0
    while kills < 5:
        program = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        progress = tmp_path / ".out-incomplete" / shards.PROGRESS
        while program.poll() is None and len(list(progress.glob("[!.]*.json"))) < before + 3:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        program.kill()
        program.wait()
        if (tmp_path / "out").exists():
            break
        kills += 1
        now = len(list(progress.glob("[!.]*.json")))
        assert now >= before + 3
        before = now
    assert kills >= 2, "too fast to be killed"
    subprocess.run(command, check=True, timeout=120)
    assert contents(tmp_path / "out") == expected
