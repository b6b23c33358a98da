"""The tables of report.py: what each protocol takes, its figures, and which runs are of one method."""

import shutil

import numpy as np
import pytest
from trees import (
    NEW,
    SEEDS,
    accuracy,
    base_log,
    expected,
    figure,
    log,
    made,
    mean_std,
    new_log,
    only,
    ours,
    train_and_new,
    write_transfer,
)

from orthcr.reports.report import describe_unused
from orthcr.reports.tables import format_mean, harmonic_mean, tables
from orthcr.reports.tree import collect
from report import main

# ------------------------------------------------------------------ base-to-new


def test_harmonic_mean_and_spread():
    assert harmonic_mean(80.0, 60.0) == pytest.approx(68.5714285714) and harmonic_mean(0.0, 0.0) == 0.0
    values = [accuracy() for _ in SEEDS]
    assert format_mean(values) == f"{np.mean(values):.1f} ± {np.std(values):.1f}"
    assert format_mean(values[:1], 2) == f"{values[0]:.2f}"


@pytest.mark.parametrize("kind", ["results", "logs"])
def test_base_to_new_by_hand(tmp_path, kind):
    total, acc = 1234, {}
    for dataset in ("Caltech101", "DescribableTextures"):
        for seed in SEEDS:
            base, new = NEW.randint(100, total), NEW.randint(100, total)
            acc[dataset, seed] = 100 * base / total, 100 * new / total
            if kind == "results":
                train_and_new(tmp_path, "MaPLe", dataset, seed, *acc[dataset, seed])
            else:
                base_log(tmp_path, "MaPLe", dataset, seed, (base, total))
                new_log(tmp_path, "MaPLe", dataset, seed, (new, total))
    table = only(tmp_path)
    assert table.protocol == "base2new" and table.title == "Base-to-new, 16 shots"
    hs = {key: 2 * b * n / (b + n) for key, (b, n) in acc.items()}
    for dataset in ("Caltech101", "DescribableTextures"):
        base, new = ([acc[dataset, s][k] for s in SEEDS] for k in (0, 1))
        assert mean_std(figure(table, target=dataset, classes="base")) == expected(base)
        assert mean_std(figure(table, target=dataset, classes="new")) == expected(new)
        assert mean_std(figure(table, target=dataset, metric="H")) == expected([hs[dataset, s] for s in SEEDS])
    by_seed = [np.mean([acc[d, s] for d in ("Caltech101", "DescribableTextures")], 0) for s in SEEDS]
    for k, classes in enumerate(("base", "new")):
        assert mean_std(figure(table, target="average", classes=classes)) == expected([v[k] for v in by_seed])
    h_by_seed = [2 * b * n / (b + n) for b, n in by_seed]  # of the averages, as in papers
    assert mean_std(figure(table, target="average", metric="H")) == expected(h_by_seed)
    assert "DTD" in str(table) and f"{np.mean([acc['Caltech101', s][0] for s in SEEDS]):.2f} ± " in str(table)


@pytest.mark.parametrize("kind", ["results", "logs"])
def test_a_training_on_the_new_classes_is_no_base_to_new_result(tmp_path, kind):
    """CoOp's upper bound is tested on the same classes, and must not be averaged with the base models."""
    base, new, upper = (NEW.randint(0, 1000) for _ in range(3))
    dataset = "EuroSAT"
    if kind == "results":
        train_and_new(tmp_path, "CoOp", dataset, 1, base / 10, new / 10)
        ours(tmp_path / "z", "CoOp", (dataset, "new", 16, 1), dataset, "new", upper / 10)
        ours(tmp_path / "z" / "e", "CoOp", (dataset, "new", 16, 1), dataset, "new", upper / 10, eval_only=True)
    else:
        base_log(tmp_path, "CoOp", dataset, 1, (base, 1000))
        new_log(tmp_path, "CoOp", dataset, 1, (new, 1000))
        base_log(tmp_path, "CoOp", dataset, 1, (upper, 1000), part="train_new")
        new_log(tmp_path / "again", "CoOp", dataset, 1, (upper, 1000), trained="train_new")
    (table, bound), left_out = made(tmp_path)
    assert not left_out and bound.protocol == "new" and "no base-to-new" in bound.title
    assert figure(table, classes="new").values == {1: pytest.approx(new / 10)}
    assert figure(bound, classes="new").values == {1: pytest.approx(upper / 10)}

    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    ours(tmp_path / "z", "CoOp", (dataset, "new", 16, 1), dataset, "new", upper / 10)
    assert only(tmp_path).protocol == "new"


