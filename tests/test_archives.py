"""Files of PyTorch read without running what is in them."""

import importlib
import os
import pickle
import random
import sys
import zipfile
from collections import Counter, OrderedDict

import pytest
import torch
from torch import nn

from dassl.infrastructure import archives
from trainers.shared.backbones import load_clip

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
DTYPES += [torch.complex64]
legacy = pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])


@legacy
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_torch_saved(tmp_path, noise, dtype, legacy):
    whole = (3 * noise(6, 5)).to(dtype)
    tensors = {"a": whole, "row": whole[2], "column": whole[:, 1], "t": whole.T, "empty": whole[:0]}
    tensors |= {"scalar": torch.tensor(3), "parameter": nn.Parameter(noise(2))}
    plain = {"list": [1, 2.5, "x", None, (True,), -7, 2**70, b"\0\xff", "\u00e9"], "set": {1, 2}, (1, "a"): {}}
    plain |= {"dtype": dtype, "size": whole.shape, "device": torch.device("cuda", 1), "counter": Counter([2, 2, 5])}
    content = {**tensors, **plain, "nested": OrderedDict(b=torch.ones(2), a=[torch.zeros(1)] * 2)}
    path = str(tmp_path / "saved.pt")
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    read = archives.load(path)
    assert list(read) == list(content) and {key: read[key] for key in plain} == plain
    assert type(read["size"]) is torch.Size and type(read["counter"]) is Counter
    for key, tensor in tensors.items():
        assert read[key].dtype == tensor.dtype and torch.equal(read[key], tensor)
        assert read[key].stride() == tensor.stride()
    assert read["a"].data_ptr() + 10 * dtype.itemsize == read["row"].data_ptr(), "they share their numbers"
    assert type(read["nested"]) is OrderedDict and list(read["nested"]) == ["b", "a"]
    assert torch.equal(read["nested"]["b"], torch.ones(2)) and read["nested"]["a"][0] is read["nested"]["a"][1]
    assert archives.stubs(read) == []


class Runs(nn.Module):
    """Writes a file when torch.jit.load builds it."""

    def __init__(self, path):
        super().__init__()
        self.path, self.weight = path, nn.Parameter(torch.arange(3.0))

    def forward(self, x):
        return x

    @torch.jit.export
    def __getstate__(self):
        return self.weight, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]):
        self.weight, self.path, self.training = state
        torch.save(self.weight, self.path)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::DeprecationWarning")
def test_code_of_an_archive_is_not_run(tmp_path):
    ran, path = tmp_path / "ran", str(tmp_path / "runs.pt")
    torch.jit.script(Runs(str(ran))).save(path)
    torch.jit.load(path)
    assert ran.exists(), "the danger is real"
    ran.unlink()
    with pytest.raises(ValueError) as error:
        load_clip(path)
    assert not ran.exists() and "\n" not in str(error.value) and path in str(error.value)


def short(text):
    return b"\x8c" + bytes([len(text)]) + text.encode()


def call(module, name, *args):
    """The instructions that call a function, of protocol 0."""
    return f"c{module}\n{name}\n(".encode() + b"".join(args) + b"tR"


def tensor(size, stride, offset=0, numbers=None):
    """As `torch.save` writes one, of whatever these pickles are."""
    storage = b"(" + short("storage") + b"ctorch\nFloatStorage\n" + short("0") + short("cpu") + b"K\x04tQ"
    rest = pickle.dumps(offset, 2)[2:-1] + size + stride + b"\x89" + call("collections", "OrderedDict")
    return call("torch._utils", "_rebuild_tensor_v2", numbers or storage, rest)


def plain(thing):
    return pickle.dumps(thing, 2)[2:-1].replace(b"q\x00", b"").replace(b"q\x01", b"")  # without the memo


