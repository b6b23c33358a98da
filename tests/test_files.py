"""Checksums, atomic files, leftovers, and names that cannot steer a terminal."""

import json
import os
import random
import subprocess
import sys
import time

import pytest
import torch
import yaml

from dassl.infrastructure.files import (
    SCRATCH,
    NotAsWritten,
    add_checksum,
    atomic_write,
    locked,
    read_json,
    read_text,
    scratch_folder,
    seal_config,
    sweep,
    visible,
    write_json,
)
from dassl.utils import load_checkpoint, save_checkpoint

NEW = random.Random()  # fresh at every run


def flipped(data, rng=NEW):
    """With one random bit the other way round."""
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(changed)


# ------------------------------------------------------------------ checksums


def test_every_flipped_bit_of_a_checkpoint_is_noticed(tmp_path, one_line):
    """Those in the padding between the tensors too, which the archive's own checksums do not cover."""
    save_checkpoint({"state_dict": {"w": torch.randn(40, 40), "b": torch.randn(3)}, "epoch": 1}, str(tmp_path))
    path = tmp_path / "model.pth.tar-1"
    whole = path.read_bytes()
    assert torch.equal(*(torch.load(path, mmap=m)["state_dict"]["w"] for m in (True, False))), "still PyTorch's"
    assert load_checkpoint(str(path))["epoch"] == 1
    for _ in range(200):
        path.write_bytes(flipped(whole))
        with pytest.raises(ValueError, match="checksum does not hold|cut off") as error:
            load_checkpoint(str(path))
        assert str(path) in one_line(error)
    for _ in range(20):
        path.write_bytes(whole[: NEW.randrange(len(whole))])
        with pytest.raises(ValueError, match="checksum does not hold|cut off"):
            load_checkpoint(str(path))


def test_checkpoints_without_checksum_load_and_compressed_ones_do_not(tmp_path):
    import zipfile

    torch.save({"state_dict": {}, "epoch": 7}, tmp_path / "others")
    assert load_checkpoint(str(tmp_path / "others"))["epoch"] == 7
    with zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb:
        with zipfile.ZipFile(tmp_path / "others") as archive:
            for name in archive.namelist():
                bomb.writestr(name, archive.read(name))
    with pytest.raises(ValueError, match="compressed"):
        load_checkpoint(str(tmp_path / "bomb"))


@pytest.mark.parametrize("suffix", [".yaml", ".json"])
def test_every_flipped_bit_of_a_text_is_noticed(suffix, tmp_path, one_line):
    path, content = tmp_path / f"file{suffix}", {"A": {"B": [1, 2.5]}, "C": "é ü"}
    text = yaml.safe_dump(content) if suffix == ".yaml" else json.dumps(content, indent=4)
    whole = add_checksum(text, suffix)
    path.write_bytes(whole)
    read = yaml.safe_load(read_text(path)) if suffix == ".yaml" else read_json(path)
    assert read == content, "plain YAML and JSON, and no checksum in what is read"
    for _ in range(300):
        path.write_bytes(flipped(whole))
        with pytest.raises(ValueError) as error:
            (read_text if suffix == ".yaml" else read_json)(path)
        assert str(path) in one_line(error)
    path.write_bytes(whole.replace(b"2.5", b"2.6"))
    with pytest.raises(NotAsWritten, match='put the original back; if you changed it, remove its.*"(# )?sha256"'):
        read_text(path)
    for hand_made in (text, text.replace("2.5", "2.6")):
        path.write_text(hand_made)
        assert read_text(path) == hand_made
    for _ in range(20):
        path.write_bytes(whole[: NEW.randrange(90, len(whole))])  # 90: within what follows the checksum
        with pytest.raises(NotAsWritten):
            read_text(path)


def test_a_config_vouches_for_the_files_beside_it(tmp_path):
    (tmp_path / "classes.json").write_text('["a", "b"]')
    (tmp_path / "config.yaml").write_bytes(seal_config("A: 1\n", tmp_path, ["classes.json", "split.json"]))
    assert yaml.safe_load(read_text(str(tmp_path / "config.yaml"))) == {"A": 1}
    (tmp_path / "classes.json").write_text('["a", "c"]')
    with pytest.raises(NotAsWritten, match="classes.json.*if you changed it, remove the lines .*/config.yaml"):
        read_text(str(tmp_path / "config.yaml"))
    (tmp_path / "classes.json").unlink()
    read_text(str(tmp_path / "config.yaml"))


# ------------------------------------------------------------------ JSON and text


@pytest.mark.parametrize("content", ['{"a": NaN}', "[1, 2", "[" * 100_000, "[Infinity]", "", b"[\xff]", b"\xff\xfe["])
def test_no_json(content, tmp_path, one_line):
    path = tmp_path / "x.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        read_json(path)
    assert str(path) in one_line(error)


def test_json_never_has_nan(tmp_path, one_line):
    for value in (float("nan"), float("-inf")):
        with pytest.raises(ValueError) as error:
            write_json({"a": [value]}, tmp_path / "x.json")
        assert "x.json" in one_line(error) and not os.listdir(tmp_path)