def test_zero_shot_is_the_first_row_and_has_no_spread(tmp_path):
    train_and_new(tmp_path, "CoOp", "EuroSAT", 1, 80.0, 60.0)
    for seed in SEEDS:  # the same result three times
        for classes, acc in (("base", 51.25), ("new", 62.5)):
            ours(tmp_path / f"zs{seed}{classes}", "ZeroshotCLIP", None, "EuroSAT", classes, acc, seed=seed)
    ours(tmp_path / "other", "ZeroshotCLIP", None, "Caltech101", "base", 5.0)  # where nothing was trained
    table = only(tmp_path)
    assert table.rows[0] == ["EuroSAT", "ZeroshotCLIP", "51.25", "62.50", "56.32"]
    assert len(table.rows) == 2 and not table.notes
    (line,) = describe_unused(collect([tmp_path])[0], [table])
    assert "ZeroshotCLIP, zero-shot" in line and "Caltech101" in line

    zero = tmp_path / "alone"
    for classes in ("base", "new"):
        ours(zero / classes, "ZeroshotCLIP", None, "EuroSAT", classes, 51.25)
    assert only(zero).rows == [["EuroSAT", "ZeroshotCLIP", *["51.25"] * 3]]


def test_missing_seeds_are_named_and_marked(tmp_path, capsys):
    for seed in SEEDS:
        train_and_new(tmp_path, "CoOp", "DescribableTextures", seed, 80 + seed, 50 + seed)
        train_and_new(tmp_path, "MaPLe", "DescribableTextures", seed, 80 + seed, 70 + seed)
        train_and_new(tmp_path, "MaPLe", "EuroSAT", seed, 90.0, 60.0)
    shutil.rmtree(tmp_path / "DescribableTextures" / "CoOp" / "seed2" / "new")
    table = only(tmp_path)
    assert "CoOp on DescribableTextures, new: seed 2 is missing" in table.notes and "fewer" in table.notes[0]
    row = next(row for row in table.rows if row[:2] == ["DTD", "CoOp"])
    assert row[2] == "82.00 ± 0.82" and row[3] == "52.00 ± 1.00*" and row[4].endswith("*")
    assert figure(table, method="CoOp", target="DescribableTextures", metric="H").missing == (2,)
    average = next(row for row in table.rows if row[:2] == ["average", "CoOp"])
    assert all(text.endswith("*") for text in average[2:])  # of one data set only
    assert all(f"CoOp on average, {head}: without EuroSAT" in table.notes for head in ("base", "new", "H"))
    assert not any("MaPLe" in note for note in table.notes)

    table = only(tmp_path, seeds=[1, 3, 4])
    assert "MaPLe on EuroSAT, base: seed 4 is missing" in table.notes
    assert figure(table, method="CoOp", target="DescribableTextures", classes="base").values == {1: 81, 3: 83}
    assert main([str(tmp_path), "--seeds", "1", "3"]) == 0
    assert "no table" not in capsys.readouterr().out
    assert main([str(tmp_path), "--seeds", "7"]) == 1
    assert capsys.readouterr().err == "error: no run has one of the seeds 7\n"

    shutil.rmtree(tmp_path / "DescribableTextures" / "CoOp" / "seed1" / "new")
    shutil.rmtree(tmp_path / "DescribableTextures" / "CoOp" / "seed3" / "new")
    row = next(row for row in only(tmp_path).rows if row[:2] == ["DTD", "CoOp"])
    assert row[3:] == ["-", "-"]

    train_and_new(tmp_path, "CoOp", "EuroSAT", 1, 90.0, 60.0)  # base over two data sets, new over one: no H of these
    average = next(row for row in only(tmp_path).rows if row[:2] == ["average", "CoOp"])
    assert average[2:] == ["85.50*", "60.00*", "-"]


# ------------------------------------------------------------------ the other protocols