TOUCH = short("touch ran")
PLANTED = {
    "os.system": call(os.system.__module__, "system", TOUCH),
    "eval": call("builtins", "eval", short("open('ran', 'w')")),
    "exec": call("builtins", "exec", short("open('ran', 'w')")),
    "Path.touch": call("pathlib", "Path.touch", call("pathlib", "Path", short("ran"))),
    "getattr": call("builtins", "getattr", call("builtins", "__import__", short("os")), short("system")),
    "twice": call("operator", "methodcaller", short("touch")) + b"(" + call("pathlib", "Path", short("ran")) + b"tR",
    "stack global": short("os") + short("system") + b"\x93" + TOUCH + b"\x85R",
    "dotted": short("torch") + short("serialization.os.system") + b"\x93" + TOUCH + b"\x85R",
    "INST": b"(" + TOUCH + b"ios\nsystem\n",
    "OBJ": b"(cos\nsystem\n" + TOUCH + b"o",
    "NEWOBJ": b"cos\nsystem\n" + TOUCH + b"\x85\x81",
    "NEWOBJ_EX": b"csubprocess\nPopen\n" + TOUCH + b"\x85}\x92",
    "load from bytes": call("torch.storage", "_load_from_bytes", pickle.dumps(b"cos\nsystem\n(X\0\0\0\0tR.", 4)[2:-1]),
    "torch.load": call("torch", "load", short("other"), b"N", b"N", b"}" + short("weights_only") + b"\x89s"),
    "hub": call("torch.hub", "load", short("user/repo"), short("model")),
    "extension": b"\x82\x01",
    "buffer": b"\x97",
    "persistent": b"Pos.system\n",
    "unknown numbers": b"(" + short("storage") + call("os", "system", TOUCH) + short("0") + short("cpu") + b"K\x04tQ",
    "class of a stub": call("a", "b") + b"}" + short("__class__") + b"cos\nsystem\ns" + b"b",
    "state of a stub": call("a", "b") + b"}" + short("__setstate__") + b"cos\nsystem\ns" + b"b" + b"}b",
    "state of a function": b"ccollections\nOrderedDict\n}" + short("__code__") + b"K\x01sb" + b")R",
    "items of a stub": call("a", "b") + b"(K\x01K\x02u(K\x03e",
    "dict of a dict": call("collections", "OrderedDict") + b"}" + short("__class__") + b"cos\nsystem\nsb",
    "giant tensor": tensor(plain((2**40,)), plain((1,))),
    "giant tensor of nothing": tensor(plain((2**62, 2**62, 0)), plain((1, 1, 1))),
    "giant text": tensor(plain(("a", 2**40)), plain((1, 1))),
    "giant list": tensor(plain(([0], 2**40)), plain((1, 1))),
    "expanded": tensor(plain((2**40,)), plain((0,))),
    "outside": tensor(plain((4,)), plain((2,))),
    "before": tensor(plain((2,)), plain((1,)), -1),
    "backwards": tensor(plain((2,)), plain((-1,)), 3),
    "of no numbers": tensor(plain((1,)), plain((1,)), 0, call("os", "system", TOUCH)),
    "of a list": tensor(plain((1,)), plain((1,)), 0, b"]"),
    "deep": b"]" * 200_000 + b"a" * 199_999,
    "deep key": b"})" + b"\x85" * 200_000 + b"K\x01s",
    "deep item": b"\x8f()" + b"\x85" * 200_000 + b"\x90",
    "deep name": b")" + b"\x85" * 200_000 + b")" + b"\x93",
    "deep key of numbers": b"(" + short("storage") + b"ctorch\nFloatStorage\n)" + b"\x85" * 200_000 + b"NK\x04tQ",
    "itself": b"]q\0h\0a",
    "giant memo": b"]r\xff\xff\xff\xff",
    "giant bytes": b"\x8e" + (2**60).to_bytes(8, "little"),
    "giant bytearray": b"\x96" + (2**40).to_bytes(8, "little"),
    "giant frame": b"\x95" + (2**60).to_bytes(8, "little") + b"N",
    "giant number": b"\x8b\xff\xff\xff\x7f",
    "nothing": b"",
    "too much taken": b"0000R",
    "no mark": b"t",
    "unknown": b"\xff",
}