def test_what_is_no_file_or_too_large_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")  # opening it would wait for ever
    (tmp_path / "huge.json").touch()
    os.truncate(tmp_path / "huge.json", 1 << 40)
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "large.yaml").write_text("A: 1\n" * 60_000)
    for name, words in (
        ("pipe.json", "is a device, a pipe or a socket"),
        ("zero.json", "is a device, a pipe or a socket"),
        ("huge.json", "has more than 67.1 MB"),
        ("large.yaml", "has more than 0.3 MB"),
    ):
        with pytest.raises(ValueError, match=f"{name} {words}: put the original file there"):
            read_text(tmp_path / name)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link"])
def test_no_file_replaces_what_is_none(tmp_path, kind, one_line):
    path = tmp_path / "target"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    before = os.lstat(path)
    with pytest.raises(OSError, match="give the name of a file") as error, atomic_write(path) as f:
        f.write(b"text")
    assert one_line(error) and os.lstat(path) == before and os.listdir(tmp_path) == ["target"]


def test_latin_1_says_where(tmp_path):
    (tmp_path / "x.yaml").write_bytes("A: 1\nB: Käse\n".encode("latin-1"))
    with pytest.raises(ValueError, match="x.yaml, line 2: byte 0xe4 is no UTF-8: save it as UTF-8"):
        read_text(tmp_path / "x.yaml")


def test_visible():
    assert visible("Käse 猫 ‍") == "Käse 猫 ‍"
    assert visible("a\x1b[31mb\n\x9b\u202e\udcff") == r"a\x1b[31mb\n\x9b\u202e\udcff"
    assert visible("a\n\x07", keep="\n") == "a\n\\x07"


# ------------------------------------------------------------------ full disks, leftovers

FULL = """
import resource, sys, torch
from dassl.infrastructure.files import atomic_write, scratch_folder, write_json
from dassl.utils import save_checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for write in (
    lambda: write_json(list(range(100_000)), "OUT/x.json"),
    lambda: save_checkpoint({"state_dict": {"w": torch.zeros(99_999)}, "epoch": 1}, "OUT"),
):
    try:
        write()
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_a_full_disk_says_which_file(tmp_path, root):
    env = os.environ | {"PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, env=env, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) == 2, done.stdout + done.stderr
    assert lines[0].startswith("OSError") and "OUT/x.json" in lines[0]
    assert lines[1].startswith("OSError") and "OUT/model.pth.tar-1" in lines[1]
    assert os.listdir(tmp_path / "OUT") == []


WRITER = """
import os, sys, time
from dassl.infrastructure.files import atomic_write, scratch_folder
with scratch_folder(".", "Shapes") as folder, atomic_write("x.json") as f:
    open(os.path.join(folder, "picture.png"), "w").close()
    f.write(b"half")
    f.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_leftovers_of_killed_writers_are_swept_and_those_of_living_ones_not(tmp_path, root):
    def start():
        env = os.environ | {"PYTHONPATH": str(root)}
        process = subprocess.Popen([sys.executable, "-c", WRITER], cwd=tmp_path, env=env, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"writing\n"
        return process

    (tmp_path / ".notes.tmp").touch()
    (tmp_path / ".Shapes").mkdir()
    mine, process = set(os.listdir(tmp_path)), start()
    theirs = set(os.listdir(tmp_path)) - mine
    assert len(theirs) == 2
    for _ in range(2):
        sweep(tmp_path)
        sweep(tmp_path, SCRATCH.format("Shapes"))
        write_json(1, tmp_path / "x.json")
        assert set(os.listdir(tmp_path)) == mine | theirs | {"x.json"}
    process.kill()
    process.wait()
    assert set(os.listdir(tmp_path)) == mine | theirs | {"x.json"}
    write_json(2, tmp_path / "x.json")  # sweeps its own kind
    sweep(tmp_path, SCRATCH.format("Shapes"))
    assert set(os.listdir(tmp_path)) == mine | {"x.json"} and read_json(tmp_path / "x.json") == 2


def test_a_writer_that_is_swept_before_it_has_its_lock_begins_again(tmp_path, monkeypatch):
    import dassl.infrastructure.files

    lock, swept = dassl.infrastructure.files._lock, []

    def late(descriptor, wait=False):
        if wait and not swept:
            swept.append(1)
            sweep(tmp_path)
        return lock(descriptor, wait)

    monkeypatch.setattr(dassl.infrastructure.files, "_lock", late)
    write_json([1], tmp_path / "x.json")
    assert swept and os.listdir(tmp_path) == ["x.json"]


def test_a_data_worker_does_not_keep_the_lock_of_a_killed_run(tmp_path):
    with locked(tmp_path, "busy"):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.write(writing, b".")
            time.sleep(20)
            os._exit(0)
        os.read(reading, 1)
    with locked(tmp_path, "busy") as held:
        assert held
    os.kill(child, 9)
    os.waitpid(child, 0)


def test_scratch_folders(tmp_path):
    with scratch_folder(tmp_path, "Shapes") as moved, scratch_folder(tmp_path, "Shapes") as kept:
        os.rename(moved, tmp_path / "shapes")
        assert os.path.isdir(kept)
    assert os.listdir(tmp_path) == ["shapes"]


def test_no_link_is_followed(tmp_path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "x").symlink_to(tmp_path / "outside")
    with atomic_write(tmp_path / "x") as f:
        f.write(b"new")
    assert (tmp_path / "outside").read_text() == "mine" and not (tmp_path / "x").is_symlink()
