"""benchmark.py --sweep: what it plans, what it chooses, and what it refuses before anything runs."""

import csv
import json
from statistics import fmean

import pytest

import benchmark
from orthcr.compare import plans
from orthcr.compare.command_line import parse_arguments
from orthcr.compare.sweep import Point, PointAccuracies, select_points
from orthcr.run.flags import parse
from orthcr.run.runner import prepare

FAST = ["OPTIM.MAX_EPOCH", "2", "USE_CUDA", "False", "DATALOADER.NUM_WORKERS", "0"]


def inline(work, jobs, slots):
    """An engine that does everything in this process."""
    for job in jobs:
        yield job, work(job)


@pytest.fixture
def words(data_root, tmp_path, monkeypatch):
    """words(KEY, VALUE, ...): a command line on Patterns, two seeds, in this process."""
    monkeypatch.setattr("orthcr.compare.engines.run_locally", inline)

    def make(*sweep, trainers=("CoOp",), protocol="few_shot", seeds=("1", "2")):
        flags = ["--sweep", *sweep, "--protocol", protocol, "--datasets", "patterns", "--trainers", *trainers]
        flags += ["--root", str(data_root), "--output-dir", str(tmp_path / "out"), "--seeds", *seeds]
        return [*flags, *(["--shots", "2"] if protocol == "few_shot" else []), *FAST]

    return make


def results_of(folder, key):
    """{value: {(seed, classes): accuracy}} by what the runs wrote, of trainings on val and of tests."""
    val, test = {}, {}
    for path in folder.rglob("results.json"):
        run = json.loads(path.read_text())
        assert (run["split"] == "val") != run["eval_only"]
        value = (run["model_config"] or run["config"])[key]
        (test if run["eval_only"] else val).setdefault(value, {})[run["seed"], run["classes"]] = run["accuracy"]
    return val, test