def plant(path, instructions, legacy):
    """A file in which the instructions give the value of "x"; its one tensor has 4 numbers."""
    pickled, numbers = b"\x80\x04}" + short("x") + instructions + b"s.", torch.ones(4).numpy().tobytes()
    if legacy:
        head = b"".join(pickle.dumps(word, 2) for word in (archives.LEGACY, 1001, {}))
        there = ["0"] if b"FloatStorage" in pickled and b"Q" in pickled else []
        path.write_bytes(head + pickled + pickle.dumps(there, 2) + (4).to_bytes(8, "little") + numbers)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", pickled)
            archive.writestr("a/data/0", numbers)


class Evil:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced[0], self.reduced[1:]


@legacy
@pytest.mark.parametrize("name", PLANTED)
def test_planted_pickles_are_inert(tmp_path, monkeypatch, name, legacy):
    monkeypatch.chdir(tmp_path)
    plant(tmp_path / "planted", PLANTED[name], legacy)
    try:
        read = archives.load("planted")
    except ValueError as error:
        assert "planted" in str(error) and "\n" not in str(error) and len(str(error)) < 500
    else:
        assert list(read) == ["x"] and isinstance(read["x"], archives.Stub | dict | list | torch.Tensor | None)
        archives.stubs(read), archives.state_dict(read["x"])
    assert os.listdir(tmp_path) == ["planted"]


@legacy
def test_what_is_planted_is_what_pickle_and_torch_would_obey(tmp_path, monkeypatch, legacy):
    monkeypatch.chdir(tmp_path)
    for name in ("os.system", "eval", "exec", "Path.touch", "INST", "OBJ", "stack global", "dotted"):
        plant(tmp_path / "planted", PLANTED[name], legacy)
        if legacy:
            torch.load("planted", weights_only=False)
        else:
            pickle.loads(b"\x80\x04}" + short("x") + PLANTED[name] + b"s.")
        assert (tmp_path / "ran").exists(), name
        (tmp_path / "ran").unlink()
    plant(tmp_path / "planted", tensor(plain((2, 2)), plain((2, 1))), legacy)
    assert torch.equal(archives.load("planted")["x"], torch.ones(2, 2)), "else those of tensors test nothing"


@legacy
def test_any_change_of_a_file_is_harmless(tmp_path, legacy):
    """Random bytes of a checkpoint changed: it is read, or refused in one line."""
    path, rng, refused = tmp_path / "saved", random.Random(0), 0
    content = {"state_dict": {"ctx": torch.ones(4, 8)}, "scheduler": Scheduler(), "epoch": 5, "rng": (1, b"ab", {2})}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    whole = path.read_bytes()
    for _ in range(300):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        path.write_bytes(changed)
        try:
            archives.load(str(path))
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 20


def test_small_files_that_would_fill_the_memory(tmp_path):
    for name, method, times in (("compressed", zipfile.ZIP_DEFLATED, 1), ("twice", zipfile.ZIP_STORED, 3)):
        with zipfile.ZipFile(tmp_path / name, "w", method) as archive:
            key = [
                b"(" + short("storage") + b"ctorch\nFloatStorage\n" + short(str(k)) + b"NK\0tQ" for k in range(times)
            ]
            archive.writestr("a/data.pkl", b"\x80\x02(" + b"".join(key) + b"t.")
            for k in range(times):
                archive.writestr(f"a/data/{k}", bytes(100_000 if k == 0 else 4))
            for k in range(1, times):  # the same bytes under several names
                first, other = archive.getinfo("a/data/0"), archive.getinfo(f"a/data/{k}")
                other.header_offset, other.file_size, other.compress_size = first.header_offset, 100_000, 100_000
                other.CRC = first.CRC
        with pytest.raises(ValueError, match="PyTorch"):
            archives.load(str(tmp_path / name))
    pickles = [archives.LEGACY, 1001, {}]
    storage = b"\x80\x02(" + short("storage") + b"ctorch\nFloatStorage\n" + short("0") + b"N" + plain(2**40) + b"tQ."
    (tmp_path / "old").write_bytes(b"".join(pickle.dumps(p, 2) for p in pickles) + storage + pickle.dumps(["0"], 2))
    with pytest.raises(ValueError, match="need more bytes"):
        archives.load(str(tmp_path / "old"))


