"""Checkpoints: saving, loading and resuming exactly; weights that partly fit; freezing of layers."""

import os

import numpy as np
import pytest
import torch
import torch.nn as nn

from dassl.config import get_cfg_default
from dassl.infrastructure.archives import Stub
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    open_all_layers,
    open_specified_layers,
    resume_from_checkpoint,
    save_checkpoint,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.backbone = nn.Linear(3, 4)
        self.classifier = nn.Linear(4, 2)


def training(seed):
    torch.manual_seed(seed)
    net = Net()
    cfg = get_cfg_default().OPTIM
    cfg.NAME, cfg.LR, cfg.LR_SCHEDULER, cfg.WARMUP_EPOCH, cfg.WARMUP_TYPE = "adam", 0.01, "cosine", 2, "constant"
    optimizer = build_optimizer(net, cfg)
    return net, optimizer, build_lr_scheduler(optimizer, cfg)


def train_epoch(net, optimizer, scheduler):
    x = torch.linspace(-1, 1, 15).view(5, 3)
    optimizer.zero_grad()
    (net.classifier(net.backbone(x).tanh()) * net.scale).square().sum().backward()
    optimizer.step()
    scheduler.step()


@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_resume_is_exact(stop, tmp_path):
    whole = training(0)
    for _ in range(6):
        train_epoch(*whole)

    first = training(0)
    for _ in range(stop):
        train_epoch(*first)
    net, optimizer, scheduler = first
    state = {"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": stop}
    state |= {"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    state["val_result"] = np.float64(81.25)
    keys = list(state["state_dict"])
    save_checkpoint(state, str(tmp_path), is_best=True)
    assert list(state["state_dict"]) == keys  # the caller's dict is left alone
    best, newest = "model-best.pth.tar", f"model.pth.tar-{stop}"
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", best, newest]
    assert (tmp_path / "checkpoint").read_text() == f"{newest}\n"
    assert (tmp_path / best).read_bytes() == (tmp_path / newest).read_bytes()
    assert load_checkpoint(str(tmp_path / newest))["val_result"] == 81.25

    second = training(1)
    assert resume_from_checkpoint(str(tmp_path), *second) == stop
    for _ in range(6 - stop):
        train_epoch(*second)
    for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)


def test_failed_save_keeps_the_old_checkpoint(tmp_path):
    state = {"state_dict": Net().state_dict(), "epoch": 3}
    save_checkpoint(state, str(tmp_path), model_name="m.pth")
    with pytest.raises(Exception, match="lambda|pickle"):
        save_checkpoint(state | {"bad": lambda: 0}, str(tmp_path), model_name="m.pth")
    assert sorted(os.listdir(tmp_path)) == ["checkpoint", "m.pth"]
    assert load_checkpoint(str(tmp_path / "m.pth"))["epoch"] == 3


