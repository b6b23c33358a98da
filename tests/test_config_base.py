"""`_BASE_` in YAML files: what is merged, in which order, and what is said of bases that do not fit."""

import re
from pathlib import Path

import pytest

from dassl.config import get_cfg_default, merge_config
from orthcr.run.config import setup_cfg
from orthcr.run.flags import parse

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.fixture
def write(tmp_path):
    """write(path, text): that file below tmp_path."""

    def write(path, text):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        return str(tmp_path / path)

    return write


def merged(path):
    cfg = get_cfg_default()
    merge_config(cfg, path)
    return cfg


def refused(path, kind=ValueError):
    """The one line that is said of a file; nothing of it is merged."""
    cfg = get_cfg_default()
    with pytest.raises(kind) as error:
        merge_config(cfg, path)
    assert cfg == get_cfg_default() and "\n" not in str(error.value)
    return str(error.value)


def test_a_chain_in_which_later_files_win(write, tmp_path, monkeypatch):
    write("backbones/clip.yaml", "SEED: 1\nOPTIM:\n  LR: 1.0\n  GAMMA: 1.0\nMODEL:\n  BACKBONE:\n    NAME: clip\n")
    write("backbones/vit.yaml", "_BASE_: clip.yaml\nOPTIM:\n  LR: 2.0\n  GAMMA: 2.0\n")
    path = write("trainers/CoOp/vit.yaml", "_BASE_: ../../backbones/vit.yaml\nOPTIM:\n  LR: 3.0\n")
    cfg = merged(path)
    assert (cfg.SEED, cfg.MODEL.BACKBONE.NAME, cfg.OPTIM.GAMMA, cfg.OPTIM.LR) == (1, "clip", 2.0, 3.0)
    assert "_BASE_" not in cfg
    for folder, given in ((tmp_path, "trainers/CoOp/vit.yaml"), (tmp_path / "trainers" / "CoOp", "vit.yaml")):
        monkeypatch.chdir(folder)  # a base is looked for beside its file, not in the current folder
        assert merged(given) == merged(Path(given)) == cfg


def test_several_bases_are_merged_in_their_order(write):
    write("common.yaml", "SEED: 1\n")
    write("a.yaml", "_BASE_: common.yaml\nSEED: 2\nOPTIM:\n  LR: 2.0\n")
    write("b.yaml", "OPTIM:\n  LR: 3.0\n  GAMMA: 3.0\n")
    cfg = merged(write("c.yaml", "_BASE_: [a.yaml, b.yaml]\nOPTIM:\n  GAMMA: 4.0\n"))
    assert (cfg.SEED, cfg.OPTIM.LR, cfg.OPTIM.GAMMA) == (2, 3.0, 4.0)
    assert merged(write("only.yaml", "_BASE_: c.yaml\n")) == cfg


def test_a_base_that_is_not_there_names_both_files(write, tmp_path):
    path = write("c.yaml", "_BASE_: bases/vit_b61.yaml\n")
    write("bases/vit_b16.yaml", "SEED: 1\n")
    said = refused(path, FileNotFoundError)
    assert str(tmp_path / "bases" / "vit_b61.yaml") in said and path in said and "has vit_b16.yaml" in said


@pytest.mark.parametrize("first", ["c.yaml", "a.yaml", "inner/../a.yaml"])
def test_a_circle_is_told(first, write):
    write("inner/b.yaml", "_BASE_: ../c.yaml\n")
    write("a.yaml", "_BASE_: inner/b.yaml\n")
    said = refused(write("c.yaml", f"_BASE_: {first}\n"))
    assert re.fullmatch(r'"_BASE_" goes in a circle: \S+c\.yaml( -> \S+\.yaml)* -> \S+c\.yaml', said)


@pytest.mark.parametrize("base", ["3", "", "{a: 1}", "[a.yaml, 3]"])
def test_a_base_that_is_no_path(base, write):
    path = write("c.yaml", f"_BASE_: {base}\n")
    assert f'"_BASE_" in "{path}" must be the path' in refused(path)


def test_a_fault_is_told_of_the_file_it_is_in(write, tmp_path):
    base = write("base.yaml", "OPTIM:\n  LRR: 1.0\n")
    path = write("c.yaml", "_BASE_: base.yaml\nSEED: 1\n")
    assert refused(path) == f'Unknown config key "OPTIM.LRR" in "{base}", do you mean "OPTIM.LR"?'
    write("base.yaml", "OPTIM:\n  LR: fast\n")
    assert f'"OPTIM.LR" in "{base}" must be of type float' in refused(path)
    write("base.yaml", "OPTIM: [\n")
    assert f'Bad YAML in "{base}"' in refused(path)
    write("base.yaml", "SEED: 1\n")
    assert f'"SEEDS" in "{path}"' in refused(write("c.yaml", "_BASE_: base.yaml\nSEEDS: 1\n"))
    assert "is a directory" in refused(write("c.yaml", "_BASE_: .\n"))


# ------------------------------------------------------------------ those of the repository


def test_clips_constants_are_written_once():
    texts = {path: path.read_text() for path in CONFIGS.rglob("*.yaml")}
    for constant in ("PIXEL_MEAN", "PIXEL_STD", "bicubic"):
        assert [path.name for path, text in texts.items() if constant in text] == ["clip.yaml"]
    names = re.findall(r'BACKBONE:\n    NAME: "(.*)"', "".join(texts.values()))
    assert len(names) == len(set(names)) >= 7, "each backbone is written once"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("backbones/*.yaml")), ids=lambda path: path.stem)
def test_backbones(path):
    cfg = merged(path)
    assert cfg.INPUT.PIXEL_MEAN[0] == 0.48145466 and cfg.INPUT.INTERPOLATION == "bicubic"
    sides = {"tiny": 32, "vit_l14_336px": 336}
    assert cfg.INPUT.SIZE == (sides.get(path.stem, 224),) * 2
    assert bool(cfg.MODEL.BACKBONE.NAME) == (path.stem != "clip")


def test_published_settings_of_coop():
    """As in CoOp's and CoCoOp's own files."""
    for name, epochs, words in (
        ("vit_b16", 200, ""),
        ("vit_b16_ep100", 100, ""),
        ("vit_b16_ep50_ctxv1", 50, "a photo of a"),
    ):
        file = CONFIGS / "trainers" / "CoOp" / f"{name}.yaml"
        cfg = setup_cfg(parse(["--trainer", "CoOp", "--config-file", str(file)]))
        assert (cfg.OPTIM.MAX_EPOCH, cfg.TRAINER.COOP.CTX_INIT, cfg.MODEL.BACKBONE.NAME) == (epochs, words, "ViT-B/16")
        assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.WARMUP_CONS_LR) == ("sgd", 0.002, 1e-5)
        assert (cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.DATALOADER.TEST.BATCH_SIZE) == (32, 100)
        assert cfg.INPUT.SIZE == (224, 224) and cfg.INPUT.PIXEL_STD[2] == 0.27577711
