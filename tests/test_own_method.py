"""A method of somebody's own: without a YAML, with one that comes later, with one that was copied."""

import shutil
from pathlib import Path

import pytest

import trainers
from dassl.engine import TRAINER_REGISTRY
from orthcr.compare.command_line import parse_arguments
from orthcr.compare.schedule import make_plan
from orthcr.compare.stages import Method, Stages
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import discover
from orthcr.run.flags import parse
from trainers.base import ClipTrainer

discover(trainers)


@pytest.fixture
def configs(tmp_path, monkeypatch, root):
    """A copy of configs/ to write into; trainers Mine, and MyOrthCR and MyMaPLe, which extend others."""
    shutil.copytree(root / "configs", tmp_path / "configs")
    for module in ("run.config_files", "run.pairs", "compare.stages"):
        monkeypatch.setattr(f"orthcr.{module}.CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", dict(TRAINER_REGISTRY._obj_map))
    parents = {
        "Mine": ClipTrainer,
        "MyOrthCR": TRAINER_REGISTRY.get("OrthCR"),
        "MyMaPLe": TRAINER_REGISTRY.get("MaPLe"),
    }
    for name, parent in parents.items():
        TRAINER_REGISTRY.register()(type(name, (parent,), {}))
    return tmp_path / "configs"


def settings(trainer, dataset="shapes", cfg=""):
    made = Stages(Method(trainer, cfg)).settings(dataset)
    return str(made.folder), made.file


def test_the_folder_says_which_file_was_taken(configs):
    assert settings("Mine") == ("Mine/tiny_defaults", configs / "backbones" / "tiny.yaml")
    assert settings("Mine", "dtd") == ("Mine/vit_b16_defaults", configs / "backbones" / "vit_b16.yaml")
    assert settings("Mine", "dtd", "tiny") == settings("Mine")
    assert settings("MyOrthCR") == ("MyOrthCR/tiny_of_OrthCR", configs / "trainers/OrthCR/tiny.yaml")
    name, file = settings("MyMaPLe", "dtd")
    assert file == settings("MaPLe", "dtd")[1] and name == f"MyMaPLe/{file.stem}_of_MaPLe"
    for trainer in ("Mine", "MyOrthCR"):
        (configs / "trainers" / trainer).mkdir()
        shutil.copy(configs / "backbones" / "tiny.yaml", configs / "trainers" / trainer)
        assert settings(trainer) == (f"{trainer}/tiny", configs / "trainers" / trainer / "tiny.yaml")
    assert settings("CoOp") == ("CoOp/tiny", configs / "trainers/CoOp/tiny.yaml"), "as ever"


@pytest.mark.parametrize("trainer", ["Mine", "MyOrthCR"])
def test_each_data_set_can_be_planned(configs, trainer):
    args = parse_arguments(["--datasets", "embedded", "dtd", "--seeds", "1"])
    for job in make_plan([Method(trainer)], ["base2new", "fewshot", "xd", "dg"], args):
        run = job.runs[0]
        (name,) = {setup_cfg(run.spec).MODEL.BACKBONE.NAME}
        assert name == ("ViT-B/16" if {"dtd", "imagenet"} & set(run.folder.parts) else "tiny")


def test_a_copied_file(configs, one_line):
    folder = configs / "trainers" / "Mine"
    folder.mkdir()
    shutil.copy(configs / "trainers" / "CoOp" / "tiny.yaml", folder)
    with pytest.raises(FileNotFoundError, match="copy the bases of a copied file too") as caught:
        setup_cfg(parse(["--trainer", "Mine"]))
    assert "base.yaml" in one_line(caught)
    shutil.copy(configs / "trainers" / "CoOp" / "base.yaml", folder)
    with pytest.raises(
        ValueError, match="TRAINER.COOP.CTX_INIT.*has no effect: the keys of Mine are in TRAINER.MINE"
    ) as caught:
        setup_cfg(parse(["--trainer", "Mine"]))
    one_line(caught)
    text = (folder / "tiny.yaml").read_text()
    (folder / "tiny.yaml").write_text(text[: text.index("TRAINER:")])
    assert setup_cfg(parse(["--trainer", "Mine"])).OPTIM == setup_cfg(parse(["--trainer", "CoOp"])).OPTIM
    other = ["--trainer", "Mine", "--config-file", str(configs / "trainers" / "CoOp" / "tiny.yaml")]
    assert setup_cfg(parse(other)).TRAINER.NAME == "Mine", "that of another, from its own folder"


def test_the_defaults_are_told(configs, pictures, tmp_path, capsys):
    from orthcr.run.runner import main

    zero = TRAINER_REGISTRY.get("ZeroshotCLIP")
    TRAINER_REGISTRY._obj_map["Mine"] = type("Mine", (zero,), {"__module__": __name__})
    shutil.rmtree(configs / "trainers" / "ZeroshotCLIP")
    argv = ["--trainer", "Mine", "--root", str(pictures), "--output-dir", str(tmp_path / "out"), "VERBOSE", "False"]
    assert main([*argv, "USE_CUDA", "False"]) == 0
    assert "Mine has no configs/trainers/Mine/tiny.yaml: it runs with the defaults" in capsys.readouterr().out
    assert Path(tmp_path / "out" / "results.json").exists()