def test_few_shot_by_hand(tmp_path):
    acc = {}
    for dataset in ("EuroSAT", "Caltech101"):
        for shots in (1, 2, 4, 8, 16):
            for seed in SEEDS:
                acc[dataset, shots, seed] = accuracy()
                on = (dataset, "all", shots, seed)
                ours(tmp_path / dataset / f"{shots}_{seed}", "CoOp", on, dataset, "all", acc[dataset, shots, seed])
        ours(tmp_path / dataset / "z", "ZeroshotCLIP", None, dataset, "all", 50.0)
    table = only(tmp_path)
    assert table.heads[2:] == ["0 shots", "1 shot", "2 shots", "4 shots", "8 shots", "16 shots"]
    assert [row[0] for row in table.rows] == ["Caltech101"] * 2 + ["EuroSAT"] * 2 + ["average"] * 2
    assert table.rows[0] == ["Caltech101", "ZeroshotCLIP", "50.00", *[""] * 5]
    for shots in (1, 2, 4, 8, 16):
        values = [acc["EuroSAT", shots, s] for s in SEEDS]
        assert mean_std(figure(table, target="EuroSAT", shots=shots)) == expected(values)
        both = [(acc["EuroSAT", shots, s] + acc["Caltech101", shots, s]) / 2 for s in SEEDS]
        assert mean_std(figure(table, target="average", shots=shots)) == expected(both)
    shutil.rmtree(tmp_path / "EuroSAT" / "4_2")
    assert "CoOp on EuroSAT, 4 shots: seed 2 is missing" in only(tmp_path).notes


def test_no_shots_are_all_images(tmp_path):
    """NUM_SHOTS 0 trains on everything, as -1 does: a column of its own, not the one of zero-shot CLIP."""
    for k, shots in enumerate((0, -1, 16)):
        ours(tmp_path / f"{k}", "CoOp", ("EuroSAT", "all", shots, k), "EuroSAT", "all", 50 + k)
        log(tmp_path / f"log{k}", "KgCoOp", "EuroSAT", "all", k, (700 + k, 1000), shots=shots)
    table = only(tmp_path)
    assert table.heads[2:] == ["16 shots", "all images"]
    assert [row[1:] for row in table.rows] == [
        ["CoOp", "52.00*", "50.50 ± 0.50*"],
        ["KgCoOp (Dassl.pytorch)", "70.20*", "70.05 ± 0.05*"],
    ]


def test_cross_dataset_and_domain_generalization(tmp_path):
    acc = write_transfer(tmp_path)
    (xd, dg), left_out = made(tmp_path)
    assert not left_out and (xd.protocol, dg.protocol) == ("xd", "dg")
    assert xd.heads == ["method", "ImageNet", "Pets", "EuroSAT", "average"]
    assert dg.heads == ["method", "ImageNet", "-V2", "-Sketch", "average"]
    assert xd.rows[0] == ["ZeroshotCLIP", *["40.00"] * 4]
    for table, names in ((xd, ("OxfordPets", "EuroSAT")), (dg, ("ImageNetV2", "ImageNetSketch"))):
        for name in ("ImageNet", *names):
            values = [acc[name, s] for s in SEEDS]
            assert mean_std(figure(table, method="MaPLe", target=name)) == expected(values)
        average = [np.mean([acc[name, s] for name in names]) for s in SEEDS]
        assert mean_std(figure(table, method="MaPLe", target="average")) == expected(average)


def test_two_trainings_that_are_alike_are_told_apart_by_their_evaluations(tmp_path):
    """On a GPU the same training again gives another result: the source column is of the model that was evaluated."""
    acc = write_transfer(tmp_path)
    for seed in SEEDS:
        on = ("ImageNet", "all", 16, seed)
        again = 100 - acc["ImageNet", seed] / 2
        config = {"OPTIM": {"MAX_EPOCH": 50}}  # may differ, too
        ours(tmp_path / "fewshot" / f"{seed}", "MaPLe", on, "ImageNet", "all", again, config=config)
    (few, xd, _), left_out = made(tmp_path)
    assert not left_out and few.protocol == "fewshot" and not xd.notes
    assert [row[0] for row in xd.rows] == ["ZeroshotCLIP", "MaPLe"]
    for seed in SEEDS:
        assert figure(xd, method="MaPLe", target="ImageNet").values[seed] == acc["ImageNet", seed]
        assert figure(few, method="MaPLe", target="ImageNet").values[seed] == 100 - acc["ImageNet", seed] / 2


