"""The config: defaults, and merging files and options into it."""

import ast
import json

import pytest
from yacs.config import CfgNode

from dassl.config import clean_cfg, flatten, get_cfg_default, merge_config, read_config
from dassl.config.defaults import KEYS, UNREAD
from dassl.config.keys import values


def trainer_cfg():
    cfg = get_cfg_default()
    cfg.TRAINER.ORTHCR = type(cfg)({"LAMBDA": 1.0, "PREC": "fp32", "ANY": None})
    return cfg


def test_config_is_fresh_and_can_be_cleaned():
    first = get_cfg_default()
    first.OPTIM.LR = 7.0
    first.INPUT.PIXEL_MEAN[0] = 7.0
    second = get_cfg_default()
    assert second.OPTIM.LR == 0.0003 and second.INPUT.PIXEL_MEAN[0] == 0.485
    assert (second.SEED, second.OPTIM.ADAM_BETA2, second.OPTIM.STEPSIZE) == (-1, 0.999, (-1,))
    cfg = trainer_cfg()
    cfg.TRAINER.COOP = type(cfg)({"N_CTX": 4})
    clean_cfg(cfg, "OrthCR")
    assert sorted(cfg.TRAINER) == ["NAME", "ORTHCR"]


def test_merge_file_then_options(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "OPTIM:\n  LR: 1e-5\n  MAX_EPOCH: 20\n  STEPSIZE: [5, 10]\nINPUT:\n  SIZE: (32, 48)\n"
        "  PIXEL_STD: (1, 2, 3)\nTRAINER:\n  ORTHCR:\n    LAMBDA: 4\nTEST:\n  # all commented out\n"
    )
    cfg = trainer_cfg()
    merge_config(cfg, path)
    assert (cfg.OPTIM.LR, cfg.OPTIM.MAX_EPOCH, cfg.OPTIM.STEPSIZE) == (1e-5, 20, (5, 10))
    assert cfg.INPUT.SIZE == (32, 48) and cfg.INPUT.PIXEL_STD == [1, 2, 3]
    assert type(cfg.TRAINER.ORTHCR.LAMBDA) is float and cfg.TRAINER.ORTHCR.LAMBDA == 4.0
    opts = ["OPTIM.LR", "1", "OPTIM.STEPSIZE", "(7,)", "DATASET.NAME", "123", "OUTPUT_DIR", "a b"]
    merge_config(cfg, [*opts, "USE_CUDA", "False", "TRAINER.ORTHCR.ANY", "[1]", "SEED", 3])
    assert type(cfg.OPTIM.LR) is float and cfg.OPTIM.LR == 1 and cfg.OPTIM.STEPSIZE == (7,)
    assert (cfg.DATASET.NAME, cfg.OUTPUT_DIR, cfg.USE_CUDA, cfg.SEED) == ("123", "a b", False, 3)
    assert cfg.TRAINER.ORTHCR.ANY == [1]
    merge_config(cfg, [])
    (tmp_path / "empty.yaml").touch()
    merge_config(cfg, str(tmp_path / "empty.yaml"))


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("OPTIM.LRR", "OPTIM.LR"),
        ("TRAINER.ORTHCR.LAMDA", "TRAINER.ORTHCR.LAMBDA"),
        ("OPTIMM.MAX_EPOCH", "OPTIM.MAX_EPOCH"),
        ("optim.lr", "OPTIM.LR"),
        ("SEEDS", "SEED"),
        ("DATASET.NUM_SHOT", "DATASET.NUM_SHOTS"),
        ("SEED.X", "SEED"),
    ],
)
def test_unknown_keys_name_the_nearest(key, nearest, tmp_path, one_line):
    cfg = trainer_cfg()
    with pytest.raises(ValueError) as error:
        merge_config(cfg, ["SEED", "5", key, "1"])
    assert one_line(error) == f'Unknown config key "{key}" on the command line, do you mean "{nearest}"?'
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps({"SEED": 5} | nest(key)))
    with pytest.raises(ValueError) as error:
        merge_config(cfg, str(path))
    assert one_line(error) == f'Unknown config key "{key}" in "{path}", do you mean "{nearest}"?'
    assert cfg == trainer_cfg()  # nothing is merged by halves


def nest(key):
    tree = 1
    for name in reversed(key.split(".")):
        tree = {name: tree}
    return tree


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("OPTIM.LR", "fast", "float"),
        ("OPTIM.LR", "True", "float"),
        ("OPTIM.MAX_EPOCH", "1.5", "int"),
        ("USE_CUDA", "1", "bool"),
        ("INPUT.SIZE", "32", "tuple"),
        ("INPUT.PIXEL_MEAN", "grey", "list"),
    ],
)
def test_wrong_types(key, value, wanted, one_line):
    with pytest.raises(ValueError) as error:
        merge_config(get_cfg_default(), [key, value])
    assert key in one_line(error) and value in str(error.value) and f"type {wanted}," in str(error.value)


