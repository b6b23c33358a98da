"""A user's own images: trained on, and predicted from the output directory alone."""

import io
import json
import os
import shutil
import sys

import numpy as np
import own_photos
import pytest
from own_photos import COLOURS, SMALL, draw
from PIL import Image

import predict
from dassl.utils import read_json
from orthcr.run.runner import main
from predict import Predictor

photos, trained = own_photos.photos, own_photos.trained  # the fixtures


def test_own_images_are_learnt(trained, tmp_path):
    results = read_json(trained / "results.json")
    assert results["dataset"] == "Images" and results["accuracy"] > 60 and results["shots"] == -1
    assert read_json(trained / "classes.json") == sorted(COLOURS)
    fresh, rng = tmp_path / "fresh", np.random.default_rng(99)
    for name, colour in COLOURS.items():
        for k in range(4):
            draw(fresh / name / f"{k}", colour, ("jpeg", "png", "webp", "exif")[k], rng)
    predictions = list(Predictor(trained)(fresh))
    right = [p.classname == p.image.split("/")[-2] for p in predictions]
    assert len(right) == 20 and sum(right) >= 15
    for p in predictions:
        assert len(p.top) == 5 and p.top[0] == (p.classname, p.probability) and not p.error
        assert sum(q for _, q in p.top) == pytest.approx(1, abs=1e-5) and sorted(q for _, q in p.top)[::-1] == [
            q for _, q in p.top
        ]


def test_predictions_are_what_the_evaluation_sees(trained, photos, tmp_path):
    """The same photos through train.py --eval-only: every one of them is for test, and the accuracy is the same."""
    flags = ["--eval-only", "--model-dir", str(trained), "--images", str(photos), "--output-dir", str(tmp_path / "E")]
    assert main([*flags, "VERBOSE", "False"]) == 0
    predictions = list(Predictor(trained)(photos))
    right = sum(p.classname == p.image.split("/")[-2] for p in predictions)
    results = read_json(tmp_path / "E" / "results.json")
    assert len(predictions) == 60 and results["accuracy"] == pytest.approx(100 * right / 60)


def test_the_training_split_is_the_one_evaluated(photos, tmp_path):
    out = tmp_path / "OUT"
    argv = ["--images", str(photos), "--output-dir", str(out), *SMALL, "OPTIM.MAX_EPOCH", "1"]
    assert main(argv) == 0
    before = read_json(out / "results.json")["accuracy"]
    for name in COLOURS:
        draw(photos / name / "later", (0, 0, 0), "png", np.random.default_rng(0))
    assert main(["--eval-only", "--model-dir", str(out), "VERBOSE", "False"]) == 0
    results = read_json(out / "eval" / "Images-all-test" / "results.json")
    assert results["accuracy"] == before and results["trained_on"]["dataset"] == "Images"
    log = (out / "eval" / "Images-all-test" / "log.txt").read_text()
    assert "* total: 20\n" in log, "those for test, not the 65 that are there now"
    assert main(argv) == 0, "the same command again goes on with the same split"


def test_evaluation_is_among_the_models_classes(trained, photos, tmp_path, capsys):
    """A folder with two of five classes: what the model takes for a third one is wrong."""
    for name in list(COLOURS)[2:]:
        shutil.rmtree(photos / name)
    flags = ["--eval-only", "--model-dir", str(trained)]
    assert main([*flags, "--images", str(photos), "--output-dir", str(tmp_path / "E")]) == 0
    predictions = list(Predictor(trained)(photos))
    right = sum(p.classname == p.image.split("/")[-2] for p in predictions)
    assert read_json(tmp_path / "E" / "results.json")["accuracy"] == pytest.approx(100 * right / 24)
    assert len(read_json(tmp_path / "E" / "classes.json")) == 5

    (photos / "red bus").rename(photos / "a new class")  # then those of the folder, as for new classes
    assert main([*flags, "--images", str(photos), "--output-dir", str(tmp_path / "N")]) == 0
    assert "the 2 of the images alone are told apart" in capsys.readouterr().out
    assert read_json(tmp_path / "N" / "classes.json") == ["a new class", "café crème"]

    root = tmp_path / "divided"  # a class in test that train lacks
    for part, name in (("train", "green_tree"), ("train", "猫"), ("test", "green_tree"), ("test", "blue boat")):
        draw(root / part / name / "x", COLOURS[name], "png", np.random.default_rng(0))
    assert main([*flags, "--images", str(root), "--output-dir", str(tmp_path / "D")]) == 0
    assert "* total: 2\n" in (tmp_path / "D" / "log.txt").read_text()