def test_a_source_model_fills_a_gap_in_the_few_shot_curve(tmp_path):
    """CoOp's scripts train it once for both."""
    acc = write_transfer(tmp_path)
    ours(tmp_path / "few", "MaPLe", ("ImageNet", "all", 4, 1), "ImageNet", "all", 50.0)
    few = made(tmp_path)[0][0]
    assert few.protocol == "fewshot" and few.heads[2:] == ["0 shots", "4 shots", "16 shots"]
    assert figure(few, shots=16).values == {seed: acc["ImageNet", seed] for seed in SEEDS}


def test_the_embedded_variants_are_domain_generalization(tmp_path):
    on = ("Shapes", "all", 16, 1)
    model = ours(tmp_path / "m", "OrthCR", on, "Shapes", "all", 80.0)
    for target in ("ShapesFog", "Digits"):
        ours(model / target, "OrthCR", on, target, "all", 50.0, eval_only=True)
    assert [t.heads for t in made(tmp_path)[0]] == [["method", "Shapes", "Digits"], ["method", "Shapes", "Fog"]]


def test_what_no_table_takes_is_named(tmp_path):
    train_and_new(tmp_path, "CoOp", "EuroSAT", 1, 80.0, 60.0)
    for seed in SEEDS:
        on = ("EuroSAT", "base", 16, seed)
        ours(tmp_path / f"o{seed}", "CoOp", on, "EuroSAT", "all", 30.0, eval_only=True)
    runs, _ = collect([tmp_path])
    (line,) = describe_unused(runs, tables(runs))
    assert "CoOp, trained on base classes of EuroSAT, evaluated on all classes of EuroSAT (3 results)" in line


# ------------------------------------------------------------------ what is kept apart


def test_configs_and_backbones_are_kept_apart(tmp_path):
    for reg, lr, shift in (("cross_kl", 1e-3, 0), ("none", 1e-3, 10)):
        for seed in SEEDS:
            for backbone in ("ViT-B/16", "RN50"):
                config = {
                    "TRAINER": {"ORTHCR": {"REG": reg, "PREC": NEW.choice(["amp", "fp32"])}},
                    "OPTIM": {"LR": lr},
                    "SEED": seed,
                    "DATASET": {"ROOT": str(NEW.random())},
                }
                acc = 40 + seed + shift + 20 * (backbone == "RN50")
                train_and_new(
                    tmp_path / f"{reg}{seed}{backbone[:2]}",
                    "OrthCR",
                    "EuroSAT",
                    seed,
                    acc,
                    acc,
                    backbone=backbone,
                    config=config,
                )
    shutil.rmtree(tmp_path / "none3RN")
    table = only(tmp_path)
    labels = [row[1:3] for row in table.rows]
    assert labels[:2] == [["OrthCR (RN50, REG cross_kl)", "62.00 ± 0.82"], ["OrthCR (RN50, REG none)", "71.50 ± 0.50*"]]
    assert labels[2:] == [
        ["OrthCR (ViT-B/16, REG cross_kl)", "42.00 ± 0.82"],
        ["OrthCR (ViT-B/16, REG none)", "52.00 ± 0.82"],
    ]
    assert "OrthCR (RN50, REG none) on EuroSAT, new: seed 3 is missing" in table.notes


def test_epochs_that_follow_the_shots_make_one_curve(tmp_path):
    """CoOp trains 50 epochs on one image a class and 200 on sixteen, from two files."""
    for shots, epochs in ((1, 50), (16, 200)):
        for seed in SEEDS:
            log(
                tmp_path / f"{shots}_{seed}",
                "CoOp",
                "EuroSAT",
                "all",
                seed,
                (500 + shots, 1000),
                shots=shots,
                epochs=epochs,
                cfg=f"rn50_ep{epochs}",
            )
    table = only(tmp_path)
    assert len(table.rows) == 1
    said = "not all of its runs have the same OPTIM.MAX_EPOCH (200, 50), config (rn50_ep200, rn50_ep50)"
    assert f"CoOp: {said}" in table.notes

    for seed in SEEDS:  # but what differs where all else is the same makes two rows
        log(tmp_path / f"csc{seed}", "CoOp", "EuroSAT", "all", seed, (300, 1000), shots=16, csc=True, epochs=200)
    assert [row[1:] for row in only(tmp_path).rows] == [
        ["CoOp (CSC False)", "50.10 ± 0.00", "51.60 ± 0.00"],
        ["CoOp (CSC True)", "-", "30.00 ± 0.00"],
    ]
    for seed in SEEDS:
        log(tmp_path / f"file{seed}", "CoOp", "EuroSAT", "all", seed, (200, 1000), shots=8, cfg="one")
        log(tmp_path / f"file{seed}_2", "CoOp", "EuroSAT", "all", seed, (400, 1000), shots=8, cfg="two")
    shutil.rmtree(tmp_path / "csc1")
    shutil.rmtree(tmp_path / "csc2")
    shutil.rmtree(tmp_path / "csc3")
    assert {row[1] for row in only(tmp_path).rows} >= {"CoOp (config one)", "CoOp (config two)"}