def test_stubs_that_hold_each_other():
    """Forty floors of which each is held ten times by the next one: not ten to the forty."""
    stub = archives.Stub("a.b")
    stub.attributes |= {"w": torch.ones(1), "self": stub}
    tree = stub
    for _ in range(40):
        above = archives.Stub("a.c")
        above.attributes |= {f"m{k}": tree for k in range(10)}
        tree = above
    (name,) = archives.state_dict(tree)
    assert name.endswith(".w") and name.count(".") == 40
    content = [stub, {"x": archives.Stub("a.a")}]
    for _ in range(40):
        content = [content] * 10
    assert archives.stubs(content) == ["a.a", "a.b"]


class Scheduler:
    """As CoOp's checkpoints hold one."""

    def __init__(self):
        self.base_lrs, self.last_epoch = [0.002], 50


@legacy
def test_objects_of_other_classes_keep_what_was_saved(tmp_path, legacy):
    content = {"scheduler": Scheduler(), "state_dict": {"ctx": torch.ones(4)}}
    torch.save(content, tmp_path / "coop.pt", _use_new_zipfile_serialization=not legacy)
    read = archives.load(str(tmp_path / "coop.pt"))
    assert archives.stubs(read) == [f"{__name__}.Scheduler"]
    assert read["scheduler"].attributes["last_epoch"] == 50
    assert read["scheduler"].attributes["base_lrs"] == [0.002] and torch.equal(read["state_dict"]["ctx"], torch.ones(4))


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::DeprecationWarning")
def test_beside_the_original_dassl_a_clip_is_read_by_pytorch_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dassl.infrastructure", None)
    monkeypatch.delitem(sys.modules, "trainers.shared.beside_dassl")
    beside = importlib.import_module("trainers.shared.beside_dassl")
    monkeypatch.undo()
    assert beside.read_archive is not archives.load
    torch.jit.script(nn.Linear(2, 3)).save(tmp_path / "jit.pt")
    torch.save({"weight": torch.ones(2)}, tmp_path / "saved.pt")
    assert beside.state_dict(beside.read_archive(str(tmp_path / "jit.pt")))["weight"].shape == (3, 2)
    assert torch.equal(beside.state_dict(beside.read_archive(str(tmp_path / "saved.pt")))["weight"], torch.ones(2))
    torch.save(Evil(os.mkdir, "ran"), tmp_path / "evil.pt")
    with pytest.raises(pickle.UnpicklingError):
        beside.read_archive(str(tmp_path / "evil.pt"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "text", "empty"])
