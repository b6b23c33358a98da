"""The protocols: what scripts/<method>/*.sh run, where results go, skipping, resuming; the embedded data sets."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dassl.data.datasets import build_dataset
from dassl.infrastructure.command import command
from dassl.utils import read_json
from datasets import catalogue
from datasets.shapes import Shapes
from datasets.shared import drawing
from orthcr.compare import plans
from orthcr.compare.benchmark_datasets import variants_of
from orthcr.compare.plans import format_accuracy, make_run
from orthcr.compare.stages import SHOTS, STAGES, Method, Stages, arguments_of_runs
from orthcr.run.config import setup_cfg
from orthcr.run.runner import main
from scripts import run

REPO = Path(__file__).resolve().parents[1]

METHODS = {"orthcr": "OrthCR", "coop": "CoOp", "zsclip": "ZeroshotCLIP"}
FAST = ("OPTIM.MAX_EPOCH", "2", "TRAINER.ORTHCR.LAYERS", "[-1]", "TRAINER.ORTHCR.BLOCK_SIZE", "16")


def made(planned):
    return make_run(planned, quiet=True)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def stages(tmp_path, data_root):
    """stages(trainer, *opts): on the small Shapes, without the real epochs."""

    def build(trainer="OrthCR", *opts, cfg=""):
        fast = FAST if trainer == "OrthCR" else ()
        return Stages(Method(trainer, cfg, (*fast, *opts)), data_root, tmp_path / "out")

    return build


# ------------------------------------------------------------------ the shell scripts


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("stage", STAGES)
def test_every_method_has_a_script_of_every_stage(name, stage, tmp_path):
    script = REPO / "scripts" / name / f"{stage}.sh"
    echo = tmp_path / "python"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$PYTHONPATH" "$@"\n')
    echo.chmod(0o755)
    words = ["dtd", "2", "OPTIM.LR", "a b"]
    done = subprocess.run(
        ["bash", script, *words],
        env={**os.environ, "PYTHON": str(echo), "PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    path, *rest = done.stdout.splitlines()
    assert Path(path).resolve() == REPO and rest == ["-m", "scripts.run", METHODS[name], stage, *words]
    assert len(script.read_text().splitlines()) == 4, "anything more belongs into run.py"


def test_a_script_runs(tmp_path, data_root):
    """From another folder than the repository."""
    env = {**os.environ, "PYTHON": sys.executable, "DATA": str(data_root), "OUTPUT": "out", "OMP_NUM_THREADS": "1"}
    words = ["bash", REPO / "scripts" / "coop" / "fewshot.sh", "patterns", "1", "1", "OPTIM.MAX_EPOCH", "1"]
    done = subprocess.run(words, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = read_json(tmp_path / "out/fewshot/patterns/CoOp/tiny/shots1/seed1/results.json")
    assert done.stdout.splitlines()[-1] == f"CoOp fewshot patterns 1 1: {results['accuracy']:.1f}"


# ------------------------------------------------------------------ one run after the other


def test_base_to_new(stages, tmp_path):
    m = stages()
    base, new = made(m.base2new_train("shapes", 1)), made(m.base2new_test("shapes", 1))
    where = tmp_path / "out/base2new/shapes/shots16/OrthCR/tiny/seed1"
    assert read_json(where / "results.json") == base and read_json(where / "new" / "results.json") == new
    trained = {"dataset": "Shapes", "classes": "base", "seed": 1, "shots": 16}
    assert base["trained_on"] == new["trained_on"] == trained
    assert (base["classes"], new["classes"]) == ("base", "new") and new["eval_only"] and not base["eval_only"]


def test_transfer(stages, tmp_path):
    m = stages("CoOp", "OPTIM.MAX_EPOCH", "1")
    source, target, variant = (
        made(m.xd_train("shapes", 1)),
        made(m.xd_test("patterns", 1)),
        made(m.dg_test("shapes_fog", 1)),
    )
    where = tmp_path / "out/xd/shapes/shots16/CoOp/tiny/seed1"
    for results, path in ((source, where), (target, where / "eval/patterns"), (variant, where / "eval/shapes_fog")):
        assert results == read_json(path / "results.json")
        assert results["trained_on"] == {"dataset": "Shapes", "classes": "all", "seed": 1, "shots": 16}
    assert [r["dataset"] for r in (source, target, variant)] == ["Shapes", "Patterns", "ShapesFog"]


def test_finished_runs_are_skipped(stages, monkeypatch):
    m = stages("CoOp", "OPTIM.MAX_EPOCH", "1")
    first = [made(m.fewshot("shapes", 1, 1)), made(m.base2new_train("shapes", 1)), made(m.base2new_test("shapes", 1))]

    def refuse(*args):
        raise AssertionError("it was run again")

    monkeypatch.setattr(plans, "run", refuse)
    assert first == [
        made(m.fewshot("shapes", 1, 1)),
        made(m.base2new_train("shapes", 1)),
        made(m.base2new_test("shapes", 1)),
    ]
    with pytest.raises(AssertionError, match="again"):
        made(m.fewshot("shapes", 1, 2))
    with pytest.raises(ValueError, match="OPTIM.MAX_EPOCH 1, not 2"):  # not passed off as the run asked for
        made(stages("CoOp", "OPTIM.MAX_EPOCH", "2").fewshot("shapes", 1, 1))


def test_what_is_finished_otherwise_is_not_passed_off(stages, tmp_path):
    """TEST.* changes the figure, though not the model."""
    m = stages("CoOp", "OPTIM.MAX_EPOCH", "1", "TEST.SPLIT", "val")
    assert made(m.fewshot("patterns", 1, 1))["split"] == "val"
    with pytest.raises(ValueError, match="TEST.SPLIT val, not test"):
        made(stages("CoOp", "OPTIM.MAX_EPOCH", "1").fewshot("patterns", 1, 1))
    results = tmp_path / "out/fewshot/patterns/CoOp/tiny/shots1/seed1/results.json"
    results.write_text(results.read_text()[:50])
    with pytest.raises(ValueError, match=f"{results} is cut off.*or remove it"):
        made(m.fewshot("patterns", 1, 1))
    assert format_accuracy({"accuracy": 12.34}) == "12.3" and format_accuracy({}) == "trained, not tested"


def test_a_model_trained_again_is_tested_again(stages, tmp_path, monkeypatch):
    m = stages("CoOp", "OPTIM.MAX_EPOCH", "1")
    made(m.xd_train("patterns", 1))
    where = tmp_path / "out/xd/patterns/shots16/CoOp/tiny/seed1"
    monkeypatch.setattr(Stages, "source_dir", lambda self, dataset, seed: where)
    made(m.xd_test("outlines", 1))
    done = where / "eval/outlines/results.json"
    done.write_text('{"accuracy": 0.5}')  # which no new one has
    assert made(m.xd_test("outlines", 1))["accuracy"] == 0.5
    os.utime(where / "results.json", (done.stat().st_mtime + 1,) * 2)
    assert made(m.xd_test("outlines", 1))["accuracy"] > 1


def test_unfinished_runs_go_on(stages, tmp_path, capsys):
    m = stages("CoOp", "OPTIM.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_FREQ", "1")
    whole = made(m.fewshot("shapes", 1, 1))
    where = tmp_path / "out/fewshot/shapes/CoOp/tiny/shots1/seed1"
    (where / "results.json").unlink()
    (where / "prompt_learner/model.pth.tar-2").unlink()
    again = make_run(m.fewshot("shapes", 1, 1))
    assert "Will resume training after epoch 1" in capsys.readouterr().out
    assert again["accuracy"] == whole["accuracy"]


def test_another_config_has_a_folder_of_its_own(stages, tmp_path):
    m = stages()
    assert m.base_dir("shapes", 3) == tmp_path / "out/base2new/shapes/shots16/OrthCR/tiny/seed3"
    assert m.base_dir("dtd", 3) == tmp_path / "out/base2new/dtd/shots16/OrthCR/vit_b16/seed3"
    assert stages("CoOp").base_dir("shapes", 3) == tmp_path / "out/base2new/shapes/shots16/CoOp/tiny/seed3"
    m = stages(cfg="vit_b32")
    assert m.base_dir("shapes", 3) == tmp_path / "out/base2new/shapes/shots16/OrthCR/vit_b32/seed3"
    assert m.source_dir("imagenet", 1) == tmp_path / "out/xd/imagenet/shots16/OrthCR/vit_b32/seed1"


def test_coop_runs_as_published(stages, tmp_path, monkeypatch):
    """Epochs of CoOp's paper by shots with 16 random vectors; elsewhere CoCoOp's start; 50 epochs on ImageNet."""
    seen = []

    def note(args):
        cfg = setup_cfg(args)
        seen.append((cfg.OPTIM.MAX_EPOCH, cfg.TRAINER.COOP.CTX_INIT or cfg.TRAINER.COOP.N_CTX, cfg.OUTPUT_DIR))
        return {}

    monkeypatch.setattr(plans, "run", note)
    m, out = stages("CoOp"), tmp_path / "out"
    for shots in SHOTS:
        made(m.fewshot("dtd", 1, shots))
    assert [few[:2] for few in seen] == [(50, 16), (100, 16), (100, 16), (200, 16), (200, 16)]
    assert seen[0][2] == str(out / "fewshot/dtd/CoOp/vit_b16_ep50/shots1/seed1")
    seen.clear()
    (
        made(m.base2new_train("dtd", 1)),
        made(m.base2new_train("imagenet", 1)),
        made(m.xd_train("imagenet", 1)),
        made(m.fewshot("imagenet", 1, 16)),
    )
    assert [few[:2] for few in seen] == [(200, "a photo of a"), *[(50, "a photo of a")] * 2, (50, 16)]
    assert seen[2][2] == str(out / "xd/imagenet/shots16/CoOp/vit_b16_ep50_ctxv1/seed1")


def test_what_all_means():
    def listed(stage, dataset="all", seed="all", shots="all", trained=True):
        return list(arguments_of_runs(stage, dataset, seed, shots, trained))

    assert listed("base2new_train", "dtd") == [("dtd", 1), ("dtd", 2), ("dtd", 3)]
    assert listed("base2new_test", "dtd", "2") == [("dtd", 2)]
    assert len(listed("base2new_train")) == 33
    assert listed("fewshot", "dtd", "3") == [("dtd", 3, k) for k in (1, 2, 4, 8, 16)]
    assert listed("fewshot", "dtd", "3", "4") == [("dtd", 3, 4)]
    assert listed("xd_train", seed="1") == [("imagenet", 1)]
    targets = [name for name, _ in listed("xd_test", seed="1")]
    assert len(targets) == 10 and "imagenet" not in targets and set(targets) < set(catalogue.stems())
    assert [name for name, _ in listed("dg_test", seed="1")] == [
        "imagenetv2",
        "imagenet_sketch",
        "imagenet_a",
        "imagenet_r",
    ]
    assert listed("fewshot", "dtd", trained=False) == [("dtd", 1, 16)], "zero-shot does not depend on either"
    assert variants_of("shapes") == ["shapes_fog", "shapes_night", "shapes_neon", "shapes_scribble"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["OrthCR", "base2new_train", "dtdd", "1"], 'do you mean "dtd"'),
        (["OrthCRR", "base2new_train", "dtd", "1"], 'do you mean "OrthCR"'),
        (["OrthCR", "base2new_train", "dtd", "1"], "DescribableTextures needs the folder"),
        (["OrthCR", "xd_train", "shapes_fog", "1", "VERBOSE", "False"], "ShapesFog is for testing only"),
        (["OrthCR", "base2new_train"], "needs a DATASET"),
        (["OrthCR", "base2new_train", "dtd", "one"], "takes DATASET [SEED]"),
        (["OrthCR", "fewshot", "dtd", "1", "2", "3"], "takes DATASET [SEED [SHOTS]]"),
        (["OrthCR", "xd_test", "dtd", "1"], "there is no finished training in"),
        (["OrthCR", "dg_test", "1"], "OrthCR dg_test imagenet_sketch 1: there is no finished"),
        (["OrthCR", "dg_test", "digits", "1"], "digits is no variant of shapes (these are: shapes_fog"),
        (["OrthCR", "fewshot", "dtd", "1", "0"], "SHOTS is 0: give 1 or more"),
        (["OrthCR", "base2new_train", "dtd", "1"], "(here DATA in the environment stands for --root"),
        (["OrthCR", "fewshot", "dtd", "1", "DATASET.NUM_SHOTS", "4"], "DATASET.NUM_SHOTS is set by the words"),
    ],
)
def test_bad_words_get_one_line(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    try:
        status = command(lambda: run.main(words))
    except SystemExit as stop:  # argparse
        status = stop.code
    err = capsys.readouterr().err
    assert status and told in err and "Traceback" not in err, err


def test_a_data_set_of_ones_own(monkeypatch, tmp_path):
    """One YAML in configs/datasets makes it; no table knows it."""
    shutil.copytree(REPO / "configs" / "datasets", tmp_path / "datasets")
    (tmp_path / "datasets" / "mine.yaml").write_text("DATASET: {NAME: Mine}")
    monkeypatch.setattr(catalogue, "CONFIGS", tmp_path / "datasets")
    monkeypatch.setattr(catalogue, "stems", catalogue.stems.__wrapped__)
    m = Stages(Method("OrthCR"), tmp_path / "data", tmp_path / "out")
    assert m.base2new_train("mine", 1).folder == tmp_path / "out/base2new/mine/shots16/OrthCR/vit_b16/seed1"
    assert m.xd_test("mine", 2).model == tmp_path / "out/xd/imagenet/shots16/OrthCR/vit_b16_cross_datasets/seed2"
    with pytest.raises(ValueError, match="no variant of imagenet"):
        m.dg_test("mine", 1)
    with pytest.raises(ValueError, match='do you mean "mine"'):
        m.fewshot("minne", 1, 1)


def test_nothing_is_trained_on_a_variant(data_root, tmp_path, capsys):
    argv = ["--dataset-config-file", str(REPO / "configs/datasets/shapes_fog.yaml"), "--root", str(data_root)]
    assert main([*argv, "--output-dir", str(tmp_path / "a")]) == 1
    assert "ShapesFog is for testing only" in capsys.readouterr().err
    assert main([*argv, "--output-dir", str(tmp_path / "b"), "--trainer", "ZeroshotCLIP"]) == 0


# ------------------------------------------------------------------ the embedded targets


@pytest.mark.parametrize(
    ("name", "classes", "test"),
    [
        ("digits", 10, 535),
        ("colours", 8, 320),
        ("patterns", 5, 200),
        ("outlines", 10, 400),
        ("compositions", 60, 600),
        ("shapes_fog", 40, 400),
        ("shapes_night", 40, 400),
        ("shapes_neon", 40, 400),
        ("shapes_scribble", 40, 400),
    ],
)
def test_embedded_data_sets(name, classes, test, make_cfg):
    data = build_dataset(make_cfg(dataset=name, trainer="ZeroshotCLIP"))
    assert (data.num_classes, len(data.test)) == (classes, test)
    assert len({item.impath for item in data.test}) == test
    if name.startswith("shapes_"):
        assert data.test_only and data.classnames == [drawing.name(c) for c in Shapes.compositions()]
        assert data.train_x == data.test
    else:
        assert len(data.train_x) == 2 * classes and not {i.impath for i in data.train_x} & {i.impath for i in data.test}
    with Image.open(data.test[-1].impath) as image:
        assert image.size == (32, 32) and np.asarray(image).std() > 1


def test_no_target_shows_what_the_tiny_clip_has_seen():
    seen, shapes = set(drawing.SEEN), set(Shapes.compositions())
    from datasets.shape_parts import Colours, Compositions, Outlines, Patterns
    from datasets.shapes_variants import ShapesVariant

    assert not set(Compositions.compositions()) & (seen | shapes) and len(Compositions.compositions()) == 60
    for part in (Colours, Patterns, Outlines):
        assert part.style not in drawing.SEEN_STYLES
        assert [c for c in drawing.UNSEEN if c[part.part] == part.names[0]]
    styles = {cls.style for cls in ShapesVariant.__subclasses__()}
    assert len(styles) == 4 and not styles & {*drawing.SEEN_STYLES, Shapes.style}


def test_the_picture_is_of_its_class(data_root, make_cfg):
    """Pictures of two colours vary more in the middle than those of one."""
    data = build_dataset(make_cfg(dataset="patterns", trainer="ZeroshotCLIP"))
    spread = {}
    for item in data.test:
        middle = np.asarray(Image.open(item.impath), float)[12:20, 12:20]
        spread.setdefault(item.classname, []).append(middle.std((0, 1)).mean())
    assert np.mean(spread["checkered"]) > 1.3 * np.mean(spread["plain"])