def test_zero_shot_results_differ_by_what_concerns_the_model_only(tmp_path):
    for k, (epochs, prompt) in enumerate([(5, "a"), (10, "a"), (5, "b")]):
        config = {"OPTIM": {"MAX_EPOCH": epochs}, "TRAINER": {"ZEROSHOTCLIP": {"TEMPLATE": prompt}}}
        ours(tmp_path / str(k), "ZeroshotCLIP", None, "EuroSAT", "all", 50.0 + 10 * (prompt == "b"), config=config)
    assert [row[1:] for row in only(tmp_path).rows] == [
        ["ZeroshotCLIP (TEMPLATE a)", "50.00"],
        ["ZeroshotCLIP (TEMPLATE b)", "60.00"],
    ]


def test_runs_on_other_images_are_kept_apart(tmp_path):
    """A few-shot split of somebody else has a path and a checksum for each seed: all are one method."""
    splits = {"drawn": {}, "lora": {"SAMPLING": "val_first"}, "file": {"FEW_SHOT_SPLIT": "/data/few_{}.jsonl"}}
    for seed in SEEDS:
        for percent, (name, keys) in enumerate(splits.items(), start=50):
            keys = {key: value.format(seed) for key, value in keys.items()}
            node = {"SAMPLING": "dassl", "FEW_SHOT_SPLIT": "", "SPLIT_SHA256": [str(seed)]} | keys
            on = ("EuroSAT", "all", 16, seed)
            ours(tmp_path / f"{name}{seed}", "CoOp", on, "EuroSAT", "all", percent, config={"DATASET": node})
    rows = {row[1]: row[2] for row in only(tmp_path).rows}
    assert rows == {
        "CoOp (FEW_SHOT_SPLIT drawn, SAMPLING dassl)": "50.00 ± 0.00",
        "CoOp (FEW_SHOT_SPLIT drawn, SAMPLING val_first)": "51.00 ± 0.00",
        "CoOp (FEW_SHOT_SPLIT of a file, SAMPLING dassl)": "52.00 ± 0.00",
    }


def test_descriptions_are_told_apart_by_their_content(tmp_path):
    """The copy in the directory of a run is the same file as the one that it was given."""
    files = [
        ("/data/a.json", "1f" * 32, 40.0),
        ("/run/descriptions.json", "1f" * 32, 40.0),
        ("/b.json", "2e" * 32, 50.0),
    ]
    for k, (path, checksum, percent) in enumerate(files):
        config = {"TRAINER": {"CUPL": {"DESCRIPTIONS": path, "DESCRIPTIONS_SHA256": checksum}}}
        ours(tmp_path / str(k), "CuPL", None, "EuroSAT", "all", percent, config=config)
    rows = [row[1:] for row in only(tmp_path).rows]
    assert rows == [["CuPL (DESCRIPTIONS 1f1f1f1f)", "40.00"], ["CuPL (DESCRIPTIONS 2e2e2e2e)", "50.00"]]


def test_our_runs_and_those_on_the_original_dassl_are_kept_apart(tmp_path):
    for seed in SEEDS:
        log(tmp_path / f"a{seed}", "CoOp", "EuroSAT", "all", seed, (500, 1000))
        ours(tmp_path / f"b{seed}", "CoOp", ("EuroSAT", "all", 16, seed), "EuroSAT", "all", 60.0)
    table = only(tmp_path)
    assert sorted(row[2] for row in table.rows) == ["50.00 ± 0.00", "60.00 ± 0.00"]
    assert {row[1] for row in table.rows} == {"CoOp", "CoOp (Dassl.pytorch)"}