@pytest.mark.parametrize("protocol, classes", [("few_shot", ["all"]), ("base2new", ["base", "new"])])
def test_the_best_on_val_is_chosen_and_tested(words, tmp_path, capsys, monkeypatch, protocol, classes):
    values, out = ["0.00001", "0.02", "0.2"], tmp_path / "out"
    assert benchmark.main(words("OPTIM.LR", *values, protocol=protocol)) == 0
    said = capsys.readouterr().out
    val, test = results_of(out, "OPTIM.LR")
    assert sorted(val) == sorted(map(float, values)) and all(len(each) == 2 for each in val.values())
    means = {value: fmean(each.values()) for value, each in val.items()}
    best = next(value for value in map(float, values) if means[value] == max(means.values()))
    assert list(test) == [best], "nothing else is tested"
    assert set(test[best]) == {(seed, kind) for seed in (1, 2) for kind in classes}

    with open(out / "sweep_OPTIM.LR.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert {float(row["OPTIM.LR"]) for row in rows if row["chosen"] == "True"} == {best}
    figures = {float(row["OPTIM.LR"]): [] for row in rows}
    for row in rows:
        figures[float(row["OPTIM.LR"])] += [float(row["accuracy"])] if row["split"] == "val" else []
    assert {value: fmean(each) for value, each in figures.items()} == pytest.approx(means, abs=1e-3)
    marked = [line for line in (out / "sweep_OPTIM.LR.md").read_text().splitlines() if "**" in line]
    assert len(marked) == 1 and f"**{means[best]:.1f}" in marked[0] and "Sweep of OPTIM.LR" in said
    assert (out / "sweep_OPTIM.LR.png").read_bytes()[:4] == b"\x89PNG"

    monkeypatch.setattr(plans, "run", lambda args: pytest.fail("it was run again"))
    assert benchmark.main(words("OPTIM.LR", *values, protocol=protocol)) == 0


def test_a_key_of_one_method_is_for_it_alone(words, tmp_path, capsys):
    """And a value that the model refuses is named, and in no row."""
    sizes = words("TRAINER.ORTHCR.BLOCK_SIZE", "16", "48", "32", trainers=["OrthCR", "CoOp", "ZeroshotCLIP"], seeds="1")
    assert benchmark.main(sizes) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert "BLOCK_SIZE 48 does not divide" in error
    with open(tmp_path / "out" / "sweep_TRAINER.ORTHCR.BLOCK_SIZE.csv", newline="") as f:
        rows = [(row["method"], row["TRAINER.ORTHCR.BLOCK_SIZE"]) for row in csv.DictReader(f)]
    assert set(rows) == {("OrthCR", "16"), ("OrthCR", "32")}


def test_what_lacks_a_seed_is_not_chosen():
    points = [Point("CoOp", "digits", value) for value in "abc"]
    values = [{1: 90.0}, {1: 50.0, 2: 60.0}, {1: 60.0, 2: 50.0}]
    measured = [PointAccuracies(point, val, {}) for point, val in zip(points, values, strict=True)]
    assert select_points(measured, [1, 2]) == [points[1]] and select_points(measured[:1], [1, 2]) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sweep", "OPTIM.LR", "1"], "two or more different values"),
        (["--sweep", "OPTIM.LR", "1", "1"], "two or more different values"),
        (["--sweep", "lr", "1", "2"], "cannot vary"),
        (["--sweep", "SEED", "1", "2"], "cannot vary"),
        (["--sweep", "TEST.SPLIT", "val", "test"], "cannot vary"),
        (["--sweep", "OPTIM.LR", "1", "2", "OPTIM.LR", "3"], "OPTIM.LR is set by --sweep"),
        (["--sweep", "OPTIM.LR", "1", "2", "TEST.SPLIT", "test"], "TEST.SPLIT is set by --sweep"),
        (["--protocol", "cross_dataset", "--sweep", "OPTIM.LR", "1", "2"], "few_shot, its default, and base2new"),
        (["--shots", "1", "2", "--sweep", "OPTIM.LR", "1", "2"], "one number of shots"),
        (["--strength", "0.5", "--sweep", "OPTIM.LR", "1", "2"], "--strength"),
    ],
)
def test_a_sweep_that_makes_no_sense(argv, said, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(argv)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_words_behind_a_sweep():
    args = parse_arguments(["--seeds", "1", "--sweep", "OPTIM.LR", "1e-3", "2e-3", "OPTIM.MAX_EPOCH", "3"])
    assert args.sweep == ["OPTIM.LR", "1e-3", "2e-3"] and args.opts == ("OPTIM.MAX_EPOCH", "3")
    args = parse_arguments(["--sweep", "OPTIM.LR", "1e-3", "2e-3", "--seeds", "1"])
    assert args.sweep == ["OPTIM.LR", "1e-3", "2e-3"] and args.seeds == [1] and args.opts == ()


@pytest.mark.parametrize(
    ("sweep", "trainers", "said"),
    [
        (("OPTIM.LR", "1e-3", "fast"), ["CoOp"], "OPTIM.LR"),
        (("OPTIM.LRR", "1", "2"), ["CoOp"], "OPTIM.LR"),
        (("TRAINER.ORTHCR.BLOCK_SIZE", "16", "32"), ["CoOp"], "is no key of CoOp"),
        (("OPTIM.LR", "1e-3", "2e-3"), ["ZeroshotCLIP"], "none of the methods has a training with this key"),
        (("TRAINER.COOP.CTX_INIT", "a b", "a  b"), ["CoOp"], "have one folder name"),
        (("TRAINER.COOP.N_CTX", "4", "8"), ["CoOp"], "CTX_INIT"),
    ],
)
def test_wrong_values_are_told_before_anything_runs(words, tmp_path, capsys, monkeypatch, sweep, trainers, said):
    monkeypatch.setattr(plans, "run", lambda args: pytest.fail("a run began"))
    assert benchmark.main(words(*sweep, trainers=trainers)) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert said in error and not (tmp_path / "out").exists()


def test_without_val_images_nothing_is_trained(make_cfg, monkeypatch):
    cfg = make_cfg("TEST.SPLIT", "val", trainer="CoOp")
    monkeypatch.setattr("dassl.data.datasets.DatasetBase.val", property(lambda self: []))
    with pytest.raises(ValueError, match="TEST.SPLIT is val, but Shapes has no val images"):
        prepare(cfg, parse([]))
