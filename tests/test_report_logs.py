"""report.py on the logs of others, and on trees whose directories were renamed or moved."""

import shutil

import pytest
from trees import (
    NEW,
    SEEDS,
    STEMS,
    accuracy,
    base_log,
    figure,
    log,
    made,
    new_log,
    only,
    ours,
    result,
    shown,
    train_and_new,
    write_transfer,
)

from orthcr.reports.runs import TrainingData
from orthcr.reports.tree import collect

# ------------------------------------------------------------------ logs


def test_coops_cross_dataset_logs_without_the_training(tmp_path):
    """The model's log is not here: CoOp's names of directories say what it was trained on."""
    for seed in SEEDS:
        where = f"CoOp/rn50_16shots/nctx16_cscFalse_ctpend/seed{seed}"
        for dataset in ("DescribableTextures", "ImageNetV2"):
            folder = tmp_path / "evaluation" / "CoOp" / STEMS[dataset] / f"seed{seed}"
            log(folder, "CoOp", dataset, "all", seed, (seed * 100, 1000), f"output/imagenet/{where}", shots=-1)
    xd, dg = made(tmp_path)[0]
    assert xd.rows == [["CoOp", "-", "20.00 ± 8.16"]] and xd.title == "Cross-dataset: trained on ImageNet, 16 shots"
    assert "CoOp on ImageNet: seeds 1, 2, 3 are missing" in xd.notes and dg.heads[2] == "-V2"


def test_a_model_of_which_nothing_is_known_is_left_out(tmp_path):
    base_log(tmp_path, "CoCoOp", "EuroSAT", 1, (500, 1000))
    strange = log(tmp_path / "a", "CoCoOp", "EuroSAT", "new", 1, (400, 1000), "results/best/seed1")
    nowhere = log(tmp_path / "b", "CoCoOp", "EuroSAT", "new", 1, (300, 1000), "", eval_only=True)
    ours(tmp_path / "c", "CoCoOp", None, "EuroSAT", "new", 20.0, eval_only=True, trainable_params=10)
    (table,), left_out = made(tmp_path)
    assert figure(table, classes="new").values == {}
    for folder in (strange, nowhere, tmp_path / "c"):
        assert len([line for line in left_out if str(folder) in line and "are unknown" in line]) == 1


def test_the_training_log_tells_more_than_names(tmp_path):
    """Names that follow nothing, or that lie: what counts is what the training itself says."""
    log(tmp_path / "output" / "best" / "try7", "CoOp", "EuroSAT", "base", 2, (500, 1000))
    log(tmp_path / "x", "CoOp", "EuroSAT", "new", 1, (400, 1000), "../output/best/try7/")  # seed of the test: 1
    table = only(tmp_path)
    assert figure(table, classes="new").values == {2: 40.0}

    lying = tmp_path / "output" / "base2new" / "train_base" / "dtd" / "shots_16" / "CoOp" / "cfg" / "seed1"
    log(lying, "CoOp", "DescribableTextures", "new", 1, (900, 1000))
    new_log(tmp_path / "y", "CoOp", "DescribableTextures", 1, (901, 1000))
    (table, bound), _ = made(tmp_path)
    assert {c.target for c in table.cells} == {"EuroSAT"}
    assert figure(bound, target="DescribableTextures").values == {1: 90.0}


def test_the_end_of_a_path_alone_identifies_nothing(tmp_path):
    """The same ending in a tree of another data set: CoOp's directories end alike for all of them."""
    where = "CoOp/rn50_16shots/nctx16_cscFalse_ctpend/seed1"
    log(tmp_path / "dtd" / where, "CoOp", "DescribableTextures", "all", 1, (500, 1000))
    log(tmp_path / "dtd" / "e", "CoOp", "EuroSAT", "all", 1, (300, 1000), f"output/imagenet/{where}")
    runs, _ = collect([tmp_path / "dtd"])
    assert next(r for r in runs if r.dataset == "EuroSAT").trained == TrainingData("ImageNet", "all", 16, 1)

    log(tmp_path / "x" / "seed1", "CoOp", "OxfordPets", "base", 1, (500, 1000))
    log(tmp_path / "x" / "e", "CoOp", "OxfordPets", "new", 1, (300, 1000), "results/best/seed1")
    log(tmp_path / "x" / "f", "CoCoOp", "OxfordPets", "new", 1, (300, 1000), "x/seed1")  # the model of another trainer
    log(tmp_path / "x" / "g", "CoOp", "OxfordPets", "new", 1, (300, 1000), "seed1")
    (table,), left_out = made(tmp_path / "x")
    assert len(left_out) == 3 and figure(table, classes="new").values == {}


