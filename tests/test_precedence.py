"""Keys that decide in place of others: the last word wins, and two words in one source are an error."""

import json

import pytest

from orthcr.run.config import setup_cfg
from orthcr.run.config_files import CONFIGS
from orthcr.run.flags import parse
from orthcr.run.runner import main

REACH, RATE = "TRAINER.ORTHCR.REACH", ("OPTIM.LR", "0.0123")


def vit(trainer="OrthCR"):
    """Flags with the file of a method for real CLIPs, which has REACH or N_ITERS."""
    return ["--trainer", trainer, "--config-file", str(CONFIGS / "trainers" / trainer / "vit_b16.yaml")]


@pytest.mark.parametrize("trainer", ["OrthCR", "OrthSR", "FullFT", "BlockFT"])
def test_a_rate_behind_the_reach_of_a_file_wins(trainer, capsys):
    cfg = setup_cfg(parse(vit(trainer)))
    assert cfg.TRAINER[trainer.upper()].REACH > 0
    capsys.readouterr()
    cfg = setup_cfg(parse([*vit(trainer), *RATE]))
    assert (cfg.TRAINER[trainer.upper()].REACH, cfg.OPTIM.LR) == (0.0, 0.0123)
    assert f"TRAINER.{trainer.upper()}.REACH is 0.0" in capsys.readouterr().out
    reach = [f"TRAINER.{trainer.upper()}.REACH", "0.0"]
    assert setup_cfg(parse([*vit(trainer), *RATE, *reach])).OPTIM.LR == 0.0123
    assert "OPTIM.LR" not in capsys.readouterr().out, "it was said"


def test_files_count_one_by_one(tmp_path, one_line, capsys):
    base, later = tmp_path / "base.yaml", tmp_path / "later.yaml"
    base.write_text("TRAINER:\n  ORTHCR:\n    REACH: 0.01\n")
    later.write_text("_BASE_: base.yaml\nOPTIM:\n  LR: 0.2\n")
    assert setup_cfg(parse(["--config-file", str(later)])).TRAINER.ORTHCR.REACH == 0
    assert str(later) in capsys.readouterr().out
    assert setup_cfg(parse(["--config-file", str(later), REACH, "0.02"])).TRAINER.ORTHCR.REACH == 0.02
    later.write_text("OPTIM:\n  LR: 0.2\n")
    base.write_text("_BASE_: later.yaml\nTRAINER:\n  ORTHCR:\n    REACH: 0.01\n")
    assert setup_cfg(parse(["--config-file", str(base)])).TRAINER.ORTHCR.REACH == 0.01
    base.write_text("OPTIM:\n  LR: 0.2\nTRAINER:\n  ORTHCR:\n    REACH: 0.01\n")
    for argv, where in ((["--config-file", str(base)], str(base)), ([*RATE, REACH, "0.01"], "command line")):
        with pytest.raises(ValueError, match="OPTIM.LR.*has no effect with TRAINER.ORTHCR.REACH 0.01") as caught:
            setup_cfg(parse(argv))
        assert where in one_line(caught) and "set TRAINER.ORTHCR.REACH 0.0" in str(caught.value)


def test_the_config_of_a_run_goes_on_as_it_was(tmp_path):
    """It has every key, OPTIM.LR too, which nobody set."""
    cfg = setup_cfg(parse([*vit(), "USE_CUDA", "False"]))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    file = ["--config-file", str(tmp_path / "config.yaml")]
    assert setup_cfg(parse(file)).TRAINER.ORTHCR.REACH == cfg.TRAINER.ORTHCR.REACH > 0
    assert setup_cfg(parse([*file, *RATE])).TRAINER.ORTHCR.REACH == 0
    evaluation = ["--eval-only", "--model-dir", str(tmp_path)]
    assert setup_cfg(parse(evaluation)).TRAINER.ORTHCR.REACH == cfg.TRAINER.ORTHCR.REACH


def test_the_epochs_of_cliplora(capsys):
    cfg = setup_cfg(parse([*vit("CLIPLoRA"), "OPTIM.MAX_EPOCH", "7"]))
    assert cfg.TRAINER.CLIPLORA.N_ITERS == 0 and "N_ITERS is 0 instead of 500" in capsys.readouterr().out
    assert setup_cfg(parse(vit("CLIPLoRA"))).TRAINER.CLIPLORA.N_ITERS == 500


@pytest.mark.parametrize("key", ["INIT_ALPHA", "INIT_BETA"])
def test_the_start_of_a_search_that_is_asked_for_is_not_searched_away(key, one_line):
    pair = [f"TRAINER.TIPADAPTER.{key}", "3.0"]
    assert setup_cfg(parse(["--trainer", "TipAdapter"])).TRAINER.TIPADAPTER.SEARCH_HP
    assert not setup_cfg(parse(["--trainer", "TipAdapter", *pair])).TRAINER.TIPADAPTER.SEARCH_HP
    with pytest.raises(ValueError, match="SEARCH_HP") as caught:
        setup_cfg(parse(["--trainer", "TipAdapter", *pair, "TRAINER.TIPADAPTER.SEARCH_HP", "True"]))
    one_line(caught)
    trained = ["--trainer", "TipAdapterF", f"TRAINER.TIPADAPTERF.{key}", "3.0"]
    assert setup_cfg(parse(trained)).TRAINER.TIPADAPTERF.SEARCH_HP, "it is what K is trained at"


@pytest.mark.parametrize(
    ("trainer", "key", "value"),
    [("CoOp", "COOP.N_CTX", 8), ("CoOp", "COOP.CSC", True), ("CoCoOp", "COCOOP.N_CTX", 3), ("KgCoOp", "COOP.N_CTX", 8)],
)
def test_vectors_that_the_words_decide(trainer, key, value, one_line):
    """All tiny.yaml start from "a photo of a"."""
    words = key.split(".")[0]
    with pytest.raises(ValueError, match=f"{key}.*has no effect with TRAINER.{words}.CTX_INIT") as caught:
        setup_cfg(parse(["--trainer", trainer, f"TRAINER.{key}", str(value)]))
    one_line(caught)
    none = [f"TRAINER.{words}.CTX_INIT", "False" if trainer == "KgCoOp" else ""]
    setup_cfg(parse(["--trainer", trainer, *none, f"TRAINER.{key}", str(value)]))
    setup_cfg(parse(["--trainer", trainer, f"TRAINER.{words}.N_CTX", "4"]))  # as many as the words
    setup_cfg(parse(["--trainer", trainer, *([] if trainer == "CoCoOp" else ["TRAINER.COOP.CSC", "False"])]))


def test_two_starts_of_a_training(tmp_path, one_line):
    with pytest.raises(ValueError, match="MODEL.INIT_WEIGHTS has no effect with --resume") as caught:
        setup_cfg(parse(["--resume", str(tmp_path), "MODEL.INIT_WEIGHTS", "w.pth"]))
    one_line(caught)


def test_the_results_have_the_rate_of_the_training(pictures, tmp_path):
    argv = ["--root", str(pictures), "VERBOSE", "False", "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "1"]
    argv += ["TRAINER.ORTHCR.LAYERS", "[-1]", "USE_CUDA", "False"]
    for name, opts in (("reach", [REACH, "0.01"]), ("rate", RATE)):
        assert main(["--output-dir", str(tmp_path / name), *argv, *opts]) == 0
    reach, rate = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("reach", "rate"))
    steps = 40 // reach["config"]["DATALOADER.TRAIN_X.BATCH_SIZE"]
    assert reach["learning_rate"] == pytest.approx(0.01 / steps**0.5) and rate["learning_rate"] == 0.0123
