"""Files of PyTorch read without running what is in them."""

import os
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from dassl import archives
from trainers.shared.backbones import load_clip


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_what_torch_saved(tmp_path, noise, dtype):
    whole = (3 * noise(6, 5)).to(dtype)
    content = {
        "a": whole,
        "row": whole[2],
        "column": whole[:, 1],
        "t": whole.T,
        "scalar": torch.tensor(3),
        "empty": whole[:0],
    }
    content |= {"plain": [1, 2.5, "x", None, (True,)], "nested": OrderedDict(b=nn.Parameter(torch.ones(2)))}
    torch.save(content, tmp_path / "saved.pt")
    read = archives.load(str(tmp_path / "saved.pt"))
    assert read.keys() == content.keys() and read["plain"] == content["plain"]
    for key in ("a", "row", "column", "t", "scalar", "empty"):
        assert read[key].dtype == content[key].dtype and torch.equal(read[key], content[key])
    assert type(read["nested"]) is OrderedDict and torch.equal(read["nested"]["b"], torch.ones(2))


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


class Evil:
    def __init__(self, call, *args):
        self.reduced = call, args

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize(
    "call, name",
    [(Path.touch, ""), (os.system, "touch {}"), (eval, "open('{}', 'w')")],
    ids=["method", "shell", "eval"],
)
def test_pickled_calls_are_not_made(tmp_path, call, name):
    ran = tmp_path / "ran"
    argument = ran if call is Path.touch else name.format(ran)
    torch.save({"w": torch.ones(2), "evil": Evil(call, argument), "list": [Evil(call, argument)]}, tmp_path / "evil.pt")
    read = archives.load(str(tmp_path / "evil.pt"))
    assert torch.equal(read["w"], torch.ones(2)) and isinstance(read["evil"], archives.Stub) and not ran.exists()
    with pytest.raises(ValueError):
        load_clip(str(tmp_path / "evil.pt"))
    assert not ran.exists()


class Scheduler:
    """As CoOp's checkpoints hold one."""

    def __init__(self):
        self.base_lrs, self.last_epoch = [0.002], 50


def test_objects_of_other_classes_keep_what_was_saved(tmp_path):
    torch.save({"scheduler": Scheduler(), "state_dict": {"ctx": torch.ones(4)}}, tmp_path / "coop.pt")
    read = archives.load(str(tmp_path / "coop.pt"))
    assert not isinstance(read["scheduler"], Scheduler) and read["scheduler"].attributes["last_epoch"] == 50
    assert read["scheduler"].attributes["base_lrs"] == [0.002] and torch.equal(read["state_dict"]["ctx"], torch.ones(4))


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
