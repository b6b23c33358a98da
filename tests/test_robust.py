"""What is not finite is neither saved nor told; names from elsewhere are shown as the text that they are."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from trees import ours

import predict
from dassl.engine import TRAINER_REGISTRY
from dassl.evaluation import Classification
from dassl.infrastructure.command import command
from dassl.utils import setup_logger
from orthcr.deploy.predictor import Prediction, Predictor
from orthcr.reports.page import Entry, grid, page, section
from orthcr.reports.predictions import format_json, format_table
from orthcr.run.runner import main
from report import main as report

NASTY = "<script>x</script> a|b [c](d) \x1b[31m\x07"


# ------------------------------------------------------------------ what is not finite


@pytest.fixture
def run(tmp_path, pictures):
    def run(*opts):
        argv = ["--root", str(pictures), "--output-dir", str(tmp_path / "out"), "--trainer", "CoOp", "VERBOSE", "False"]
        return main([*argv, "DATASET.NUM_SHOTS", "1", "OPTIM.MAX_EPOCH", "2", "TRAIN.CHECKPOINT_FREQ", "1", *opts])

    return run


@pytest.mark.parametrize("what", ["weights", "optimizer"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_last_step_that_diverges_is_not_saved(what, value, run, tmp_path, monkeypatch, capsys):
    cls = TRAINER_REGISTRY.get("CoOp")
    step = cls.forward_backward

    def forward_backward(self, batch):
        summary = step(self, batch)
        if (self.epoch + 1, self.batch_idx + 1) == (2, self.num_batches):
            ctx = self.model.prompt_learner.ctx
            tensor = ctx.data if what == "weights" else self.optim.state[ctx]["momentum_buffer"]
            tensor.view(-1)[3] = value
        return summary

    monkeypatch.setattr(cls, "forward_backward", forward_backward)
    assert run() == 1
    told = 'error: "ctx" of prompt_learner is infinite or NaN at the end of epoch 2, which is not saved: lower OPTIM.LR'
    assert capsys.readouterr().err.startswith(told)
    kept = tmp_path / "out" / "prompt_learner"
    assert sorted(os.listdir(kept)) == ["checkpoint", "model.pth.tar-1"]
    assert torch.load(kept / "model.pth.tar-1")["state_dict"]["ctx"].isfinite().all()
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_no_result(bad, bare_cfg, one_line):
    evaluator = Classification(bare_cfg())
    scores = torch.randn(6, 4)
    scores[:, 2] = -math.inf  # a class that is masked
    evaluator.process(scores, torch.zeros(6, dtype=torch.long))
    assert math.isfinite(evaluator.evaluate()["accuracy"])
    scores[3, 1] = bad
    evaluator.process(scores, torch.zeros(6, dtype=torch.long))
    with pytest.raises(FloatingPointError, match="1 of 12 images get infinite or NaN scores"):
        evaluator.evaluate()


def test_predict_never_says_nan(run, tmp_path, pictures, monkeypatch, capsys):
    assert run("TEST.NO_TEST", "True") == 0
    image = next((pictures / "shapes" / "images").rglob("*.png"))
    cls = TRAINER_REGISTRY.get("CoOp")
    monkeypatch.setattr(cls, "model_inference", lambda self, image: torch.full((len(image), 20), math.nan))
    capsys.readouterr()
    for form in ([], ["--json"]):
        assert predict.main(["--model-dir", str(tmp_path / "out"), str(image), *form]) == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: the scores of the model are infinite or NaN")
        assert err.count("\n") == 1
    with pytest.raises(FloatingPointError):
        next(Predictor(tmp_path / "out")(image))
    with pytest.raises(ValueError):
        format_json([Prediction("a", "b", math.nan, [])])


# ------------------------------------------------------------------ names from elsewhere


def test_names_of_files_and_classes_cannot_steer_the_terminal():
    prediction = Prediction("dir/\x1b[2J\n.jpg", NASTY, 0.5, [(NASTY, 0.5), ("\x9b\u202e", 0.2)])
    table = format_table([prediction])
    assert "\x1b" not in table and "\x07" not in table and "\u202e" not in table and len(table.splitlines()) == 3
    assert r"dir/\x1b[2J\n.jpg" in table
    text = format_json([prediction])
    assert "\x1b" not in text and "\u202e" not in text and json.loads(text)[0]["image"] == prediction.image


def test_a_log_shows_what_it_is_told(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log.txt").symlink_to(tmp_path / "outside")
    setup_logger(str(tmp_path / "out"))
    print("* class: 0 (\x1b]0;title\x07)\tacc")
    sys.stdout.close()
    assert capsys.readouterr().out == "* class: 0 (\\x1b]0;title\\x07)\tacc\n"
    (log,) = (tmp_path / "out").glob("log.txt-*")
    assert "\\x1b]0;" in log.read_text() and not (tmp_path / "outside").exists(), "it does not follow a link"


def test_names_in_foreign_results_are_text_everywhere(tmp_path, capsys):
    on = ("../../evil", "base", 16, 1)
    for classes in ("base", "new"):
        folder = ours(tmp_path / "tree" / classes, NASTY, on, on[0], classes, 50.0, backbone="$\\frac$", config={})
        (folder / "log.txt-\x1b[31m").touch()
    ours(tmp_path / "tree" / "left\x1b[31m", "CoOp", None, "Digits", "all", float("nan"))
    ours(tmp_path / "tree" / "xd", NASTY, ("../../evil", "all", 16, 1), "Digits", "all", 70.0, True, "$\\frac$")
    assert report([str(tmp_path / "tree"), "--output-dir", str(tmp_path / "a" / "b")]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown and "\\x1b[31m" in shown
    text = (tmp_path / "a" / "b" / "report.md").read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "a\\|b" in text and "](d)" not in text
    assert "\x1b" not in text + (tmp_path / "a" / "b" / "report.csv").read_text()
    pictures = sorted((tmp_path / "a" / "b").glob("*.png"))
    assert pictures and not list(tmp_path.glob("*.png")) and not list((tmp_path / "a").glob("*.png"))


def test_a_page_holds_text():
    made = page("<script>", "<b>", [section("<i>", [grid(["<u>"], [[Entry("<s>")]], "<h4>")])])
    assert not any(f"{tag}" in made.split("<body", 1)[-1] for tag in ("<b>", "<i>", "<u>", "<s>", "<h4>"))
    assert "&lt;script&gt;" in made and "<title><script>" not in made


@pytest.mark.parametrize(
    "change",
    [
        {"trainable_params": "many"},
        {"trainable_params": None},
        {"seconds": "x"},
        {"seconds": -1},
        {"trained_on": {"dataset": "a", "classes": "all", "shots": 1e999, "seed": 1}},
        {"trained_on": {"dataset": "a", "classes": "all", "shots": 1, "seed": [1]}},
        {"trained_on": [1]},
        {"config": [1, 2]},
        {"trainer": "x" * 10_000},
        {"accuracy": "high"},
        {"eval_only": True, "model_dir": 5, "model_config": 5},
    ],
    ids=str,
)
def test_results_that_make_no_sense_are_left_out(change, tmp_path, capsys):
    folder = ours(tmp_path / "bad", "CoOp", ("EuroSAT", "all", 16, 1), "EuroSAT", "all", 50.0, seconds=1.0)
    results = json.loads((folder / "results.json").read_text()) | change
    (folder / "results.json").write_text(json.dumps(results).replace("Infinity", "1e999"))
    assert report([str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: no test result in") and "malformed" in err and err.count("\n") == 1 and len(err) < 900


# ------------------------------------------------------------------ pipes


@pytest.mark.parametrize("text", ["'x\\n'", "'x\\n' * 1_000_000"])
def test_a_reader_that_has_had_enough(text, root):
    """predict.py --json | head -1"""
    code = f"from dassl.infrastructure.command import command; import sys; sys.exit(command(lambda: print({text})))"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_the_end_of_a_log_is_told_in_lines(capsys):
    """Of a crashed job: no "\\n" in the message; the name of a file begins no line."""
    assert command(lambda: ["job: killed, 2 times; log.txt ends with\n    a\x1b\n    b"]) == 1
    assert capsys.readouterr().err == "error: job: killed, 2 times; log.txt ends with\n    a\\x1b\n    b\n"


def test_a_line_end_in_the_name_of_a_file_is_an_escape(run, tmp_path, capsys):
    (tmp_path / "a\nerror: b.png").write_bytes(b"no image")
    assert run() == 0
    capsys.readouterr()
    assert predict.main(["--model-dir", str(tmp_path / "out"), str(tmp_path / "a\nerror: b.png")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path}/a\\nerror: b.png: cannot identify")
