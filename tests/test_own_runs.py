"""What a run on own images tells: val, zero-shot beside trained, the wrong ones, what was trained on."""

import csv
import json
import random
import re
import shutil
from collections import Counter

import numpy as np
import own_photos
import pytest
import torch
from own_photos import COLOURS, SMALL, build, make_photos, said
from PIL import Image

import predict
from dassl.utils import read_json
from datasets.shared.image_files import Row
from datasets.shared.image_split import divide
from orthcr.reports.pictures import plt
from orthcr.reports.predictions import draw_confusion_matrix
from orthcr.run.own_images import next_command, write_wrong
from orthcr.run.runner import main
from predict import Predictor
from trainers.base import ClipTrainer

photos = own_photos.photos  # the fixture


def train(photos, out, *words):
    small = SMALL if "--trainer" not in words else SMALL[:2]
    argv = ["--images", photos, "--output-dir", out, *words, *small, "OPTIM.MAX_EPOCH", 2]
    return main([*map(str, argv)])


# ------------------------------------------------------------------ val


@pytest.mark.parametrize("val", [0, 0.1, 0.4, 0.9, 1, 3, 100])
def test_val_of_undivided_images(val):
    """Training keeps its half, and one image at least is for test."""
    n, seed = random.randint(4, 60), random.randrange(100)
    divided = divide([Row(f"/{c}/{k}.jpg", c, "") for c in "ab" for k in range(n)], seed, val)
    for name in "ab":
        count = Counter(row.split for row in divided if row.classname == name)
        wanted = round(val * n) if val < 1 else val
        assert count["train"] == round(n / 2) and count["val"] == min(wanted, n - count["train"] - 1)
        assert sum(count.values()) == n


@pytest.mark.parametrize(("val", "n_val"), [(0, 0), (0.25, 3), (2, 2), (12, 11), (0.99, 11)])
def test_val_of_divided_images_is_taken_from_the_training(val, n_val):
    rows = [Row(f"/{part}/{c}/{k}.jpg", c, part) for part in ("train", "test") for c in "ab" for k in range(12)]
    divided = divide(rows, 1, val)
    assert [row.path for row in divided] == [row.path for row in rows]
    for name in "ab":
        count = Counter(row.split for row in divided if row.classname == name)
        assert (count["train"], count["val"], count["test"]) == (12 - n_val, n_val, 12)
    assert divide(rows, 1) == rows


def test_val_that_cannot_be_is_one_line(photos, tmp_path, capsys):
    out = ["--output-dir", tmp_path / "OUT"]
    assert "DATASET.VAL is inf" in said(capsys, "--images", photos, *out, "--val", "inf")
    told = said(capsys, "--images", photos, *out, "--val", "1.5", "VERBOSE", "False")
    assert "a share of each class below 1, or a whole number" in told
    assert "--val must be at least 0 (got -1)" in said(capsys, "--images", photos, "--val", "-1")
    assert "needs a training with --images" in said(capsys, "--val", "0.2")
    line = "--val 0.2 has no effect in an evaluation: leave it out"
    assert line in said(capsys, "--images", photos, "--eval-only", "--val", "0.2")
    rows = [[str(p), p.parent.name, ("train", "val")[k % 2]] for k, p in enumerate(sorted(photos.rglob("img*")))]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    told = said(capsys, "--images", tmp_path / "list.json", *out, "--val", "2", "VERBOSE", "False")
    assert "for val already: leave out --val" in told
    few = make_photos(tmp_path / "few", n=2)
    for words in (["--val", "0.3"], ["TEST.FINAL_MODEL", "best_val"], ["TEST.SPLIT", "val"]):
        told = said(capsys, "--images", few, *out, *words, "VERBOSE", "False")
        assert "no image is for val, which" in told and "give --val" in told
    assert not (tmp_path / "OUT" / "config.yaml").exists()