def test_base_to_new_with_own_images(photos, tmp_path, capsys):
    """The halves are those of all classes, also if one has no test image."""
    for path in sorted((photos / sorted(COLOURS)[0]).iterdir())[1:]:
        path.unlink()
    out, opts = str(tmp_path / "OUT"), [*SMALL, "OPTIM.MAX_EPOCH", "1", "DATASET.SUBSAMPLE_CLASSES"]
    assert main(["--images", str(photos), "--output-dir", out, *opts, "base"]) == 0
    for half, names in (("base", sorted(COLOURS)[:3]), ("new", sorted(COLOURS)[3:])):
        where = tmp_path / half
        argv = ["--eval-only", "--model-dir", out, "--output-dir", str(where), "DATASET.SUBSAMPLE_CLASSES", half]
        assert main(argv) == 0
        assert read_json(where / "classes.json") == names
        assert read_json(where / "results.json")["trained_on"]["classes"] == "base"
    assert read_json(tmp_path / "base" / "results.json")["accuracy"] == read_json(f"{out}/results.json")["accuracy"]


def test_batches_do_not_matter(trained, photos):
    paths = sorted(str(p) for p in photos.rglob("img*"))[:7]
    predictor = Predictor(trained)
    whole = list(predictor(paths))
    predictor.batch_size = 2
    for a, b in zip(whole, predictor(paths), strict=True):
        assert (
            a.image == b.image
            and a.classname == b.classname
            and a.probability == pytest.approx(b.probability, abs=1e-5)
        )


@pytest.mark.parametrize("trainer", ["CoOp", "ZeroshotCLIP"])
def test_other_trainers_predict(trainer, photos, tmp_path):
    argv = ["--images", str(photos), "--output-dir", str(tmp_path / "OUT"), "--trainer", trainer, "VERBOSE", "False"]
    assert main([*argv, "OPTIM.MAX_EPOCH", "1"]) == 0
    results = read_json(tmp_path / "OUT" / "results.json")
    split = read_json(tmp_path / "OUT" / "split.json")
    predictions = list(Predictor(tmp_path / "OUT")([row[0] for row in split["test"]]))
    right = [p.classname == row[2] for p, row in zip(predictions, split["test"], strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(results["accuracy"])


def test_unseen_classes(trained, photos, capsys):
    path = str(photos / "red bus" / "img 01.png")
    names = ["a plain blue circle", "a plain red circle"]
    (p,) = Predictor(trained, names)(path)
    assert p.classname == names[1] and len(p.top) == 2
    assert (
        predict.main(
            [path, "--model-dir", str(trained), "--classes", "a plain blue circle, a plain red circle", "--json"]
        )
        == 0
    )
    (said_json,) = json.loads(capsys.readouterr().out)
    assert said_json["classname"] == names[1] and said_json["probability"] == pytest.approx(p.probability, abs=1e-6)
    # the prompt changes what is said
    (q,) = Predictor(trained, names, template="{}")(path)
    assert q.probability != pytest.approx(p.probability, abs=1e-6)


def test_predictions_turn_images_upright(trained, tmp_path):
    rng = np.random.default_rng(3)
    pixels = np.zeros((60, 60, 3), np.uint8)
    pixels[:30], pixels[30:] = (210, 30, 30), rng.integers(0, 255, 3)
    upright = Image.fromarray(pixels)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.rotate(90).save(tmp_path / "lying.png", exif=exif)
    upright.save(tmp_path / "upright.png")
    upright.rotate(90).save(tmp_path / "unsaid.png")
    a, b, c = Predictor(trained)([tmp_path / f"{name}.png" for name in ("lying", "upright", "unsaid")])
    assert a.top == b.top != c.top


def test_a_model_of_classes_with_the_same_name_predicts(trained, photos, tmp_path):
    """ImageNet's list has some; only asked-for classes must differ."""
    shutil.copytree(trained, tmp_path / "OUT")
    (tmp_path / "OUT" / "classes.json").write_text(json.dumps(["a", "b", "a"]))
    config = tmp_path / "OUT" / "config.yaml"
    with pytest.raises(ValueError, match="classes.json is not as it was written.*remove the lines"):
        Predictor(tmp_path / "OUT")
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("# sha256")))
    (p,) = Predictor(tmp_path / "OUT")(photos / "red bus" / "img 01.png")
    assert len(p.top) == 3
    with pytest.raises(ValueError, match="different classes"):
        Predictor(trained, ["a", "b", "a"])
    with pytest.raises(ValueError, match='mean "cuda"'):
        Predictor(trained, device="cuda:1")


