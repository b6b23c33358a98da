"""train.py --print-config: the merged config as a config file, and the plan that it comes to, without weights."""

import re

import pytest
import yaml

from dassl.config import flatten
from orthcr.run import runner
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import config_values
from orthcr.run.flags import parse
from orthcr.run.runner import main


def printed(capsys, *words):
    """The config that is printed, and the lines of the plan by name."""
    assert main(["--print-config", *map(str, words)]) == 0
    text = capsys.readouterr().out
    plan = dict(re.fullmatch(r"# (.+?): +(.+)", line).groups() for line in text.splitlines() if line.startswith("#"))
    return yaml.unsafe_load(text), plan, text


@pytest.fixture
def no_weights(monkeypatch):
    def refuse(*words):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("trainers.base.load_clip", refuse)


@pytest.mark.parametrize(
    "name, opts",
    [
        ("OrthCR", ["TRAINER.ORTHCR.REACH", 0.02]),
        ("OrthCR", ["OPTIM.MAX_EPOCH", 3, "OPTIM.LR", 0.003]),
        ("CLIPLoRA", ["TRAINER.CLIPLORA.N_ITERS", 7]),
        ("CoOp", []),
        ("DePT", []),
        ("TipAdapterF", []),
        ("TwoStageFS", []),
    ],
)
def test_the_plan_is_that_of_the_trainer(name, opts, pictures, tmp_path, capsys, monkeypatch):
    """The trainer itself, with its optimizer and its loader, has the rate and the number of steps."""
    words = ["--root", pictures, "--trainer", name, "--output-dir", tmp_path / "out", "DATASET.NUM_SHOTS", 3, *opts]
    config, plan, text = printed(capsys, *words)
    assert not (tmp_path / "out").exists()
    spec = parse([str(word) for word in words])
    cfg = setup_cfg(spec)
    assert flatten(config) == flatten(yaml.unsafe_load(cfg.dump()))
    trainer = runner.build(cfg)
    steps = trainer.max_epoch * len(trainer.train_loader_x)
    assert plan["epochs"] == str(trainer.max_epoch) and plan["steps"].startswith(f"{steps:,} = ")
    rates = sorted({float(word) for word in re.findall(r"\d[\d.]*(?:e-\d+)?", plan["learning rate"])})
    assert rates == pytest.approx(sorted(set(trainer.sched.base_lrs)), rel=1e-5)
    capsys.readouterr()
    (tmp_path / "printed.yaml").write_text(text)
    again = setup_cfg(parse(["--config-file", str(tmp_path / "printed.yaml"), "--trainer", name]))
    assert (
        config_values(again)["OPTIM.LR"] == config_values(cfg)["OPTIM.LR"]
        and config_values(again)["DATASET.NUM_SHOTS"] == 3
    )


@pytest.mark.usefixtures("no_weights")
def test_what_is_missing_without_data(tmp_path, capsys):
    root = ["--root", tmp_path / "none"]
    _, plan, _ = printed(capsys, *root, "TRAINER.ORTHCR.REACH", 0.02)
    assert plan["learning rate"] == "unknown: REACH 0.02 / sqrt(steps)" and plan["epochs"] == "40"
    assert plan["steps"] == f"unknown without the number of training images: Shapes is not drawn yet in {root[1]}"
    pets = ["--dataset-config-file", "configs/datasets/oxford_pets.yaml", *root]
    _, plan, _ = printed(capsys, *pets, "--trainer", "CLIPLoRA", "TRAINER.CLIPLORA.N_ITERS", 9, "DATASET.NUM_SHOTS", 4)
    assert plan["epochs"] == "unknown: 36 steps, rounded to whole epochs" and float(plan["learning rate"]) > 0
    assert str(root[1]) in plan["steps"] and not (tmp_path / "none").exists()


@pytest.mark.usefixtures("no_weights")
def test_nothing_is_trained(pictures, capsys):
    assert printed(capsys, "--root", pictures, "--trainer", "ZeroshotCLIP")[1]["training"].startswith("none")
    _, plan, _ = printed(capsys, "--root", pictures, "--trainer", "GDA")
    assert plan["learning rate"] == "none" and plan["steps"] == "none"
    _, plan, _ = printed(capsys, "--root", pictures, "--eval-only")
    assert list(plan) == ["training"]


def test_wrong_values_are_one_line(capsys):
    assert main(["--print-config", "OPTIM.LR", "-1"]) == 1
    assert capsys.readouterr().err.startswith("error: OPTIM.LR")
