"""report.py as a command: its files, bad input, and what a results.json says without any other file."""

import csv
import io
import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image
from trees import NEW, SEEDS, accuracy, figure, log, made, only, ours, shown, train_and_new, write_transfer

from orthcr.compare import plans
from orthcr.compare.stages import Method, Stages
from orthcr.reports.palette import colour_of
from orthcr.reports.report import write_report
from orthcr.reports.tables import cost_table, tables
from orthcr.reports.tree import collect
from orthcr.run.flags import parse
from orthcr.run.results import has_learner
from orthcr.run.runner import run
from report import main

# ------------------------------------------------------------------ the command


def test_output_files(tmp_path, capsys):
    write_transfer(tmp_path / "tree")
    for seed in SEEDS:
        for dataset in ("EuroSAT", "OxfordPets"):
            train_and_new(tmp_path / "tree", "CoOp", dataset, seed, accuracy(), accuracy())
            for shots in (1, 4):
                on = (dataset, "all", shots, seed)
                ours(tmp_path / "tree" / f"f{dataset}{seed}{shots}", "CoOp", on, dataset, "all", accuracy())
    shutil.rmtree(tmp_path / "tree" / "EuroSAT" / "CoOp" / "seed3" / "new")
    (tmp_path / "tree" / "log.txt").write_text("hello")
    out = tmp_path / "out"
    assert main([str(tmp_path / "tree"), "--output-dir", str(out)]) == 0
    text = capsys.readouterr().out
    found = made(tmp_path / "tree")[0]
    assert [t.protocol for t in found] == ["base2new", "fewshot", "xd", "dg"]
    assert all(str(table) in text for table in found) and "\n\nLeft out\n" in text and "log.txt: malformed" in text

    rows = list(csv.DictReader(io.StringIO((out / "report.csv").read_text())))
    assert len(rows) == sum(len(table.cells) for table in found)
    (row,) = [r for r in rows if (r["protocol"], r["target"], r["classes"]) == ("base2new", "EuroSAT", "new")]
    cell = figure(found[0], target="EuroSAT", classes="new")
    assert (row["method"], row["source"], row["shots"], row["metric"]) == ("CoOp", "EuroSAT", "16", "accuracy")
    assert (row["n"], row["seeds"], row["missing"]) == ("2", "1 2", "3")
    assert (float(row["mean"]), float(row["std"])) == pytest.approx((cell.mean, cell.std), abs=1e-4)
    markdown = (out / "report.md").read_text()
    assert "## Base-to-new, 16 shots\n\n| data set" in markdown
    assert "- CoOp on EuroSAT, new: seed 3 is missing\n" in markdown and "## Left out\n\n- " in markdown

    files = {path.name for path in out.glob("*.png")}
    assert files == {"base2new_16shots.png", "fewshot.png", "xd_ImageNet_16shots.png", "dg_ImageNet_16shots.png"}
    for name in files:
        with Image.open(out / name) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        colours = 255 * np.array([to_rgb(colour_of(method)) for method in ("CoOp", "MaPLe")])
        drawn = [(np.abs(pixels.astype(int) - colour).sum(-1) < 10).sum() > 50 for colour in colours]
        wanted = [name[:2] not in ("xd", "dg"), name[:2] in ("xd", "dg")]
        assert pixels.shape[1] >= 850 and drawn == wanted, name

    write_report([tmp_path / "tree"], output_dir=tmp_path / "tree")
    assert {path.name for path in (tmp_path / "tree").glob("*.*")} == {
        *files,
        "report.md",
        "report.csv",
        "runs.csv",
        "log.txt",
    }
    assert str(found[0]) in capsys.readouterr().out