@pytest.mark.parametrize("stopped", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_stops_a_save_is_told(tmp_path, monkeypatch, stopped):
    """Ctrl-C, or a full disk, while tensors are written: torch's own error about the torn file must not hide it."""
    state, write = {"state_dict": {"w": torch.zeros(300_000)}, "epoch": 3}, torch._C.PyTorchFileWriter.write_record

    def torn(writer, name, *args):
        if name == "data/0":
            write(writer, name, bytes(100), 100)
            raise stopped
        return write(writer, name, *args)

    class Torn(torch._C.PyTorchFileWriter):
        write_record = torn

        def write_end_of_file(self):
            super().write_end_of_file()
            raise RuntimeError("unexpected pos 137536 vs 137428")

    monkeypatch.setattr(torch._C, "PyTorchFileWriter", Torn)
    with pytest.raises(type(stopped)):
        save_checkpoint(state, str(tmp_path), model_name="m.pth")
    assert os.listdir(tmp_path) == []


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


def test_checkpoint_errors(tmp_path, monkeypatch, one_line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        load_checkpoint(None)
    with pytest.raises(FileNotFoundError) as error:
        load_checkpoint("missing.pth")
    assert "missing.pth" in one_line(error)
    with pytest.raises(FileNotFoundError) as error:
        resume_from_checkpoint("nowhere", Net())
    assert "nowhere" in one_line(error)

    torch.save({"state_dict": Net().state_dict(), "epoch": 1}, "whole")
    with open("whole", "rb") as f:
        whole = f.read()
    bad = {"half": whole[: len(whole) // 2], "cut": whole[:-30], "empty": b"", "text": b"hello, world\n" * 50}
    for name, content in bad.items():
        with open(name, "wb") as f:
            f.write(content)
        with pytest.raises(ValueError, match="not a checkpoint or is cut off") as error:
            load_checkpoint(name)
        assert name in one_line(error)

    torch.save([1, 2], "list")
    with pytest.raises(ValueError, match="list") as error:
        load_checkpoint("list")
    one_line(error)


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_of_other_classes_are_inert(legacy, tmp_path, monkeypatch, one_line):
    monkeypatch.chdir(tmp_path)
    net, optimizer, scheduler = training(0)
    kept = {"state_dict": net.state_dict(), "epoch": 1, "optimizer": optimizer.state_dict(), "val_result": Evil()}
    kept["scheduler"] = scheduler.state_dict() | {"successor": nn.Linear(2, 2), "evil": [Evil()]}
    torch.save(kept, "model.pth.tar-1", _use_new_zipfile_serialization=not legacy)
    read = load_checkpoint("model.pth.tar-1")
    assert isinstance(read["scheduler"]["successor"], Stub) and isinstance(read["val_result"], Stub)
    assert read["scheduler"]["warmup_epoch"] == 2 and read["optimizer"] == kept["optimizer"]

    (tmp_path / "checkpoint").write_text("model.pth.tar-1\n")
    other = training(1)
    before = [p.clone() for p in other[0].parameters()]
    with pytest.raises(ValueError, match="cannot go on .*INIT_WEIGHTS") as error:
        resume_from_checkpoint(".", *other)
    assert "Linear" in one_line(error) or "mkdir" in one_line(error)
    assert all(torch.equal(a, b) for a, b in zip(before, other[0].parameters(), strict=True))
    assert resume_from_checkpoint(".", other[0]) == 1, "the weights alone"
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other[0].parameters(), strict=True))
    assert not os.path.exists("evil")


@pytest.mark.parametrize("wrapped", [True, False])
def test_load_pretrained_weights(wrapped, tmp_path, capsys):
    net, source = Net(), Net()
    weights = {f"module.{k}": v for k, v in source.state_dict().items()}
    weights["module.classifier.weight"] = torch.zeros(5, 4)
    weights["extra"] = torch.zeros(1)
    path = str(tmp_path / "w.pth")
    torch.save({"state_dict": weights, "epoch": 4} if wrapped else weights, path)
    own = net.classifier.weight.clone()
    load_pretrained_weights(nn.DataParallel(net), path)
    assert torch.equal(net.backbone.weight, source.backbone.weight)
    assert torch.equal(net.classifier.bias, source.classifier.bias)
    assert torch.equal(net.classifier.weight, own)
    assert "['classifier.weight', 'extra']" in capsys.readouterr().out
    torch.save({"other": torch.zeros(1)}, path)
    with pytest.warns(UserWarning, match="nothing is loaded"):
        load_pretrained_weights(net, path)


def test_a_bug_in_rename_weights_is_not_hidden(tmp_path):
    class Net(nn.Linear):
        def rename_weights(self, weights):
            return self.renamed(weights)  # there is no such method

    path = tmp_path / "net.pth"
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, path)
    with pytest.raises(AttributeError, match="renamed"):
        load_pretrained_weights(Net(2, 2), path)


@pytest.mark.parametrize("weights", [{1: 2.0}, {"weight": 2.0}, [2.0]], ids=["numbers", "no tensors", "a list"])
def test_weights_must_be_tensors_with_names(weights, tmp_path, one_line):
    class Net(nn.Linear):
        def rename_weights(self, weights):
            return {name.removeprefix("theirs."): tensor for name, tensor in weights.items()}

    path = tmp_path / "net.pth"
    torch.save({"state_dict": weights}, path)
    with pytest.raises(ValueError, match="holds no state_dict of tensors") as error:
        load_pretrained_weights(Net(2, 2), path)
    one_line(error)


def test_layers_and_counting():
    net = Net()
    assert count_num_param(net) == 1 + 16 + 10
    assert count_num_param(params=net.backbone.parameters()) == 16
    assert count_num_param(params=[{"params": net.classifier.parameters()}, {"params": net.scale}]) == 11
    with pytest.raises(ValueError):
        count_num_param()
    open_specified_layers(nn.DataParallel(net), "classifier")
    assert net.classifier.training and not net.backbone.training
    assert net.classifier.weight.requires_grad and not net.backbone.weight.requires_grad
    with pytest.raises(ValueError, match='"head".*backbone, classifier'):
        open_specified_layers(net, ["head"])
    open_all_layers(net)
    assert net.backbone.training and all(p.requires_grad for p in net.parameters())
