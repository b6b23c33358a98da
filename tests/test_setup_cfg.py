"""The config of a run: every file of configs/ merges, and what is said later wins."""

from pathlib import Path

import pytest
import torch
import yaml

from dassl.config import flatten
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, TrainerX
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import config_values, default_cfg
from orthcr.run.flags import parse
from orthcr.run.own_images import warn_before_training

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
    given, merged = flatten(yaml.safe_load(file.read_text()) or {}), config_values(cfg)
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

    data_set = write(
        "dataset",
        dict(zip(keys[1:], [0.1, 0.1, "dataset", "dataset"], strict=True)) | {"SEED": 7, "DATASET.NAME": "Digits"},
    )
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
    assert config_values(cfg)["OPTIM.STEPSIZE"] == [-1], "the default"
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


# ------------------------------------------------------------------ flags


def test_lists_of_names_end_where_the_pairs_begin():
    argv = "--source-domains a CALTECH --target-domains b DATASET.NUM_SHOTS 2 OPTIM.WARMUP_EPOCH -1 --seed 3"
    args = parse([*argv.split(), "--transforms", "normalize", "cutout", "VERBOSE", "False"])
    assert (args.source_domains, args.target_domains) == (("a", "CALTECH"), ("b",))
    assert args.transforms == ("normalize", "cutout")
    cfg = setup_cfg(args)
    assert (cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS) == (("a", "CALTECH"), ("b",))
    assert (cfg.DATASET.NUM_SHOTS, cfg.OPTIM.WARMUP_EPOCH, cfg.SEED, cfg.VERBOSE) == (2, -1, 3, False)
    with pytest.raises(ValueError, match='"OPTIMM.LR" on the command line, do you mean "OPTIM.LR"'):
        setup_cfg(parse(["--source-domains", "a", "OPTIMM.LR", "1"]))
    assert parse(["--seed", "1", "SEED", "2"]).opts == ("SEED", "2")


@pytest.fixture
def write(tmp_path):
    """write(text, path): a YAML file."""

    def write(text, path="mine.yaml"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
        return str(tmp_path / path)

    return write


COOPS = str(CONFIGS / "trainers" / "CoOp" / "tiny.yaml")


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--head", "nope"], ["MODEL.HEAD.NAME", '"nope"']),
        (["--head", "mlp"], ["MODEL.HEAD.NAME", "OrthCR", '"mlp"']),
        (["--model-dir", "x"], ["--model-dir", "--eval-only"]),
        (["--load-epoch", "3"], ["--load-epoch", "--eval-only"]),
        (["--eval-only", "--load-epoch", "3"], ["--load-epoch", "--model-dir"]),
        (["--eval-only", "--resume", "x"], ["--resume", "--model-dir"]),
        (["--config-file", COOPS], ["for CoOp", "not for OrthCR", "--trainer"]),
        (["TRAINER.NAME", "CoOp"], ['TRAINER.NAME is "CoOp"', "OrthCR", "--trainer"]),
        (["TRAINER.NAME", "3"], ['TRAINER.NAME is "3"', "--trainer"]),
        (["--trainer", "CoOp", "TRAINER.ORTHCR.TAU", "2"], ["TRAINER.ORTHCR.TAU", "CoOp"]),
    ],
    ids=lambda v: " ".join(v)[:30],
)
def test_flags_and_pairs_that_would_have_no_effect(argv, words, one_line):
    with pytest.raises(ValueError) as error:
        setup_cfg(parse(argv))
    assert all(word in one_line(error) for word in words)