def test_it_starts_without_torch(tmp_path, root):
    ours(tmp_path / "a", "CoOp", ("EuroSAT", "all", 16, 1), "EuroSAT", "all", 50.0, config={"SEED": 1})
    code = "import sys, report; report.main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=root, capture_output=True, text=True, check=True)
    assert "50.00" in done.stdout and done.stdout.endswith("False\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "malformed"),
        ("[]", "malformed"),
        ({"backbone": None}, "malformed"),
        ({"classes": 7}, "malformed"),
        ('{"trainer": "CoOp"}', "no 'trained_on'"),
        ({"accuracy": "high"}, "malformed"),
        ({"accuracy": 101.0}, "accuracy is 101"),
        ({"trained_on": {"dataset": "X"}}, "no 'classes'"),
        ({"trained_on": {"dataset": "X", "classes": "all", "shots": None, "seed": 1}}, "malformed"),
        ({"accuracy": None}, "not tested"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path, capsys, content, said):
    ours(tmp_path / "good", "CoOp", ("EuroSAT", "all", 16, 1), "EuroSAT", "all", 50.0)
    bad = ours(tmp_path / "bad", "CoOp", ("EuroSAT", "all", 16, 2), "EuroSAT", "all", 50.0) / "results.json"
    bad.write_text(json.dumps(json.loads(bad.read_text()) | content) if isinstance(content, dict) else content)
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if str(bad) in line]
    assert said in line and "50.00" in out

    shutil.rmtree(tmp_path / "good")
    assert main([str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no test result in") and error.count("\n") == 1 and said in error


def test_malformed_logs_and_configs(tmp_path):
    ours(tmp_path / "good", "CoOp", ("EuroSAT", "all", 16, 1), "EuroSAT", "all", 50.0)
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "log.txt").write_bytes(bytes(NEW.getrandbits(8) for _ in range(2000)))
    cut = log(tmp_path / "cut", "CoOp", "EuroSAT", "all", 1, (5, 10)) / "log.txt"
    cut.write_text(cut.read_text().replace("  NAME: EuroSAT\n", ""))
    seedless = log(tmp_path / "seedless", "CoOp", "EuroSAT", "all", 1, (5, 10)) / "log.txt"
    seedless.write_text(seedless.read_text().replace("SEED: 1\n", "SEED: one\n"))
    ours(tmp_path / "yaml", "CoOp", ("EuroSAT", "all", 16, 2), "EuroSAT", "all", 50.0)
    (tmp_path / "yaml" / "config.yaml").write_text("A: [1\nB: {")
    (table,), left_out = made(tmp_path)
    assert figure(table, target="EuroSAT").values == {1: 50.0}
    assert len(left_out) == 4 and all("malformed" in line and "\n" not in line for line in left_out)
    assert "DATASET.NAME" in next(line for line in left_out if str(cut) in line)


def test_nothing_there(tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    for path, said in (("nowhere", "no directory"), ("file", "no directory"), (".", "no results.json, no log.txt")):
        assert main([str(tmp_path / path)]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_what_train_py_writes_is_read(tmp_path, data_root):
    """A real run and its results, alone in the directory that is given."""
    argv = ["--trainer", "ZeroshotCLIP", "--root", str(data_root), "--output-dir", str(tmp_path / "run")]
    results = run(parse([*argv, "VERBOSE", "False", "USE_CUDA", "False"]))
    table = only(tmp_path / "run")
    assert table.protocol == "fewshot" and figure(table, target="Shapes").values == {None: results["accuracy"]}


# ------------------------------------------------------------------ results.json says everything


@pytest.fixture(scope="module")
def real(tmp_path_factory, data_root):
    """Two settings of CoOp, trained on half of Patterns and tested on both halves, beside ZeroshotCLIP."""
    root = tmp_path_factory.mktemp("real")
    for k, method in enumerate(
        [Method("ZeroshotCLIP"), *(Method("CoOp", opts=("OPTIM.MAX_EPOCH", epochs)) for epochs in "12")]
    ):
        stages = Stages(method, data_root, root / str(k))
        for planned in (stages.base2new_train("patterns", 1), stages.base2new_test("patterns", 1)):
            plans.make_run(planned, quiet=True)
    return root


def test_results_json_is_enough(real, tmp_path):
    before = shown(real)
    assert "CoOp (MAX_EPOCH 1)" in before[0] and "CoOp (MAX_EPOCH 2)" in before[0]
    tree = shutil.copytree(real, tmp_path / "tree")
    for path in tree.rglob("*"):
        if path.is_file() and path.name != "results.json":
            path.unlink()
    assert shown(tree) == before


def test_older_trees_are_read(real, tmp_path):
    """Their results.json says neither the settings nor what `trained` says: config.yaml and the parameters do."""
    tree = shutil.copytree(real, tmp_path / "tree")
    for path in tree.rglob("results.json"):
        results = json.loads(path.read_text())
        path.write_text(
            json.dumps({key: results[key] for key in results.keys() - {"trained", "config", "model_config"}})
        )
    assert shown(tree) == shown(real)


def test_an_evaluation_whose_model_is_gone(real, tmp_path):
    """It still says what was trained how, and on what: no row of another method takes it."""
    tree = shutil.copytree(real, tmp_path / "tree")
    for path in tree.rglob("*"):
        if path.is_file() and path.parts[-2:] != ("new", "results.json"):
            path.unlink()
    table = only(tree)
    settings = {run.settings for run in table.runs if run.trained}
    assert {dict(each)["OPTIM.MAX_EPOCH"] for each in settings} == {"1", "2"}
    assert [row[1] for row in table.rows] == ["ZeroshotCLIP", "CoOp (MAX_EPOCH 1)", "CoOp (MAX_EPOCH 2)"]
    assert all(row[2] == "-" and row[3] != "-" for row in table.rows[1:])


def test_own_images_whose_model_is_gone(tmp_path):
    on, of = ("Images", "all", -1, 1), {"DATASET.IMAGES": "/home/me/pets"}
    settings = {"config": {"DATASET.IMAGES": "/home/me/out/pets/split.json"}, "model_config": of}
    path = ours(tmp_path / "eval", "CoOp", on, "Images", "all", 70.0, eval_only=True) / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert [row[:3] for row in only(tmp_path).rows] == [["Images pets", "CoOp", "70.00"]]


def test_without_parameters_is_not_zero_shot(tmp_path):
    """A cache that is filled, not trained, has been given images."""
    on = ("EuroSAT", "all", 16, 1)
    ours(tmp_path / "a", "TipAdapter", on, "EuroSAT", "all", 70.0, trained=True, trainable_params=0)
    ours(tmp_path / "b", "ZeroshotCLIP", None, "EuroSAT", "all", 50.0, trained=False)
    ours(tmp_path / "c", "TipAdapter", None, "EuroSAT", "all", 60.0, trained=True, trainable_params=0, eval_only=True)
    (table,), (line,) = made(tmp_path)
    assert table.heads[2:] == ["0 shots", "16 shots"] and "are unknown" in line
    assert [row[1:] for row in table.rows] == [["ZeroshotCLIP", "50.00", ""], ["TipAdapter", "", "70.00"]]


@pytest.mark.parametrize(
    ("trainer", "does"),
    [
        (SimpleNamespace(learner="cache", _models={}), True),
        (SimpleNamespace(learner="", _models={"model": None}), False),
        (SimpleNamespace(_models={"prompt_learner": None}), True),  # of somebody else
        (SimpleNamespace(_models={}), False),
    ],
)
def test_what_learns(trainer, does):
    assert has_learner(trainer) is does


def test_costs(real):
    (table,) = tables(collect([real])[0])
    lines = [[word.strip() for word in line.split("|")[1:-1]] for line in cost_table(table.runs, "github").splitlines()]
    assert lines[0] == ["method", "trained parameters", "seconds of training"]
    assert [line[:2] for line in lines[2:]] == [
        ["ZeroshotCLIP", "0"],
        ["CoOp (MAX_EPOCH 1)", "256"],
        ["CoOp (MAX_EPOCH 2)", "256"],
    ]


# ------------------------------------------------------------------ runs, one by one


def test_a_row_for_each_run(tmp_path):
    for seed in (1, 2):
        train_and_new(tmp_path / "tree", "=A1", "EuroSAT", seed, 80.0 + seed, 70.0)
    ours(tmp_path / "tree" / "zs", "ZeroshotCLIP", None, "EuroSAT", "base", 50.0)
    assert main([str(tmp_path / "tree"), "--output-dir", str(tmp_path / "out")]) == 0
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "runs.csv").read_text())))
    assert len(rows) == 5 and {row["trainer"] for row in rows} == {"'=A1", "ZeroshotCLIP"}
    figures = {(row["trained_on"], row["seed"], row["classes"]): float(row["accuracy"]) for row in rows}
    assert figures["EuroSAT", "2", "base"] == 82.0 and figures["", "", "base"] == 50.0


