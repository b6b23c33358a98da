"""The config of a run: every file of configs/ merges, and what is said later wins."""

from pathlib import Path

import pytest
import yaml

from dassl.config import flatten
from dassl.data.datasets import DATASET_REGISTRY
from experiments.config import parse, plain, setup_cfg

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda f: str(f.relative_to(CONFIGS)))
def test_every_config_merges(file, tmp_path):
    argv = ["--output-dir", str(tmp_path)]
    if file.parent.name == "datasets":
        argv += ["--dataset-config-file", str(file)]
    else:
        trainer = "OrthCR" if file.parent.name == "backbones" else file.parent.name
        argv += ["--trainer", trainer, "--config-file", str(file)]
    cfg = setup_cfg(parse(argv))
    assert cfg.DATASET.NAME in DATASET_REGISTRY.registered_names()
    given, merged = flatten(yaml.safe_load(file.read_text()) or {}), plain(cfg)
    assert given and given.keys() <= {*merged, "_BASE_"}


def test_later_wins(tmp_path):
    """Each level sets all keys from its own on: a key's value tells the last level that set it."""
    keys = ["OPTIM.STEPSIZE", "OPTIM.LR", "OPTIM.GAMMA", "MODEL.BACKBONE.NAME", "MODEL.INIT_WEIGHTS"]

    def write(name, values):
        tree = {}
        for key, value in values.items():
            *sections, leaf = key.split(".")
            node = tree
            for section in sections:
                node = node.setdefault(section, {})
            node[leaf] = value
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**tree}))
        return str(path)

    data_set = write("dataset", dict(zip(keys[1:], [0.1, 0.1, "dataset", "dataset"], strict=True)) | {"SEED": 7})
    method = write("method", dict(zip(keys[2:], [0.2, "method", "method"], strict=True)) | {"SEED": 8})
    flags = [
        "--source-domains",
        "a",
        "b",
        "--transforms",
        "normalize",
        "random_flip",
        "--backbone",
        "flag",
        "--seed",
        "9",
    ]
    argv = ["--dataset-config-file", data_set, "--config-file", method, *flags, "MODEL.INIT_WEIGHTS", "opts"]
    cfg = setup_cfg(parse(argv))
    assert plain(cfg)["OPTIM.STEPSIZE"] == [-1], "the default"
    assert (cfg.OPTIM.LR, cfg.OPTIM.GAMMA, cfg.MODEL.BACKBONE.NAME, cfg.MODEL.INIT_WEIGHTS) == (
        0.1,
        0.2,
        "flag",
        "opts",
    )
    assert (cfg.SEED, cfg.INPUT.TRANSFORMS) == (9, ("normalize", "random_flip"))
    assert cfg.DATASET.SOURCE_DOMAINS == ("a", "b")
    assert setup_cfg(parse([*argv, "SEED", "10"])).SEED == 10


def test_seed_zero_is_a_seed():
    assert setup_cfg(parse(["--seed", "0"])).SEED == 0