def test_evaluation_on_val(photos, tmp_path, capsys):
    """Of the split that the training kept; without one, a line says how to get it."""
    assert train(photos, tmp_path / "OUT", "--val", 3, "DATASET.NUM_SHOTS", 2) == 0
    flags = ["--eval-only", "--model-dir", str(tmp_path / "OUT")]
    assert main([*flags, "TEST.SPLIT", "val", "VERBOSE", "False"]) == 0
    where = tmp_path / "OUT" / "eval" / "Images-all-val"
    assert "* total: 15\n" in (where / "log.txt").read_text()
    assert read_json(where / "results.json")["split"] == "val" and (where / "wrong.csv").exists()

    told = said(capsys, *flags, "--images", photos, "--output-dir", tmp_path / "E", "TEST.SPLIT", "val")
    assert "has no val images: they are not divided, all are for test: leave out TEST.SPLIT" in told
    assert train(photos, tmp_path / "NO", "--val", 0) == 0
    told = said(capsys, "--eval-only", "--model-dir", tmp_path / "NO", "TEST.SPLIT", "val", "VERBOSE", "False")
    assert "split.json has no val images: give --val 0.2 in training" in told


def test_the_split_without_val_flag_is_the_one_of_earlier_versions():
    """Half, a fifth, the rest, of one shuffling by the seed."""
    rows, rng = [Row(f"/{c}/{k}.jpg", c, "") for c in "ab" for k in range(10)], random.Random(7)
    wanted = [rng.sample([row.path for row in rows if row.classname == c], 10) for c in "ab"]
    parts = ["train"] * 5 + ["val"] * 2 + ["test"] * 3
    assert [(r.path, r.split) for r in divide(rows, 7)] == [
        pair for paths in wanted for pair in zip(paths, parts, strict=True)
    ]


# ------------------------------------------------------------------ did training help, and what is wrong


@pytest.mark.parametrize("trainer", [[], ["--trainer", "CoOp"]])
def test_zero_shot_beside_trained(trainer, photos, tmp_path, capsys):
    """It is what the trainer ZeroshotCLIP measures on the same split, which says nothing of the kind itself."""
    assert train(photos, tmp_path / "OUT", *trainer) == 0
    assert main(["--images", str(tmp_path / "OUT" / "split.json"), "--trainer", "ZeroshotCLIP", "--output-dir",
                 str(tmp_path / "ZS"), "VERBOSE", "False"]) == 0  # fmt: skip
    results, alone = (read_json(tmp_path / out / "results.json") for out in ("OUT", "ZS"))
    assert results["zero_shot_accuracy"] == alone["accuracy"] and "zero_shot_accuracy" not in alone
    gain = results["accuracy"] - alone["accuracy"]
    said_so = f"* zero-shot CLIP on the same images: {alone['accuracy']:.1f}%; the training brought {gain:+.1f}\n"
    assert said_so in capsys.readouterr().out
    assert not (tmp_path / "ZS" / "seen.json").exists()


def test_zero_shot_of_the_prompt_given(photos, tmp_path):
    """An evaluation has it too."""
    out = tmp_path / "OUT"
    words = ["--template", "a plain {}.", "DATASET.SUBSAMPLE_CLASSES", "base"]
    assert train(photos, out, *words) == 0
    zero_shot = ["--images", out / "split.json", "--trainer", "ZeroshotCLIP", "--output-dir", tmp_path / "ZS", *words]
    assert main([*map(str, zero_shot)]) == 0
    wanted = read_json(tmp_path / "ZS" / "results.json")["accuracy"]
    assert read_json(out / "results.json")["zero_shot_accuracy"] == wanted
    assert main(["--eval-only", "--model-dir", str(out)]) == 0
    (again,) = (out / "eval").glob("*/results.json")
    assert read_json(again)["zero_shot_accuracy"] == wanted