def test_a_config_file_of_another_trainer(write, one_line):
    for text, path in (
        ("TRAINER:\n  NAME: CoOp\n", "a.yaml"),
        ("TRAINER:\n  COOP:\n    N_CTX: 4\n", "b.yaml"),
        ("OPTIM:\n  LR: 0.002\n", "clone/configs/trainers/CoOp/vit_b16.yaml"),
    ):
        file = ["--config-file", write(text, path)]
        with pytest.raises(ValueError, match="are for CoOp, not for OrthCR: give --trainer CoOp") as error:
            setup_cfg(parse(file))
        one_line(error)
        for trainer in ("CoOp", "ZeroshotCLIP"):  # as CoOp's zeroshot.sh does
            assert setup_cfg(parse(["--trainer", trainer, *file])).TRAINER.NAME == trainer
    assert setup_cfg(parse(["--config-file", write("TRAINER:\n  NAME: OrthCR\n")])).TRAINER.NAME == "OrthCR"


def test_a_finished_training_is_not_resumed(tmp_path, one_line):
    """Nothing would be trained, and the results would say that it was."""
    folder = tmp_path / "DONE" / "prompt_learner"
    folder.mkdir(parents=True)
    (folder / "model.pth.tar-3").touch()
    argv = ["--trainer", "CoOp", "--output-dir", str(tmp_path / "OUT"), "--resume", str(tmp_path / "DONE")]
    for epochs in ("3", "2"):
        with pytest.raises(ValueError, match=f"OPTIM.MAX_EPOCH is {epochs}, and .*DONE has 3 epochs") as error:
            setup_cfg(parse([*argv, "OPTIM.MAX_EPOCH", epochs]))
        one_line(error)
    assert not (tmp_path / "OUT").exists()
    assert setup_cfg(parse([*argv, "OPTIM.MAX_EPOCH", "4"])).OPTIM.MAX_EPOCH == 4
    (tmp_path / "OUT" / "prompt_learner").mkdir(parents=True)
    (tmp_path / "OUT" / "prompt_learner" / "model.pth.tar-1").touch()  # it goes on from there, as the next test_resume
    setup_cfg(parse([*argv, "OPTIM.MAX_EPOCH", "3"]))


# ------------------------------------------------------------------ what a foreign output directory can name


def test_nothing_is_made_outside_for_a_foreign_config(tmp_path, monkeypatch, one_line):
    out, elsewhere = tmp_path / "OUT", tmp_path / "elsewhere"
    out.mkdir()
    monkeypatch.chdir(out)
    config = yaml.safe_load(setup_cfg(parse(["--trainer", "CoOp"])).dump())

    def evaluated(section, key, value):
        changed = {**config, section: {**config[section], key: value}} if key else {**config, section: value}
        (out / "config.yaml").write_text(yaml.safe_dump(changed))
        return setup_cfg(parse(["--eval-only", "--model-dir", str(out)]))

    for section, key in (("DATASET", "SUBSAMPLE_CLASSES"), ("DATASET", "NAME"), ("TEST", "SPLIT"), ("TRAINER", "NAME")):
        with pytest.raises(ValueError) as error:
            evaluated(section, key, "x/../../../elsewhere")
        assert "elsewhere" in one_line(error)
    assert evaluated("OUTPUT_DIR", None, str(elsewhere)).OUTPUT_DIR == str(out / "eval" / "Shapes-all-test")
    assert {p.name for p in tmp_path.rglob("*")} == {"OUT", "config.yaml"}


