"""The training loop: resuming, checkpoints, determinism, and a trainer file written by somebody else."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import yaml
from torch import nn

import train
from dassl.config import get_cfg_default
from dassl.engine import SimpleNet, TrainerBase, TrainerX, TrainerXU
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import tools

REPO = Path(__file__).resolve().parents[1]
SMALL = {
    "OrthCR": ["TRAINER.ORTHCR.LAYERS", "[-1]", "TRAINER.ORTHCR.BLOCK_SIZE", "16"],
    "CoOp": ["OPTIM.LR", "0.05"],
}
FOLDER = {"OrthCR": "rotations", "CoOp": "prompt_learner"}
NOT_COMPARED = ("seconds", "peak_memory_mib")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def every_epoch(monkeypatch):
    """A checkpoint to resume from after every epoch."""
    monkeypatch.setattr(TrainerBase, "resume_interval", 0.0)


@pytest.fixture
def run(tmp_path, tmp_path_factory):
    """run("a", ...) -> exit code of a small training on Shapes base into tmp_path/a; all tests share the pictures."""
    root = tmp_path_factory.getbasetemp() / "data"

    def run(out, *opts, trainer="OrthCR", seed=1, epochs=3, flags=()):
        return train.main([
            "--root", str(root), "--output-dir", str(tmp_path / out), "--seed", str(seed), "--trainer", trainer, *flags,
            "VERBOSE", "False", "DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", "4",
            "OPTIM.MAX_EPOCH", str(epochs), *SMALL[trainer], *opts])  # fmt: skip

    return run


def interrupt(monkeypatch, trainer, epoch, batch=1, error=KeyboardInterrupt):
    """Let that batch of that epoch, counted from 0, be interrupted; a context to undo it."""
    cls = train.TRAINER_REGISTRY.get(trainer)
    step = cls.forward_backward

    def forward_backward(self, *args):
        if (self.epoch, self.batch_idx) == (epoch, batch):
            raise error
        return step(self, *args)

    context = monkeypatch.context()
    context.__enter__().setattr(cls, "forward_backward", forward_backward)
    return context


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def same(a, b):
    """Equality of nested containers with tensors, bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(a, b, epochs, files=()):
    """Weights, optimizer, scheduler, random generators and results of two output directories are equal."""
    (folder,) = [p.parent.name for p in a.glob("*/checkpoint")]
    for name in (f"model.pth.tar-{epochs}", *files):
        one, two = load(a / folder / name), load(b / folder / name)
        assert one["optimizer"]["state"], "the optimizer keeps something worth comparing"
        for key in ("state_dict", "optimizer", "scheduler", "rng", "epoch", "val_result", "best_result"):
            assert same(one[key], two[key]), f"{name}: {key}"
    results = [json.loads((out / "results.json").read_text()) for out in (a, b)]
    for result in results:
        for key in NOT_COMPARED:
            result.pop(key)
    assert results[0] == results[1]


def checkpoints(out, trainer="OrthCR"):
    return sorted(p.name for p in (out / FOLDER[trainer]).iterdir())


# ------------------------------------------------------------------ resuming


@pytest.mark.parametrize("trainer, opts, extra", [
    ("OrthCR", ["INPUT.TRANSFORMS", "['random_resized_crop','random_flip','cutout','normalize']"], []),
    ("OrthCR", ["DATALOADER.NUM_WORKERS", "2"], []),
    ("OrthCR", ["TEST.FINAL_MODEL", "best_val"], ["model-best.pth.tar"]),
    ("CoOp", [], []),
    ("CoOp", ["TEST.FINAL_MODEL", "best_val", "OPTIM.LR", "1.0"], ["model-best.pth.tar"]),
], ids=["OrthCR", "OrthCR-workers", "OrthCR-best", "CoOp", "CoOp-best"])  # fmt: skip
def test_an_interrupted_run_ends_bit_for_bit_as_the_whole_one(trainer, opts, extra, run, tmp_path, monkeypatch, every_epoch):
    assert run("whole", *opts, trainer=trainer) == 0
    for epoch in (1, 2):
        with interrupt(monkeypatch, trainer, epoch):
            monkeypatch_active = run("parts", *opts, trainer=trainer)
        assert monkeypatch_active == 130
        assert f"model.pth.tar-{epoch}" in checkpoints(tmp_path / "parts", trainer)
        assert not (tmp_path / "parts" / "results.json").exists()
    assert run("parts", *opts, trainer=trainer) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 3, extra)
    for out in ("whole", "parts"):
        assert checkpoints(tmp_path / out, trainer) == sorted(["checkpoint", *extra, "model.pth.tar-3"])
        assert (tmp_path / out / FOLDER[trainer] / "checkpoint").read_text().strip() == "model.pth.tar-3"