def test_copies_count_once_and_contradictions_not_at_all(tmp_path):
    train_and_new(tmp_path, "CoOp", "EuroSAT", 1, 80.0, 60.0)
    train_and_new(tmp_path, "CoOp", "EuroSAT", 2, 82.0, 62.0)
    shutil.copytree(tmp_path / "EuroSAT", tmp_path / "copy")
    assert figure(only(tmp_path, tmp_path / "copy"), classes="base").values == {1: 80.0, 2: 82.0}
    on = ("EuroSAT", "base", 16, 2)
    ours(tmp_path / "again", "CoOp", on, "EuroSAT", "base", 85.5)
    table = only(tmp_path)
    assert figure(table, classes="base").values == {1: 80.0}
    (note,) = [note for note in table.notes if "different results" in note]
    assert "CoOp on EuroSAT, base, seed 2" in note and "82.00 in" in note and f"85.50 in {tmp_path / 'again'}" in note


def test_an_evaluation_of_an_earlier_model_in_the_same_directory(tmp_path):
    model = ours(tmp_path / "m", "CoOp", ("EuroSAT", "new", 16, 1), "EuroSAT", "new", 90.0)
    ours(model / "eval", "CoOp", ("EuroSAT", "base", 16, 1), "EuroSAT", "new", 60.0, eval_only=True)
    (table, bound), _ = made(tmp_path)
    assert figure(table, classes="new").values == {1: 60.0} and figure(bound, classes="new").values == {1: 90.0}


def test_a_setting_that_older_runs_do_not_know_makes_no_row(tmp_path):
    for seed, config in ((1, {"OPTIM": {"LR": 0.1}}), (2, {"OPTIM": {"LR": 0.1}, "INPUT": {"NEW": False}})):
        ours(tmp_path / f"{seed}", "CoOp", ("EuroSAT", "all", 16, seed), "EuroSAT", "all", 50.0, config=config)
    assert only(tmp_path).rows == [["EuroSAT", "CoOp", "50.00 ± 0.00"]]


def test_own_images_are_told_apart_by_their_folder(tmp_path):
    for name, acc in (("pets", 70.0), ("cars", 90.0)):
        on, config = ("Images", "all", -1, 1), {"DATASET": {"IMAGES": f"/home/me/{name}"}}
        model = ours(tmp_path / name, "CoOp", on, "Images", "all", acc, config=config)
        kept = {"DATASET": {"IMAGES": f"/home/me/out/{name}/split.json"}}
        ours(model / "eval", "CoOp", on, "Images", "all", acc, eval_only=True, config=kept)
    table = only(tmp_path)
    assert table.heads == ["data set", "method", "all images"]
    assert [row[:3] for row in table.rows[:2]] == [["Images cars", "CoOp", "90.00"], ["Images pets", "CoOp", "70.00"]]


# ------------------------------------------------------------------ with and without Cutout


def test_with_and_without_cutout_are_rows_of_their_own(tmp_path):
    plain, holes = ["random_resized_crop", "normalize"], ["random_resized_crop", "normalize", "cutout"]
    orders = {"CoOp": holes, "OrthCR": ["random_resized_crop", "cutout", "normalize"]}
    for trainer, with_cutout in orders.items():
        for folder, transforms in (("with_cutout", with_cutout), ("without_cutout", plain)):
            config = {"TRAINER.NAME": trainer, "INPUT.TRANSFORMS": transforms, "INPUT.CUTOUT_LEN": 8}
            train_and_new(tmp_path / folder, trainer, "EuroSAT", 1, accuracy(), accuracy(), config=config)
    labels = {name for _, name in only(tmp_path).lines}
    assert labels == {f"{name} ({word})" for name in orders for word in ("Cutout", "no Cutout")}


def test_other_transforms_are_named_whole(tmp_path):
    for transforms in (["normalize"], ["random_flip", "normalize"]):
        config = {"TRAINER.NAME": "CoOp", "INPUT.TRANSFORMS": transforms}
        train_and_new(tmp_path / transforms[0], "CoOp", "EuroSAT", 1, accuracy(), accuracy(), config=config)
    assert {name for _, name in only(tmp_path).lines} == {
        "CoOp (TRANSFORMS ['normalize'])",
        "CoOp (TRANSFORMS ['random_flip', 'normalize'])",
    }