def test_other_config_errors(tmp_path, one_line):
    cfg = get_cfg_default()
    (tmp_path / "vit_b16.yaml").write_text("OPTIM:\n  LR: [1\nSEED: 2\n")
    (tmp_path / "rn50.yaml").write_text("- 1\n")
    (tmp_path / "prec.yaml").write_text("DATASET:\n  NAME: no\n")
    with pytest.raises(FileNotFoundError, match=r"vit_b6\.yaml.*vit_b16\.yaml") as error:
        merge_config(cfg, str(tmp_path / "vit_b6.yaml"))
    one_line(error)
    with pytest.raises(FileNotFoundError, match="folder does not exist") as error:
        merge_config(cfg, str(tmp_path / "no" / "x.yaml"))
    one_line(error)
    with pytest.raises(ValueError, match="is a directory"):
        merge_config(cfg, str(tmp_path))
    with pytest.raises(ValueError, match=r"vit_b16\.yaml.*line 3") as error:
        merge_config(cfg, str(tmp_path / "vit_b16.yaml"))
    one_line(error)
    with pytest.raises(ValueError, match=r"rn50\.yaml"):
        merge_config(cfg, str(tmp_path / "rn50.yaml"))
    with pytest.raises(ValueError, match="DATASET.NAME.*type str, got False"):
        merge_config(cfg, str(tmp_path / "prec.yaml"))
    with pytest.raises(ValueError, match="3 words: SEED 1 OPTIM.LR") as error:
        merge_config(cfg, ["SEED", "1", "OPTIM.LR"])
    one_line(error)
    with pytest.raises(ValueError, match='"OPTIM" on the command line is a section'):
        merge_config(cfg, ["OPTIM", "1"])
    assert cfg == get_cfg_default()
    cfg.freeze()
    with pytest.raises(AttributeError):
        merge_config(cfg, ["SEED", "1"])


def test_allow_new(tmp_path):
    cfg = get_cfg_default()
    path = tmp_path / "c.yaml"
    path.write_text("TRAINER:\n  COOP:\n    N_CTX: 16\n    DEEP:\n      W: (1, 2)\n  MAPLE:\nSEED: 2\n")
    with pytest.raises(ValueError, match="TRAINER.COOP.N_CTX"):
        merge_config(cfg, str(path), allow_new=("TRAINER.MAPLE",))
    merge_config(cfg, str(path), allow_new=("TRAINER.COOP", "TRAINER.MAPLE"))
    assert (cfg.TRAINER.COOP.N_CTX, cfg.TRAINER.COOP.DEEP.W, cfg.SEED) == (16, (1, 2), 2)
    with pytest.raises(ValueError, match="TRAINER.COOPX.A"):
        merge_config(cfg, ["TRAINER.COOPX.A", "1"], allow_new=("TRAINER.COOP",))
    with pytest.raises(ValueError, match="section"):
        merge_config(cfg, ["TRAINER.COOP", "1"], allow_new=("TRAINER.COOP",))


# ---------------------------------------------------------------- keys that nothing reads


def test_every_default_is_read_somewhere(root):
    folders = [root / name for name in ("dassl", "trainers", "datasets", "orthcr")]
    files = [*root.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))]
    read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    gets = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get"]
    read |= {node.args[0].value for node in gets if node.args and isinstance(node.args[0], ast.Constant)}
    leaves = {key: key.split(".")[-1] for key in flatten(get_cfg_default()) if key not in UNREAD}
    assert not [key for key, leaf in leaves.items() if leaf not in read]


OLD = """
VERSION: 1
VERBOSE: true
TRAINER:
  NAME: CoOp
SEED: 3
DATASET:
  NAME: Shapes
  NUM_LABELED: -1
  VAL_PERCENT: 0.1
  STL10_FOLD: 4
  CIFAR_C_TYPE: ''
  CIFAR_C_LEVEL: 1
  ALL_AS_UNLABELED: false
"""


def test_unread_keys_are_defaults_for_yacs(tmp_path):
    """Other people's train.py merges YAML files into `get_cfg_default()` with yacs itself."""
    path = tmp_path / "their.yaml"
    path.write_text(OLD)
    cfg = get_cfg_default()
    assert {key: flatten(cfg)[key] for key in UNREAD} == UNREAD
    cfg.merge_from_file(str(path))
    cfg.merge_from_list(["DATASET.ALL_AS_UNLABELED", "True"])
    assert (cfg.DATASET.STL10_FOLD, cfg.DATASET.ALL_AS_UNLABELED) == (4, True)


def test_unread_keys_have_no_effect_here_and_a_line_says_so(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(OLD)
    assert read_config(path) == {"SEED": 3, "DATASET.NAME": "Shapes", "TRAINER.NAME": "CoOp", "VERBOSE": True}
    cfg = CfgNode(values(KEYS))  # as this project's train.py starts
    assert not flatten(cfg).keys() & set(UNREAD)
    merge_config(cfg, path)
    said = capsys.readouterr().out
    assert f'DATASET.STL10_FOLD in "{path}" has no effect' in said and said.count("\n") == 1
    merge_config(cfg, ["DATASET.VAL_PERCENT", "0.2", "SEED", "4"])
    assert "DATASET.VAL_PERCENT on the command line has no effect" in capsys.readouterr().out
    merge_config(cfg, ["DATASET.VAL_PERCENT", "0.1", "DATASET.CIFAR_C_TYPE", ""])
    assert capsys.readouterr().out == "", "at their defaults nothing is lost"
    assert (cfg.SEED, cfg.DATASET.NAME) == (4, "Shapes") and not flatten(cfg).keys() & set(UNREAD)
    with pytest.raises(ValueError, match="STL10_FOLDS"):
        merge_config(get_cfg_default(), ["DATASET.STL10_FOLDS", "1"])

    cfg.DATASET.VAL_PERCENT = 0.1  # somebody's data set declares it: then it is a key like any other
    merge_config(cfg, ["DATASET.VAL_PERCENT", "0.2"])
    assert cfg.DATASET.VAL_PERCENT == 0.2


def test_read_config_names_a_file_that_it_cannot_read(tmp_path, one_line):
    path = tmp_path / "config.yaml"
    with pytest.raises(FileNotFoundError) as error:
        read_config(path)
    assert str(path) in one_line(error)
    path.write_text("OPTIM: [1")
    with pytest.raises(ValueError) as error:
        read_config(path)
    assert str(path) in one_line(error)