def test_two_peoples_trees_are_not_mixed(tmp_path):
    for person, epochs, correct in (("a", 5, 400), ("b", 10, 600)):
        base_log(tmp_path / person / "output", "MaPLe", "EuroSAT", 1, (correct, 1000), epochs=epochs)
        new_log(tmp_path / person / "output", "MaPLe", "EuroSAT", 1, (correct - 100, 1000), epochs=3)
    table = only(tmp_path)
    of = {c.method: c.values for c in table.cells if c.classes == "new"}
    assert of == {f"MaPLe (MAX_EPOCH {k})": {1: acc} for k, acc in ((5, 30.0), (10, 50.0))}


def test_which_result_of_a_log_counts(tmp_path):
    val = "".join(f"epoch [{k}/3]\n{result(NEW.randint(900, 999), 1000, 'val')}" for k in (1, 2, 3))
    best = f"{val}Finish training\nDeploy the model with the best val performance\n{result(432, 1000)}Elapsed: 1\n"
    log(tmp_path / "a", "CoOp", "EuroSAT", "all", 1, best)
    old = result(999, 1000).replace("Evaluate on the *test* set", "Do evaluation on test set")
    older = f"{old}{old}Finished training\n{old.replace('999', '123').replace('99.9', '12.3')}Elapsed: 1\n"
    log(tmp_path / "b", "CoOp", "EuroSAT", "all", 2, older)
    short = "Finish training\nEvaluate on the *test* set\n=> result\n* accuracy: 56.7%\n"  # of a changed evaluator
    log(tmp_path / "c", "CoOp", "EuroSAT", "all", 3, short)
    twice = f"Finish training\n{result(1, 10)}Elapsed: 1\n{result(654, 1000)}"
    log(tmp_path / "d", "CoOp", "EuroSAT", "all", 4, twice)
    assert figure(only(tmp_path), target="EuroSAT").values == {1: 43.2, 2: 12.3, 3: 56.7, 4: 65.4}


def test_unfinished_runs_are_named(tmp_path):
    log(tmp_path / "done", "CoOp", "EuroSAT", "all", 1, (500, 1000))
    tails = {
        "killed": "epoch [1/5] batch [5/5] loss 1\n",
        "while-testing": result(1, 10),
        "cut": "Finish training\n=> result\n",
        "trace": f"Finish training\n{result(1, 10)}Traceback (most recent call last):\n  x\n",
    }
    for k, (name, tail) in enumerate(tails.items()):
        log(tmp_path / name, "CoOp", "EuroSAT", "all", k + 2, tail)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "log.txt").write_text("Setting fixed seed: 1\n** Config **\nSEED: 1\n** System info **\n")
    (table,), left_out = made(tmp_path)
    assert figure(table, target="EuroSAT").values == {1: 50.0}
    assert len(left_out) == 5 and all("unfinished" in line for line in left_out)
    assert all(any(name in line for line in left_out) for name in [*tails, "ours"])


def test_an_interrupted_run_that_was_given_again_is_finished(tmp_path):
    log(tmp_path, "CoOp", "EuroSAT", "all", 1, "epoch [1/5]\n")
    log(tmp_path, "CoOp", "EuroSAT", "all", 1, (300, 1000), name="log.txt-2023-01-02-03-04-05")
    log(tmp_path, "CoOp", "EuroSAT", "all", 1, (400, 1000), name="log.txt-2023-02-02-03-04-05")
    log(tmp_path, "CoOp", "EuroSAT", "all", 1, "epoch [1/5]\n", name="log.txt-2023-03-02-03-04-05")
    assert figure(only(tmp_path), target="EuroSAT").values == {1: 40.0}


