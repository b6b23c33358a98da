"""Runs that were interrupted end as if they had not been; their checkpoints hold what that takes, and no more."""

import contextlib
import json
import os

import pytest
import torch
import yaml

from dassl.engine import TRAINER_REGISTRY, TrainerBase
from dassl.utils import tools
from orthcr.run.runner import main

SMALL = {"OrthCR": ["TRAINER.ORTHCR.LAYERS", "[-1]", "TRAINER.ORTHCR.BLOCK_SIZE", "16"], "CoOp": ["OPTIM.LR", "0.05"]}
FOLDER = {"OrthCR": "rotations", "CoOp": "prompt_learner", "MMA": "adapter_learner"}
FOLDER |= {"DePT": "PromptLearner", "CoPrompt": "MultiModalPromptLearner"}
RANDOM = ["INPUT.TRANSFORMS", "['random_resized_crop','random_flip','cutout','normalize']"]
NOT_COMPARED = ("seconds", "peak_memory_mib", "sha256")


@pytest.fixture
def every_epoch(monkeypatch):
    """A checkpoint to resume from after every epoch."""
    monkeypatch.setattr(TrainerBase, "resume_interval", 0.0)


@pytest.fixture
def run(tmp_path, pictures):
    """run("a", ...) -> exit code of a small training on Shapes base into tmp_path/a."""

    def run(out, *opts, trainer="OrthCR", seed=1, epochs=3, flags=()):
        argv = ["--root", pictures, "--output-dir", tmp_path / out, "--seed", seed, "--trainer", trainer, *flags]
        argv += [
            "VERBOSE",
            False,
            "DATASET.SUBSAMPLE_CLASSES",
            "base",
            "DATASET.NUM_SHOTS",
            4,
            "OPTIM.MAX_EPOCH",
            epochs,
        ]
        return main([str(word) for word in [*argv, *SMALL.get(trainer, []), *opts]])

    return run


@contextlib.contextmanager
def interrupted(trainer, epoch, batch=1):
    """Ctrl-C in that batch of that epoch, both counted from 0."""
    cls = TRAINER_REGISTRY.get(trainer)
    step = cls.forward_backward

    def forward_backward(self, *args):
        if (self.epoch, self.batch_idx) == (epoch, batch):
            raise KeyboardInterrupt
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "forward_backward", forward_backward)
        yield


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
    return a == b or (a != a and b != b)  # NaN


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
        for key in ("OUTPUT_DIR", "RESUME"):
            del result["config"][key]
    assert results[0] == results[1]


def checkpoints(out, trainer="OrthCR"):
    return sorted(p.name for p in (out / FOLDER[trainer]).iterdir())


# ------------------------------------------------------------------ resuming


@pytest.mark.parametrize(
    "trainer, opts, extra",
    [
        ("OrthCR", [*RANDOM, "DATALOADER.NUM_WORKERS", "2"], []),
        ("OrthCR", ["INPUT.TRANSFORMS", "['normalize']"], []),
        ("CoOp", ["TEST.FINAL_MODEL", "best_val", "OPTIM.LR", "1.0"], ["model-best.pth.tar"]),
        *[(name, [], []) for name in ("MMA", "DePT", "CoPrompt")],
    ],
    ids="OrthCR-random OrthCR-features CoOp-best MMA DePT CoPrompt".split(),
)
def test_an_interrupted_run_ends_bit_for_bit_as_the_whole_one(trainer, opts, extra, run, tmp_path, every_epoch):
    assert run("whole", *opts, trainer=trainer) == 0
    for epoch in (1, 2):
        with interrupted(trainer, epoch):
            assert run("parts", *opts, trainer=trainer) == 130
        assert f"model.pth.tar-{epoch}" in checkpoints(tmp_path / "parts", trainer)
        assert not (tmp_path / "parts" / "results.json").exists()
    assert run("parts", *opts, trainer=trainer) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 3, extra)
    for out in ("whole", "parts"):
        assert checkpoints(tmp_path / out, trainer) == sorted(["checkpoint", *extra, "model.pth.tar-3"])
        assert (tmp_path / out / FOLDER[trainer] / "checkpoint").read_text().strip() == "model.pth.tar-3"


def test_a_resumed_run_turns_exact_rotations_on_where_the_whole_one_did(run, tmp_path, every_epoch, capsys):
    """The learning rate is so high that the fast ones lose their digits."""
    opts = ["OPTIM.LR", "30", "TRAINER.ORTHCR.BLOCK_SIZE", "64"]
    said = "epoch 3: |R^T R - I| is"
    assert run("whole", *opts) == 0
    assert said in capsys.readouterr().out
    with interrupted("OrthCR", 2):
        assert run("parts", *opts) == 130
    assert run("parts", *opts) == 0
    assert said in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 3)


def test_checkpoints_asked_for_stay_and_temporary_ones_go(run, tmp_path, every_epoch):
    with interrupted("CoOp", 3):
        assert run("out", "TRAIN.CHECKPOINT_FREQ", "2", trainer="CoOp", epochs=5) == 130
    assert checkpoints(tmp_path / "out", "CoOp") == ["checkpoint", "model.pth.tar-2", "model.pth.tar-3"]
    assert run("out", "TRAIN.CHECKPOINT_FREQ", "2", trainer="CoOp", epochs=5) == 0
    assert checkpoints(tmp_path / "out", "CoOp") == ["checkpoint", *(f"model.pth.tar-{n}" for n in (2, 4, 5))]