def test_settings_of_two_runs(tmp_path, capsys):
    long = "x" * 100  # values are shown in part, and compared as a whole
    config = {"OPTIM.LR": 0.1, "INPUT.LONG": long, "OUTPUT_DIR": "x", "DATASET.SPLIT_SHA256": ["a"], "SEED": 1}
    other = config | {
        "OPTIM.LR": 0.2,
        "INPUT.LONG": long + "y",
        "OUTPUT_DIR": "y",
        "DATASET.SPLIT_SHA256": ["b"],
        "NEW": True,
    }
    for name, values, percent in (("a", config, 80.0), ("b", other, 81.25)):
        ours(tmp_path / name, "CoOp", ("EuroSAT", "all", 16, 1), "EuroSAT", "all", percent)
        path = tmp_path / name / "results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"config": values}))
    assert main(["--diff", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    for line in (
        ["OPTIM.LR", "0.1", "0.2"],
        ["NEW", "-", "True"],
        ["INPUT.LONG", long[:80], long[:80]],
        ["accuracy", "80.00", "81.25"],
    ):
        assert line in lines
    assert not {"SEED", "OUTPUT_DIR", "DATASET.SPLIT_SHA256"} & {word for line in lines for word in line}
    assert main(["--diff", str(tmp_path / "a"), str(tmp_path)]) == 1
    assert "has neither results.json nor config.yaml: give the directory of a run" in capsys.readouterr().err
