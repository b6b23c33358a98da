"""report.py on trees of results written here: our results.json, and log.txt as CoOp's and MaPLe's runs leave it."""

import csv
import io
import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import report
import train
from report import Trained, collect, harmonic_mean, main, spread, tables

STEMS = {
    "DescribableTextures": "dtd",
    "Caltech101": "caltech101",
    "ImageNet": "imagenet",
    "EuroSAT": "eurosat",
    "ImageNetV2": "imagenetv2",
    "ImageNetSketch": "imagenet_sketch",
    "OxfordPets": "oxford_pets",
}
SEEDS = (1, 2, 3)
NEW = random.Random()  # fresh at every run


def accuracy():
    return NEW.uniform(20, 99)


def ours(
    folder, trainer, on, dataset, classes, acc, eval_only=False, backbone="ViT-B/16", split="test", config=None, **more
):
    """`on`: (data set, classes, shots, seed) of the training; None: zero-shot."""
    folder.mkdir(parents=True, exist_ok=True)
    trained_on = on and dict(zip(("dataset", "classes", "shots", "seed"), on, strict=True))
    results = {
        "trainer": trainer,
        "dataset": dataset,
        "classes": classes,
        "seed": on[3] if on else 1,
        "shots": 16,
        "backbone": backbone,
        "eval_only": eval_only,
        "trained_on": trained_on,
        "split": split,
        "accuracy": acc,
        "trainable_params": 10 if on else 0,
        **more,
    }
    (folder / "results.json").write_text(json.dumps(results))
    if config is not None:
        (folder / "config.yaml").write_text(json.dumps(config))  # which is YAML
    return folder


def train_and_new(root, trainer, dataset, seed, base, new, **kwargs):
    """Our base-to-new runs: the training and, inside its directory, the evaluation on the new classes."""
    on = (dataset, "base", 16, seed)
    folder = ours(root / dataset / trainer / f"seed{seed}", trainer, on, dataset, "base", base, **kwargs)
    ours(folder / "new", trainer, on, dataset, "new", new, eval_only=True, **kwargs)


CONFIG = """\
DATALOADER:
  NUM_WORKERS: 8
  TEST:
    BATCH_SIZE: 100
DATASET:
  NAME: {dataset}
  NUM_SHOTS: {shots}
  ROOT: /data/somewhere
  SOURCE_DOMAINS: ()
  SUBSAMPLE_CLASSES: {classes}
INPUT:
  SIZE: (224, 224)
  TRANSFORMS: ('random_resized_crop', 'random_flip', 'normalize')
MODEL:
  BACKBONE:
    NAME: {backbone}
    PRETRAINED: True
  INIT_WEIGHTS: 
OPTIM:
  MAX_EPOCH: {epochs}
  STEPSIZE: (-1,)
OUTPUT_DIR: {out}
RESUME: 
SEED: {seed}
TEST:
  FINAL_MODEL: last_step
  SPLIT: {split}
TRAINER:
  COOP:
    CSC: {csc}
    CTX_INIT: a photo: of a {{}}
    PREC: fp16
  NAME: {trainer}
USE_CUDA: True
VERBOSE: True
VERSION: 1
"""


def result(correct, total, split="test"):
    acc = 100 * correct / total
    return (
        f"Evaluate on the *{split}* set\n=> result\n* total: {total:,}\n* correct: {correct:,}\n"
        f"* accuracy: {acc:.1f}%\n* error: {100 - acc:.1f}%\n* macro_f1: {acc - 1:.1f}%\n"
    )


def log(
    folder,
    trainer,
    dataset,
    classes,
    seed,
    tail,
    model_dir="",
    eval_only=None,
    shots=16,
    backbone="ViT-B/16",
    epochs=5,
    split="test",
    csc=False,
    cfg="vit_b16_c2_ep5_batch4_2ctx",
    name="log.txt",
):
    """`tail`: what follows the config, or (correct, total) of the usual end."""
    folder.mkdir(parents=True, exist_ok=True)
    eval_only = bool(model_dir) if eval_only is None else eval_only
    args = {
        "backbone": "",
        "config_file": f"configs/trainers/{trainer}/{cfg}.yaml",
        "dataset_config_file": f"configs/datasets/{STEMS[dataset]}.yaml",
        "eval_only": eval_only,
        "head": "",
        "load_epoch": epochs if eval_only else None,
        "model_dir": model_dir,
        "no_train": False,
        "opts": ["DATASET.NUM_SHOTS", str(shots), "DATASET.SUBSAMPLE_CLASSES", classes],
        "output_dir": "output/x",
        "resume": "",
        "root": "/data",
        "seed": seed,
        "trainer": trainer,
    }
    config = CONFIG.format(
        dataset=dataset,
        shots=shots,
        classes=classes,
        backbone=backbone,
        epochs=epochs,
        out="output/x",
        seed=seed,
        split=split,
        csc=csc,
        trainer=trainer,
    )
    if isinstance(tail, tuple):
        trained = "epoch [5/5] batch [5/5] time 0.1 (0.1) loss 0.1 (0.1) acc 99.0 (99.0)\nFinish training\n"
        tail = result(*tail) if eval_only else f"{trained}Deploy the last-epoch model\n{result(*tail)}Elapsed: 0:01\n"
    head = "***************\n** Arguments **\n***************\n" + "".join(f"{k}: {v}\n" for k, v in args.items())
    head += f"************\n** Config **\n************\n{config}\n"
    (folder / name).write_text(f"{head}Collecting env info ...\n** System info **\nPyTorch version: 1.9.0\n\n{tail}")
    return folder