def test_the_wrong_ones(photos, tmp_path, capsys):
    """A list and a picture: exactly those that the predictor takes for another class than the split says."""
    out = tmp_path / "OUT"
    assert train(photos, out) == 0
    split = read_json(out / "split.json")["test"]
    wanted = {}
    for (path, _, name), p in zip(split, Predictor(out)([row[0] for row in split]), strict=True):
        if p.classname != name:
            wanted[path] = name, p.classname, pytest.approx(p.probability, abs=1e-3)
    with open(out / "wrong.csv", encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert {r["path"]: (r["label"], r["predicted"], float(r["probability"])) for r in rows} == wanted and wanted
    assert [r["probability"] for r in rows] == sorted((r["probability"] for r in rows), reverse=True)
    assert f"{len(wanted)} of {len(split)} images are misclassified: {out}/wrong.csv" in capsys.readouterr().out
    with Image.open(out / "wrong.png") as picture:
        assert picture.width > 150 * min(6, len(wanted))
    assert len(build(out / "wrong.csv", tmp_path / "L").classnames) == len({label for label, *_ in wanted.values()})


def test_nothing_wrong(tmp_path, capsys):
    """The picture of an earlier evaluation in the same place goes."""
    (tmp_path / "wrong.png").write_bytes(b"old")
    write_wrong([], 7, str(tmp_path))
    assert (tmp_path / "wrong.csv").read_text().splitlines() == ["path,label,predicted,probability"]
    assert not (tmp_path / "wrong.png").exists()
    assert capsys.readouterr().out == f"0 of 7 images are misclassified: {tmp_path}/wrong.csv\n"


def test_the_next_command_is_said(photos, root, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(root)
    out = tmp_path / "my model"
    assert train(photos, out) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"Classify other images with: python predict.py --model-dir '{out}' IMAGES_OR_FOLDERS"
    monkeypatch.chdir(tmp_path)  # where there is no predict.py
    assert next_command("OUT") == "Classify other images with: orthcr predict --model-dir OUT IMAGES_OR_FOLDERS"


# ------------------------------------------------------------------ what was trained on


def test_images_that_were_trained_on_are_marked(photos, tmp_path, capsys):
    """Wherever they are now; those of val only if the model was chosen by them."""
    out = tmp_path / "OUT"
    assert train(photos, out, "DATASET.NUM_SHOTS", 2) == 0
    kept = read_json(out / "seen.json")
    assert len(kept["train"]) == 10 and not kept["val"]
    names = {path[len(str(photos)) :] for path, *_ in kept["train"]}
    photos.rename(tmp_path / "moved")
    predictions = list(Predictor(out)(tmp_path / "moved"))
    assert {p.image[len(str(tmp_path / "moved")) :] for p in predictions if p.seen == "train"} == names
    assert {p.seen for p in predictions} == {"train", ""}

    capsys.readouterr()
    argv = [str(tmp_path / "moved"), "--model-dir", str(out)]
    assert predict.main([*argv, "--picture", str(tmp_path / "sheet.png")]) == 0
    done = capsys.readouterr()
    assert sum(line.endswith("trained on") for line in done.out.splitlines()) == 10
    speed, told = done.err.splitlines()
    assert speed.startswith("60 images in ")
    assert told == "the model has seen 10 of these 60 images in training: they say nothing of new ones"
    assert predict.main([*argv, "--json"]) == 0
    assert Counter(row["seen"] for row in json.loads(capsys.readouterr().out)) == {"train": 10, "": 50}

    seal = (out / "config.yaml").read_text().splitlines(keepends=True)
    (out / "config.yaml").write_text("".join(line for line in seal if "# sha256" not in line))
    (out / "seen.json").write_text('{"train": [5]}')
    assert predict.main(argv) == 1
    assert "seen.json, the list of the images that the model was trained on, is damaged" in capsys.readouterr().err


def test_val_images_by_which_the_model_is_chosen_are_marked(photos, tmp_path):
    shutil.rmtree(photos / sorted(COLOURS)[0])
    assert train(photos, tmp_path / "OUT", "--val", 2, "TEST.FINAL_MODEL", "best_val") == 0
    seen = Counter(p.seen for p in Predictor(tmp_path / "OUT")(photos))
    assert seen == {"train": 24, "val": 8, "": 16}


# ------------------------------------------------------------------ val after each epoch


@pytest.mark.parametrize("trainer, fixed", [("CLIPLoRA", False), ("CoOp", True), ("PromptSRC", False)])
def test_val_after_each_epoch_changes_no_bit(trainer, fixed, photos, tmp_path, monkeypatch, capsys):
    """Of the trained tensors, random crops or none; what is told is what an evaluation of that epoch tells."""
    words = ["VERBOSE", "False", "OPTIM.MAX_EPOCH", 3, "OPTIM.WARMUP_EPOCH", -1]
    words += ["INPUT.TRANSFORMS", '["normalize"]'] if fixed else []
    pattern = r"epoch \[(\d)/3\] accuracy on val: ([\d.]+)% \(\d+ of (\d+)\)"
    tensors, told = [], []
    for cheap in (True, False):
        if not cheap:
            monkeypatch.setattr(ClipTrainer, "val_is_cheap", lambda self: False)
        out = tmp_path / str(cheap)
        assert main([*map(str, ["--images", photos, "--trainer", trainer, "--output-dir", out, *words])]) == 0
        (path,) = out.glob("*/model.pth.tar-3")
        tensors.append(torch.load(path, weights_only=True)["state_dict"])
        told.append(re.findall(pattern, capsys.readouterr().out))
    assert [len(lines) for lines in told] == [3, 0] and {n for *_, n in told[0]} == {"10"}
    assert tensors[0].keys() == tensors[1].keys()
    assert all(tensor.equal(tensors[1][name]) for name, tensor in tensors[0].items())
    flags = ["--eval-only", "--model-dir", str(tmp_path / "True"), "TEST.SPLIT", "val", "VERBOSE", "False"]
    assert main(flags) == 0
    result = read_json(tmp_path / "True" / "eval" / "Images-all-val" / "results.json")
    if trainer not in ("PromptSRC", "TipAdapterF"):  # whose last weights are made after the last epoch
        assert f"{result['accuracy']:.1f}" == told[0][-1][1]


@pytest.mark.parametrize(
    ("flags", "opts", "count"),
    [
        ([], [], 2),
        (["--val", "0.4"], [], 0),
        (["--val", "0"], [], 0),
        ([], ["TEST.FINAL_MODEL", "best_val"], 0),
        ([], ["TEST.NO_TEST", "True"], 0),
    ],
)
def test_val_is_told_where_it_is_cheap(flags, opts, count, photos, tmp_path, capsys):
    argv = ["--images", str(photos), "--output-dir", str(tmp_path / "OUT"), *flags, *SMALL, *opts]
    assert main([*argv, "OPTIM.MAX_EPOCH", "2"]) == 0
    assert capsys.readouterr().out.count("accuracy on val:") == count


def test_no_benchmark_tells_val(pictures, tmp_path, capsys):
    argv = ["--root", str(pictures), "--output-dir", str(tmp_path), "--trainer", "CoOp", "VERBOSE", "False"]
    assert main([*argv, "OPTIM.MAX_EPOCH", "1", "DATASET.NUM_SHOTS", "8"]) == 0
    assert "accuracy on val:" not in capsys.readouterr().out


# ------------------------------------------------------------------ the confusion matrix


def test_which_classes_are_taken_for_which(photos, tmp_path, monkeypatch):
    """The picture has every class in the order of the labels, and the shares that the split and the model say."""
    drawn = []
    out = tmp_path / "OUT"
    monkeypatch.setattr("orthcr.run.own_images.draw_confusion_matrix", lambda *words: drawn.append(words))
    assert train(photos, out) == 0
    (matrix, names, path), split = drawn[0], read_json(out / "split.json")["test"]
    assert names == sorted(COLOURS) and path == str(out / "confusion.png")
    wanted = np.zeros((5, 5))
    for (_, label, _), p in zip(split, Predictor(out)([row[0] for row in split]), strict=True):
        wanted[label, names.index(p.classname)] += 1 / 4
    np.testing.assert_allclose(matrix, wanted)


@pytest.mark.parametrize("n", [2, 12, 30, 100])
def test_the_confusion_picture(n, tmp_path, monkeypatch):
    """Nothing is cut off; of many classes those are shown that are confused most."""
    figures = []
    monkeypatch.setattr(plt, "close", figures.append)
    matrix = np.eye(n)
    matrix[1] = 0
    matrix[1, 0] = 1
    names = [f"a rather long class name, $ and 猫 {k}" for k in range(n)]
    draw_confusion_matrix(matrix, names, str(tmp_path / "c.png"))
    monkeypatch.undo()
    (fig,) = figures
    ticks = [text.get_text() for text in fig.axes[0].get_yticklabels()]
    assert len(ticks) == min(n, 40) and ticks[0].startswith("a rather") and (n > 40) == bool(fig.axes[0].get_title())
    shown = fig.axes[0].images[0].get_array()
    assert shown[1, 0] == 100 and shown[1, 1] == 0
    with Image.open(tmp_path / "c.png") as picture:
        pixels = np.asarray(picture.convert("L"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border > 250).all() and max(pixels.shape) < 2500
    plt.close(fig)
