"""Several processes make the run that one makes."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch

from dassl.engine import TRAINER_REGISTRY, TrainerBase, build_trainer
from dassl.infrastructure import distributed
from dassl.utils import set_random_seed
from datasets.shapes import Shapes
from orthcr.run.runner import main
from tests.processes import LOOPBACK, in_processes
from tests.test_resume import interrupted, load, same
from tests.test_trainers import METHODS as ALL
from trainers.coop import CoOp
from trainers.shared import processes

# 20 classes of 1 shot: two steps of 19 images, or, where the last batch is kept, four of 19 and 1; the last test batch,
# too, is of one image. SGD: it passes on what gradients differ by, where Adam divides it by nearly nothing
SMALL = ["DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 2, "OPTIM.NAME", "sgd"]
SMALL += ["OPTIM.LR", 0.02, "DATALOADER.TRAIN_X.BATCH_SIZE", 19, "DATALOADER.TEST.BATCH_SIZE", 79]
SMALL += ["TEST.PER_CLASS_RESULT", True]
METHODS = [name for name in ALL if name != "TDA"]  # whose stream is refused in several processes
SAME_DRAWS = {"CLIPLoRA": ["TRAINER.CLIPLORA.DROPOUT", 0.0], "OrthSR": ["TRAINER.ORTHSR.ATTENTIVE", False]}


def test_every_trainer_learns_the_same_in_two_processes(make_cfg, tmp_path, monkeypatch):
    """Weights, and all that an evaluation tells; of 20 classes each process encodes half."""
    monkeypatch.setattr(processes, "SPLIT_FROM", 20)

    def train_all(out):
        for name in METHODS:
            cfg = make_cfg(*SMALL, *SAME_DRAWS.get(name, []), trainer=name, out=f"{out}/{name}")
            set_random_seed(1)
            trainer = build_trainer(cfg)
            torch.save(state_of(trainer), tmp_path / f"start-{name}-0.pt")
            trainer.train()
            told = {"results": trainer.results, "pred": trainer.evaluator.y_pred, "true": trainer.evaluator.y_true}
            torch.save(told | state_of(trainer), tmp_path / f"{out}-{name}-{distributed.rank()}.pt")

    def work():
        with distributed.processes():
            train_all("two")

    train_all("one")
    assert in_processes(work, tmp_path / "log") == [0, 0], (tmp_path / "log.1").read_text()
    for name in METHODS:
        files = (("start", 0), ("one", 0), ("two", 0), ("two", 1))
        start, one, *two = (torch.load(tmp_path / f"{run}-{name}-{rank}.pt") for run, rank in files)
        moved = any((weight - start["weights"][key]).abs().max() > 1e-3 for key, weight in one["weights"].items())
        assert moved or not TRAINER_REGISTRY.get(name).learner, name
        for each in two:
            torch.testing.assert_close(
                each["weights"], one["weights"], atol=1e-5, rtol=1e-5, msg=f"{name}: {{}}".format
            )
            assert each["results"] == pytest.approx(one["results"], abs=1e-3), name
            assert each["pred"].equal(one["pred"]) and each["true"].equal(one["true"]), name


def state_of(trainer):
    return {"weights": {key: t.clone() for m in trainer._models.values() for key, t in m.state_dict().items()}}


# ------------------------------------------------------------------ whole runs


@pytest.fixture
def run(tmp_path, pictures):
    """run("a", ..., n=2): exit statuses of a small CoOp training into tmp_path/a; a.log.<rank> has what it prints."""

    def run(out, *opts, n=2, root=pictures):
        argv = ["--root", root, "--output-dir", tmp_path / out, "--trainer", "CoOp", "VERBOSE", False, *SMALL[:4]]
        argv = [str(word) for word in [*argv, "OPTIM.MAX_EPOCH", 3, "DATALOADER.TRAIN_X.BATCH_SIZE", 8, *opts]]
        return in_processes(lambda: main(argv), tmp_path / f"{out}.log", n)

    return run


def said(tmp_path, out):
    return [(tmp_path / f"{out}.log.{rank}").read_text() for rank in (0, 1)]


def test_two_processes_go_on_with_a_run_that_one_began(run, tmp_path, monkeypatch):
    monkeypatch.setattr(TrainerBase, "resume_interval", 0.0)
    best = ["TEST.FINAL_MODEL", "best_val", "OPTIM.LR", 0.02]
    assert run("whole", *best, n=1) == [0]
    with interrupted("CoOp", 1):
        assert run("parts", *best, n=1) == [130]
    with interrupted("CoOp", 2):
        assert run("parts", *best) == [130, 130]
    assert run("parts", *best) == [0, 0]
    first, second = said(tmp_path, "parts")
    assert "after epoch 2" in first and "Results are in" in first and second == ""
    assert (tmp_path / "parts" / "log.txt").exists() and len(
        list((tmp_path / "parts").glob("log*"))
    ) >= 2  # named by seconds
    whole, parts = (json.loads((tmp_path / out / "results.json").read_text()) for out in ("whole", "parts"))
    assert [result.pop("processes") for result in (whole, parts)] == [1, 2]
    for result in (whole, parts):
        for key in ("seconds", "peak_memory_mib", "sha256", "config"):
            result.pop(key)
    assert whole.keys() == parts.keys() and whole["accuracy"] == parts["accuracy"]
    for file in ("model.pth.tar-3", "model-best.pth.tar"):
        one, two = (load(tmp_path / out / "prompt_learner" / file) for out in ("whole", "parts"))
        torch.testing.assert_close(one["state_dict"], two["state_dict"], atol=1e-5, rtol=1e-5)
        assert (
            same(one["rng"], two["rng"]) and same(one["scheduler"], two["scheduler"]) and one["epoch"] == two["epoch"]
        )


def test_the_first_process_draws_the_data(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Shapes, "images", {"train": 1, "val": 1, "test": 1})
    draw = Shapes.draw

    def drawn(self):
        assert distributed.is_first()
        draw(self)

    monkeypatch.setattr(Shapes, "draw", drawn)
    assert run("out", "OPTIM.MAX_EPOCH", 1, root=tmp_path / "new") == [0, 0], said(tmp_path, "out")


def of_second(monkeypatch, change):
    """The loss terms of the second process are changed."""
    losses = CoOp.losses

    def changed(self, image, label):
        terms, logits = losses(self, image, label)
        return (terms if distributed.is_first() or self.batch_idx < 1 else change(terms)), logits

    monkeypatch.setattr(CoOp, "losses", changed)


def test_a_nan_ends_all_with_one_message(run, tmp_path, monkeypatch):
    of_second(monkeypatch, lambda terms: {name: term * float("nan") for name, term in terms.items()})
    assert run("out") == [1, 1]
    first, second = said(tmp_path, "out")
    assert 'error: the loss term "ce" is nan in epoch 1, batch 2: lower' in first.splitlines()[-1] and second == ""
    assert not (tmp_path / "out" / "results.json").exists()


def test_an_error_in_one_process_ends_all_and_is_told_once(run, tmp_path, monkeypatch):
    def fail(terms):
        raise OSError("Cannot read the image a.png: replace it")

    of_second(monkeypatch, fail)
    assert run("out") == [1, 1]
    first, second = said(tmp_path, "out")
    assert second == "error: Cannot read the image a.png: replace it\n" and "error:" not in first
    log = (tmp_path / "out" / "log.txt").read_text()
    assert "another of the 2 processes has ended: OSError: Cannot read the image a.png" in log


def test_a_process_that_is_killed_ends_the_others(run, tmp_path, monkeypatch):
    of_second(monkeypatch, lambda terms: os.kill(os.getpid(), signal.SIGKILL))
    assert run("out") == [1, -signal.SIGKILL]
    first, _ = said(tmp_path, "out")
    assert first.splitlines()[-1].startswith("error: another of the 2 processes has ended: it reported no error")


def test_more_processes_than_images_in_a_batch(run, tmp_path):
    assert run("out", "DATALOADER.TRAIN_X.BATCH_SIZE", 1) == [1, 1]
    first, second = said(tmp_path, "out")
    assert first.splitlines()[-1].startswith("error: 2 processes cannot share a batch of 1: ") and second == ""


def test_more_processes_than_gpus(monkeypatch, one_line):
    monkeypatch.setattr(distributed, "size", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    distributed.check_devices(use_cuda=False)
    with pytest.raises(ValueError, match="4 processes, but 2 GPUs") as caught:
        distributed.check_devices(use_cuda=True)
    one_line(caught)


def test_torchrun(root, pictures, tmp_path):
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "train.py"]
    argv += ["--root", pictures, "--output-dir", tmp_path / "out", "--trainer", "CoOp", "VERBOSE", False, *SMALL[:4]]
    env = os.environ | {"GLOO_SOCKET_IFNAME": min(LOOPBACK), "PYTHONPATH": str(root)}
    command = [str(word) for word in [*argv, "OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 8]]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("* accuracy") == 1
    assert json.loads((tmp_path / "out" / "results.json").read_text())["processes"] == 2


# ------------------------------------------------------------------ parts


def test_the_gradient_of_gathered_rows_is_that_of_all_losses(tmp_path):
    """5 rows of two processes, each with a loss of its own; fp64, and not of rows that one process never had."""
    rows = torch.randn(5, 3, dtype=torch.float64)
    weights = torch.randn(2, 5, 3, dtype=torch.float64)

    def work():
        with distributed.processes():
            start, end = distributed.bounds(5)
            own = rows[start:end].clone().requires_grad_()
            both = distributed.gather_with_gradient(own.square(), 5)
            (weights[distributed.rank()] * both.sin()).sum().backward()
            torch.save((both.detach(), own.grad, start, end), tmp_path / str(distributed.rank()))

    assert in_processes(work, tmp_path / "log") == [0, 0], (tmp_path / "log.1").read_text()
    wanted = weights.sum(dim=0) * rows.square().cos() * 2 * rows
    for rank in (0, 1):
        both, grad, start, end = torch.load(tmp_path / str(rank))
        assert torch.equal(both, rows.square()) and end - start in (2, 3)
        torch.testing.assert_close(grad, wanted[start:end], atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("n, total", [(7, 3), (2, 4), (1, 2), (8, 4), (0, 2)])
def test_parts_are_all_of_a_batch_once_and_of_nearly_one_size(n, total, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: total)
    bounds = [distributed.bounds(n, rank) for rank in range(total)]
    assert [i for start, end in bounds for i in range(start, end)] == list(range(n))
    sizes = [end - start for start, end in bounds]
    assert max(sizes) - min(sizes) <= 1


def test_what_is_drawn_in_a_step_differs_by_process_and_leaves_no_trace(monkeypatch):
    torch.manual_seed(5)
    state, seen = torch.get_rng_state(), []
    for total, rank, numbers in ((2, 0, (0, 1)), (2, 1, (0, 1)), (2, 0, (0, 2)), (2, 0, (0, 1))):
        monkeypatch.setattr(distributed, "size", lambda total=total: total)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        with distributed.own_draws(*numbers):
            seen.append(torch.rand(()).item())
        assert torch.get_rng_state().equal(state)
    assert len(set(seen)) == 3 and seen[0] == seen[3]
    monkeypatch.setattr(distributed, "size", lambda: 1)
    with distributed.own_draws(0, 1):
        torch.rand(())
    assert not torch.get_rng_state().equal(state), "one process draws as ever"