def test_images_in_memory(trained, photos):
    path = photos / "red bus" / "img 03.jpg"  # grey
    (by_path,) = Predictor(trained)(path)
    (by_image,) = Predictor(trained)(Image.open(path))
    assert by_image.image == "image 1" and by_image.top == by_path.top


def test_an_empty_folder_among_others(trained, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    given = [photos / "red bus" / "img 01.png", tmp_path / "empty", photos / "猫" / "img 01.png"]
    first, none, last = Predictor(trained)(given)
    assert first.classname == "red bus" and last.classname == "猫"
    assert (none.image, none.top, none.error) == (str(tmp_path / "empty"), [], "it is a folder without images")


def test_what_is_left_out_is_told(trained, photos, capsys):
    """System folders and files that are no images: on the standard error, so that JSON stays JSON."""
    draw(photos / "@eaDir" / "thumb", (9, 9, 9), "png", np.random.default_rng(0))
    (photos / "notes.txt").write_text("no image")
    assert predict.main([str(photos), "--model-dir", str(trained), "--json"]) == 0
    done = capsys.readouterr()
    assert len(json.loads(done.out)) == 60
    assert f"1 files of {photos} are no images and are left out, first notes.txt\n" in done.err
    assert f"1 system folder is passed over, first {photos}/@eaDir\n" in done.err


def test_names_that_no_output_can_take(trained, photos, tmp_path, monkeypatch):
    """In JSON and in the table, with a strict standard output; the sheet takes a formula for a name."""
    odd = os.fsencode(tmp_path) + b"/\xe9.png"
    try:
        shutil.copy(photos / "red bus" / "img 01.png", odd)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    words = [os.fsdecode(odd), "--model-dir", str(trained), "--classes", r"a $5 \frac{x$,b"]  # as Python gives it to us
    printed = []
    for encoding, more in (("utf-8", ["--json"]), ("ascii", ["--picture", str(tmp_path / "sheet.png")])):
        out = io.TextIOWrapper(io.BytesIO(), encoding, "strict")
        monkeypatch.setattr(sys, "stdout", out)
        assert predict.main([*words, *more]) == 0
        out.flush()
        printed.append(out.buffer.getvalue())
    (answer,) = json.loads(printed[0])
    assert os.fsencode(answer["image"]) == odd
    assert rb"\udce9.png" in printed[1] and (tmp_path / "sheet.png").exists()


def test_the_command(trained, photos, tmp_path, capsys):
    for path in (photos / "red bus").iterdir():  # else they are those that the model has seen
        path.write_bytes(path.read_bytes() + b" ")
    bad = photos / "red bus" / "text.jpg"
    bad.write_text("no image")
    sheet = tmp_path / "sheet.png"
    argv = [str(photos / "red bus"), "--model-dir", str(trained), "--top", "2", "--picture", str(sheet)]
    assert predict.main(argv) == 1, "one image could not be read"
    done = capsys.readouterr()
    lines = done.out.splitlines()
    assert len(lines) == 2 + 12 and lines[0].split() == ["image", "class", "probability", "then"]
    speed, told = done.err.splitlines()
    assert speed.startswith("12 images in ") and told.startswith(f"error: {bad}: cannot identify image file")
    with Image.open(sheet) as picture:
        assert picture.width > 500 and len(picture.convert("L").getcolors()) > 50

    for argv, told in (
        ([str(photos / "nowhere.jpg")], "there is no such file"),
        ([str(tmp_path / "my photos" / "猫"), "--classes", "one"], "two or more different classes"),
        ([str(photos), "--classes", ""], "two or more different classes, not none"),
        ([str(photos), "--classes", "A_cat,a cat"], 'two or more different classes, not "A_cat" and "a cat"'),
        ([str(photos), "--classes", "hot dog,hot  dog"], 'not "hot dog" and "hot  dog", which are the same to CLIP'),
        ([str(photos), "--top", "0"], "--top is 0"),
        ([str(photos), "--picture", "sheet.jpg"], "give the name of a .png file"),
        ([str(photos), "--picture", str(tmp_path / "no" / "sheet.png")], "--picture cannot be written"),
        ([str(photos), "--load-epoch", "7"], "there are [30]"),
        ([str(photos), "--model-dir", str(tmp_path)], "has no config.yaml"),
    ):
        assert predict.main(["--model-dir", str(trained), *argv] if "--model-dir" not in argv else argv) == 1
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1 and told in err, err