def test_models_of_older_settings_are_still_evaluated(tmp_path):
    """Which are refused in training."""
    config = yaml.safe_load(setup_cfg(parse(["--trainer", "CoOp"])).dump())
    config["OPTIM"]["LR"], config["INPUT"]["TRANSFORMS"] = 0.0, ["random_flip"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    cfg = setup_cfg(parse(["--eval-only", "--model-dir", str(tmp_path)]))
    assert cfg.OPTIM.LR == 0 and cfg.INPUT.TRANSFORMS == ("random_flip", "normalize")
    with pytest.raises(ValueError, match="OPTIM.LR must be above 0 in a training"):
        setup_cfg(parse(["OPTIM.LR", "0"]))


# ------------------------------------------------------------------ normalization


def test_clips_images_are_always_normalized(make_trainer, capsys):
    plain = make_trainer("INPUT.TRANSFORMS", ("normalize",), trainer="ZeroshotCLIP")
    assert '"normalize" is added' not in capsys.readouterr().out
    bare = make_trainer("INPUT.TRANSFORMS", (), trainer="ZeroshotCLIP", out="bare")
    (said,) = [line for line in capsys.readouterr().out.splitlines() if '"normalize" is added' in line]
    assert "INPUT.TRANSFORMS" in said
    for loader in ("train_loader_x", "test_loader"):
        first, second = (getattr(trainer, loader).dataset[0]["img"] for trainer in (plain, bare))
        assert torch.equal(first, second) and first.min() < 0
    assert plain.test() == bare.test()


def test_trainers_for_dassl_have_the_transforms_that_they_name(monkeypatch, tmp_path):
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Foreign", type("Foreign", (TrainerX,), {}))
    argv = ["--trainer", "Foreign", "--transforms", "random_flip", "MODEL.HEAD.NAME", "mlp"]
    cfg = setup_cfg(parse([*argv, "DATALOADER.K_TRANSFORMS", "2", "TRAINER.FOREIGN.ANY", "None"]))
    assert cfg.INPUT.TRANSFORMS == ("random_flip",) and cfg.DATALOADER.K_TRANSFORMS == 2
    assert cfg.TRAINER.FOREIGN.ANY is None
    with pytest.raises(ValueError, match="OPTIM.LR is inf"):
        setup_cfg(parse([*argv, "OPTIM.LR", "1e999"]))
    assert default_cfg("Foreign").INPUT.TRANSFORMS == ()
    older = yaml.safe_load(cfg.dump())
    older["TRAINER"]["COOP"]["N_CTX"] += 1  # defaults of other methods, which have changed since
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(older))
    assert setup_cfg(parse(["--eval-only", "--model-dir", str(tmp_path)])).TRAINER.NAME == "Foreign"


def test_a_method_takes_the_settings_of_the_one_it_extends_from_its_file(monkeypatch, root):
    orthcr = TRAINER_REGISTRY.get("OrthCR")
    sub = type("SubOrthCR", (orthcr,), {"defaults": orthcr.defaults | {"TAU": 2.0}})
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "SubOrthCR", sub)
    node = setup_cfg(parse(["--trainer", "SubOrthCR"])).TRAINER.SUBORTHCR
    assert (node.LAMBDA, node.TAU, node.BLOCK_SIZE) == (0.25, 4.0, 64)  # of configs/trainers/OrthCR/tiny.yaml
    words = ["--trainer", "SubOrthCR", "--config-file", str(root / "configs/trainers/OrthCR/vit_b16.yaml")]
    assert setup_cfg(parse([*words, "TRAINER.SUBORTHCR.LAMBDA", "3.0"])).TRAINER.SUBORTHCR.LAMBDA == 3.0
    free = setup_cfg(parse(["--trainer", "FullFT"])).TRAINER.FULLFT
    assert free.REG == "none" and "LAYERS" in free  # its own file's, which starts from OrthCR's


def test_pairs_come_after_flags_for_the_output_directory_too(tmp_path):
    argv = ["--output-dir", str(tmp_path / "a"), "OUTPUT_DIR", str(tmp_path / "b")]
    assert setup_cfg(parse(argv)).OUTPUT_DIR == str(tmp_path / "b")


@pytest.mark.parametrize("trainer", ["OrthCR", "CoCoOp", "MaPLe", "PromptSRC"])
def test_the_file_that_is_named_for_photographs_is_there(trainer, root, tmp_path, capsys):
    warn_before_training(setup_cfg(parse(["--images", str(tmp_path), "--trainer", trainer])), ["cat", "dog"])
    told = capsys.readouterr().out.partition("For photographs give --config-file ")[2].split(" and ")[0]
    assert f"/{trainer}/vit_b16" in told and (root / told).is_file()