def test_damaged_files_are_told(tmp_path, noise, damage):
    path = tmp_path / "saved.pt"
    torch.save({"w": noise(300)}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        (info,) = [item for item in archive.infolist() if item.filename.endswith("data/0")]
    content[info.header_offset + 700] ^= 1  # in the numbers
    damaged = {"cut": content[:-200], "flipped": content, "text": b"no archive", "empty": b""}[damage]
    path.write_bytes(damaged)
    with pytest.raises(ValueError) as error:
        archives.load(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


# ------------------------------------------------------------------ small files that want very much


def archive_of(path, instructions):
    """A file as `torch.save` writes it, with a pickle of these instructions."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + instructions + b".")
    return str(path)


LONG_LIST = b"(" + b"N" * 50_000 + b"lq\x00"  # kept in the memo
ATTACKS = {
    "the same list in many sets": LONG_LIST + b"(" + 2000 * b"cbuiltins\nset\nh\x00\x85R" + b"l",
    "the same text as bytes": b"X"
    + (40_000).to_bytes(4, "little")
    + b"a" * 40_000
    + b"q\x00X\x06\0\0\0latin1q\x010("
    + 2000 * b"c_codecs\nencode\nh\x00h\x01\x86R"
    + b"l",
    "many attributes": b"}q\x00("
    + b"".join(b"X\x04\0\0\0%04dN" % k for k in range(9000))
    + b"u0("
    + 2000 * b"cnobodys\nThing\n)Rh\x00b"
    + b"l",
    "very many containers": b"(" + 5_000_000 * b"]" + b"l",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_small_file_cannot_fill_the_memory(tmp_path, attack, one_line):
    path = archive_of(tmp_path / "x.pt", ATTACKS[attack])
    with pytest.raises(ValueError, match="far more than a file of its size") as error:
        archives.load(path)
    assert one_line(error)


def number(n):
    return b"\x8a" + bytes([len(pickle.encode_long(n))]) + pickle.encode_long(n)


SAME_HASH = [k * (2**61 - 1) for k in range(2, 100_000)]
COLLIDING = {
    "keys of a dict": b"}(" + b"".join(number(k) + b"N" for k in SAME_HASH) + b"u",
    "tuples in a set": b"\x8f(" + b"".join(number(k) + b"\x85" for k in SAME_HASH) + b"\x90",
    "keys of the memo": b"N" + b"".join(b"p%d\n" % k for k in SAME_HASH),
}


@pytest.mark.parametrize("attack", COLLIDING)
def test_keys_of_the_same_hash(tmp_path, attack, one_line):
    """Python compares each with all before it: these files of a megabyte would take minutes."""
    with pytest.raises(ValueError, match="a key is too large a number") as error:
        archives.load(archive_of(tmp_path / "x.pt", COLLIDING[attack]))
    assert one_line(error)


@pytest.mark.parametrize("build", [archives.ordered, archives.collected, archives.size_of])
@pytest.mark.parametrize(
    "items", [torch.zeros(4, 2), "text", b"bytes", archives.Stub("x")], ids=lambda x: type(x).__name__
)
def test_a_container_is_made_of_containers(build, items):
    """An object for each byte of a tensor would take hundreds of times its memory."""
    with pytest.raises(ValueError, match="the items of a container are in none"):
        build(items)


@pytest.mark.parametrize("numel", [-1, True, 2.0, float("nan"), torch.tensor(3, dtype=torch.uint8), None])
def test_the_length_of_a_storage_is_a_number(numel):
    with pytest.raises(ValueError, match="kept in an unknown way"):
        archives.numbers(None, "storage", torch.uint8, "0", "cpu", numel)


def test_one_storage_many_views(tmp_path):
    """Of a few megabytes, named again and again; two names for the same numbers are usual, and taken."""
    numbers = torch.randn(2**20)
    path = str(tmp_path / "x.pt")
    torch.save({"a": numbers, "b": numbers}, path)
    assert torch.equal(archives.load(path)["b"], numbers)
    torch.save({str(k): numbers.view(2, -1) for k in range(400)}, path)
    with pytest.raises(ValueError, match="far more than a file of its size"):
        archives.load(path)


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    for name in ("pipe.pt", "zero.pt"):
        with pytest.raises(ValueError, match="is a device, a pipe or a socket"):
            archives.load(str(tmp_path / name))


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "config.json", "preprocessor_config.json"])
def test_a_folder_of_somebody_else(tmp_path, name):
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="is a device, a pipe or a socket"):
        load_clip(str(tmp_path))