def base_log(root, trainer, dataset, seed, tail, cfg="cfg", part="train_base", **kwargs):
    """Where CoCoOp's and MaPLe's scripts put it."""
    folder = root / "base2new" / part / STEMS[dataset] / "shots_16" / trainer / cfg / f"seed{seed}"
    return log(folder, trainer, dataset, part.partition("_")[2], seed, tail, cfg=cfg, **kwargs)


def new_log(root, trainer, dataset, seed, tail, cfg="cfg", trained="train_base", **kwargs):
    common = f"{STEMS[dataset]}/shots_16/{trainer}/{cfg}/seed{seed}"
    return log(
        root / "base2new" / "test_new" / common,
        trainer,
        dataset,
        "new",
        seed,
        tail,
        cfg=cfg,
        model_dir=f"output/base2new/{trained}/{common}",
        **kwargs,
    )


def made(*paths, seeds=None):
    left_out = []
    return tables(collect(paths, left_out), seeds), left_out


def only(*paths, **kwargs):
    """The one table of a tree, of which nothing is left out."""
    (table,), left_out = made(*paths, **kwargs)
    assert not left_out
    return table


def figure(table, **wanted):
    """The cell with these attributes."""
    (cell,) = [c for c in table.cells if all(getattr(c, key) == value for key, value in wanted.items())]
    return cell


def mean_std(cell):
    return cell.mean, cell.std


def expected(values):
    return pytest.approx((np.mean(values), np.std(values)))


# ------------------------------------------------------------------ base-to-new


def test_harmonic_mean_and_spread():
    assert harmonic_mean(80.0, 60.0) == pytest.approx(68.5714285714) and harmonic_mean(0.0, 0.0) == 0.0
    values = [accuracy() for _ in SEEDS]
    assert spread(values) == f"{np.mean(values):.1f} ± {np.std(values):.1f}"
    assert spread(values[:1], 2) == f"{values[0]:.2f}"


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
    (line,) = report.without_table(collect([tmp_path]), [table])
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


def write_transfer(root):
    """A model of ImageNet on two other data sets and two variants, and zero-shot on all of them."""
    acc = {}
    for seed in SEEDS:
        on = ("ImageNet", "all", 16, seed)
        acc["ImageNet", seed] = accuracy()
        model = ours(root / "xd" / f"seed{seed}", "MaPLe", on, "ImageNet", "all", acc["ImageNet", seed])
        for target in ("OxfordPets", "EuroSAT", "ImageNetV2", "ImageNetSketch"):
            acc[target, seed] = accuracy()
            ours(model / "eval" / target, "MaPLe", on, target, "all", acc[target, seed], eval_only=True)
    for name in ("ImageNet", "OxfordPets", "EuroSAT", "ImageNetV2", "ImageNetSketch"):
        ours(root / "zs" / name, "ZeroshotCLIP", None, name, "all", 40.0)
    return acc


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
    runs = collect([tmp_path])
    (line,) = report.without_table(runs, tables(runs))
    assert "CoOp, trained on base classes of EuroSAT, evaluated on all classes of EuroSAT (3 results)" in line


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
        assert len([line for line in left_out if str(folder) in line and "cannot be told" in line]) == 1


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
    runs = collect([tmp_path / "dtd"])
    assert next(r for r in runs if r.dataset == "EuroSAT").trained == Trained("ImageNet", "all", 16, 1)

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
    (note,) = [note for note in table.notes if "several results" in note]
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


# ------------------------------------------------------------------ names and places of directories


def rename(root):
    """Gives every directory below another name."""
    for folder in sorted((p for p in root.rglob("*") if p.is_dir()), key=lambda p: -len(p.parts)):
        folder.rename(folder.with_name(f"{NEW.getrandbits(40):x}"))


def shown(*paths):
    return [table.text() for table in made(*paths)[0]]


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
    assert len(collect([tmp_path / "link", tmp_path / "b2n"])) == 18
    for part in ("train_base", "test_new", "train_new"):  # apart from each other
        shutil.move(tmp_path / "b2n" / part, tmp_path / f"{part}_alone")
    assert shown(*(tmp_path / f"{part}_alone" for part in ("train_new", "test_new", "train_base"))) == before
    runs = collect(tmp_path / f"{part}_alone" for part in ("train_new", "test_new"))  # whose names end alike
    assert {r.trained.classes for r in runs if r.model_dir} == {"base"}


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
        colours = np.array([[0xE6, 0x9F, 0], [0, 0x72, 0xB2]])  # CoOp, MaPLe
        drawn = [(np.abs(pixels.astype(int) - colour).sum(-1) < 10).sum() > 50 for colour in colours]
        wanted = [name[:2] not in ("xd", "dg"), name[:2] in ("xd", "dg")]
        assert pixels.shape[1] >= 850 and drawn == wanted, name

    report.write(tmp_path / "tree")
    assert {path.name for path in (tmp_path / "tree").glob("*.*")} == {*files, "report.md", "report.csv", "log.txt"}
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
    results = train.run(train.parse([*argv, "VERBOSE", "False", "USE_CUDA", "False"]))
    table = only(tmp_path / "run")
    assert table.protocol == "fewshot" and figure(table, target="Shapes").values == {None: results["accuracy"]}