def test_an_evaluation_in_the_directory_of_its_model(tmp_path):
    folder = base_log(tmp_path, "CoOp", "EuroSAT", 1, (500, 1000))
    where = "output/" + folder.relative_to(tmp_path).as_posix()
    log(folder, "CoOp", "EuroSAT", "new", 1, (400, 1000), where, name="log.txt-2023-01-02-03-04-05", cfg="cfg")
    table = only(tmp_path)
    assert figure(table, classes="base").values == {1: 50.0} and figure(table, classes="new").values == {1: 40.0}


def test_results_json_wins_over_the_log_beside_it(tmp_path):
    folder = log(tmp_path / "a", "CoOp", "EuroSAT", "all", 1, (500, 1000))
    ours(folder, "CoOp", ("EuroSAT", "all", 16, 1), "EuroSAT", "all", 66.125)
    assert figure(only(tmp_path), target="EuroSAT").values == {1: 66.125}


def test_val_never_enters(tmp_path):
    on = ("EuroSAT", "all", 16, 1)
    ours(tmp_path / "a", "CoOp", on, "EuroSAT", "all", 66.0, split="val", eval_only=True)
    folder = "output/eurosat/CoOp/rn50_16shots/nctx/seed1"
    log(tmp_path / "b", "CoOp", "EuroSAT", "all", 1, result(9, 10, "val"), folder, split="val")
    with pytest.raises(ValueError, match="evaluated on val"):
        collect([tmp_path])
    ours(tmp_path / "c", "CoOp", on, "EuroSAT", "all", 55.0)
    (table,), left_out = made(tmp_path)
    assert figure(table, target="EuroSAT").values == {1: 55.0} and len(left_out) == 2
    assert all(line.endswith(": evaluated on val") for line in left_out)


# ------------------------------------------------------------------ names and places of directories


def rename(root):
    """Gives every directory below another name."""
    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
        folder.rename(folder.with_name(f"{NEW.getrandbits(40):x}"))


def test_names_of_directories_play_no_part(tmp_path):
    write_transfer(tmp_path / "tree")
    for seed in SEEDS:
        for dataset in ("EuroSAT", "OxfordPets"):
            train_and_new(tmp_path / "tree", "CoOp", dataset, seed, accuracy(), accuracy())
            on = (dataset, "new", 16, seed)
            ours(tmp_path / "tree" / f"n{dataset}{seed}", "CoOp", on, dataset, "new", accuracy())
    before = shown(tmp_path / "tree")
    assert len(before) == 4
    for _ in range(3):
        rename(tmp_path / "tree")
        assert shown(tmp_path / "tree") == before


def test_a_tree_of_logs_may_move(tmp_path):
    root = tmp_path / "output"
    for seed in SEEDS:
        for dataset in ("EuroSAT", "OxfordPets"):
            base_log(root, "MaPLe", dataset, seed, (NEW.randint(0, 999), 1000))
            new_log(root, "MaPLe", dataset, seed, (NEW.randint(0, 999), 1000))
            base_log(root, "MaPLe", dataset, seed, (NEW.randint(0, 999), 1000), part="train_new")
    before = shown(root)
    assert len(before) == 2
    shutil.move(root, tmp_path / "elsewhere")
    assert shown(tmp_path / "elsewhere") == before
    assert shown(tmp_path / "elsewhere" / "base2new") == before
    shutil.move(tmp_path / "elsewhere" / "base2new", tmp_path / "b2n")
    assert shown(tmp_path / "b2n") == before
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "there").symlink_to(tmp_path / "b2n")
    (tmp_path / "b2n" / "circle").symlink_to(tmp_path / "link")
    assert shown(tmp_path / "link") == before
    assert len(collect([tmp_path / "link", tmp_path / "b2n"])[0]) == 18
    for part in ("train_base", "test_new", "train_new"):  # apart from each other
        shutil.move(tmp_path / "b2n" / part, tmp_path / f"{part}_alone")
    assert shown(*(tmp_path / f"{part}_alone" for part in ("train_new", "test_new", "train_base"))) == before
    runs, _ = collect(tmp_path / f"{part}_alone" for part in ("train_new", "test_new"))  # whose names end alike
    assert {r.trained.classes for r in runs if r.model_dir} == {"base"}