def test_no_checkpoint_in_between_unless_the_last_is_old(run, tmp_path):
    with interrupted("CoOp", 2):
        assert run("out", trainer="CoOp") == 130
    assert not (tmp_path / "out" / "prompt_learner").exists()


def test_resume_of_another_directory_goes_on_from_its_temporary_checkpoint(run, tmp_path, every_epoch):
    assert run("whole", trainer="CoOp") == 0
    with interrupted("CoOp", 1):
        assert run("first", trainer="CoOp") == 130
    assert run("second", trainer="CoOp", flags=("--resume", str(tmp_path / "first"))) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "second", 3)


def test_an_interrupted_resume_goes_on_from_its_own_checkpoints(run, tmp_path, every_epoch, capsys):
    with interrupted("CoOp", 2):
        assert run("first", "TRAIN.CHECKPOINT_FREQ", "1", trainer="CoOp", epochs=5) == 130

    def again():
        flags = ("--resume", str(tmp_path / "first"))
        return run("second", "TRAIN.CHECKPOINT_FREQ", "1", trainer="CoOp", epochs=5, flags=flags)

    with interrupted("CoOp", 4):
        assert again() == 130
    capsys.readouterr()
    assert again() == 0
    assert "resume training after epoch 4" in capsys.readouterr().out


def test_runs_whose_config_has_keys_that_are_gone(run, tmp_path, every_epoch, capsys):
    """Their training goes on, and their model is evaluated, as the same command says."""
    with interrupted("CoOp", 1):
        assert run("old", trainer="CoOp", epochs=2) == 130
    path = tmp_path / "old" / "config.yaml"
    old = yaml.safe_load(path.read_text()) | {"VERSION": 1}
    old["DATASET"] |= {"NUM_LABELED": -1, "VAL_PERCENT": 0.1, "STL10_FOLD": -1, "CIFAR_C_TYPE": ""}
    old["DATASET"] |= {"CIFAR_C_LEVEL": 1, "ALL_AS_UNLABELED": False}
    path.write_text(yaml.safe_dump(old))
    assert run("old", trainer="CoOp", epochs=2) == 0, capsys.readouterr().err
    assert "VERSION" not in path.read_text()

    path.write_text(yaml.safe_dump(old))
    flags = ("--eval-only", "--model-dir", str(tmp_path / "old"))
    assert run("eval", trainer="CoOp", epochs=2, flags=flags) == 0, capsys.readouterr().err


def test_same_seed_same_weights_other_seed_others(run, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert run(out, "TEST.NO_TEST", "True", trainer="CoOp", seed=seed, epochs=1) == 0
    a, b, c = (load(tmp_path / out / "prompt_learner" / "model.pth.tar-1")["state_dict"]["ctx"] for out in "abc")
    assert torch.equal(a, b) and not torch.equal(a, c)


# ------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("trainer", ["OrthCR", "CoOp"])
def test_checkpoints_hold_the_trained_tensors_only(trainer, run, tmp_path):
    assert run("out", "TEST.NO_TEST", "True", trainer=trainer, epochs=1) == 0
    kept = load(tmp_path / "out" / FOLDER[trainer] / "model.pth.tar-1")
    assert (
        sum(t.numel() for t in kept["state_dict"].values())
        == (json.loads((tmp_path / "out" / "results.json").read_text())["trainable_params"])
    )
    assert all(t.abs().sum() > 0 for t in kept["state_dict"].values()), "one step moved every one of them"
    assert kept["epoch"] == 1 and kept["scheduler"]["last_epoch"] == 1


def test_a_crash_while_saving_leaves_the_checkpoint_before_whole(run, tmp_path, every_epoch, monkeypatch, capsys):
    out = tmp_path / "parts" / "prompt_learner"
    assert run("whole", trainer="CoOp") == 0
    replace, save = os.replace, torch.save

    def no_replace(source, target):
        if str(target).endswith("model.pth.tar-2"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    def half_a_save(state, file):
        if state["epoch"] == 3:
            file.write(b"PK half of it")
            raise OSError(28, "No space left on device")
        save(state, file)

    for patch, last in (((tools.os, "replace", no_replace), 1), ((torch, "save", half_a_save), 2)):
        with monkeypatch.context() as m:
            m.setattr(*patch)
            assert run("parts", trainer="CoOp") == 1
        assert "error: No space left on device" in capsys.readouterr().err
        assert sorted(os.listdir(out)) == ["checkpoint", f"model.pth.tar-{last}"], "no half-written file is left"
        assert (out / "checkpoint").read_text().strip() == f"model.pth.tar-{last}"
        assert load(out / f"model.pth.tar-{last}")["epoch"] == last
    assert run("parts", trainer="CoOp") == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts", 3)
    assert checkpoints(tmp_path / "parts", "CoOp") == ["checkpoint", "model.pth.tar-3"]


def test_a_kill_before_the_old_checkpoint_is_deleted_leaves_no_litter(run, tmp_path, every_epoch, monkeypatch):
    def kill(path):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr("dassl.engine.trainer.os.remove", kill)
        assert run("out", trainer="CoOp") == 130
    assert run("out", trainer="CoOp") == 0
    assert checkpoints(tmp_path / "out", "CoOp") == ["checkpoint", "model.pth.tar-3"]


def test_a_directory_holds_the_models_of_one_final_model_only(run, capsys):
    assert run("out", trainer="CoOp", epochs=1) == 0
    assert run("out", "TEST.FINAL_MODEL", "best_val", trainer="CoOp", epochs=1) == 1
    assert "TEST.FINAL_MODEL" in capsys.readouterr().err
