"""predict.py's tables of all classes, its doubts, and what it does not import."""

import csv
import io
import json
import math
import os
import shutil
import stat
import subprocess
import sys
import threading

import numpy as np
import own_photos
import pytest
from PIL import Image

import predict
from orthcr.deploy.predictor import Prediction, Predictor
from orthcr.reports.predictions import csv_head, csv_row, format_json, format_table, titles_of

trained = own_photos.trained  # the fixture
HEADS = ["image", "class", "probability", "unsure", "seen", "error"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Seven pictures and a file that is none; their folder."""
    home, rng = tmp_path_factory.mktemp("new") / "photos", np.random.default_rng()
    for k, (name, colour) in enumerate([*own_photos.COLOURS.items(), ("a", (9, 9, 9)), ("b", (200, 200, 0))]):
        own_photos.draw(home / f"{k} {name}", colour, "png", rng)
    (home / "no image.png").write_text("text")
    return home


@pytest.fixture
def say(trained, capsys):
    """say(words...): exit status, standard output and error of predict.py."""

    def run(*words):
        capsys.readouterr()
        status = predict.main(["--model-dir", str(trained), *map(str, words)])
        return status, *capsys.readouterr()

    return run


def rows_of(text):
    return list(csv.reader(io.StringIO(text)))


# ------------------------------------------------------------------ CSV


def test_every_class_of_every_image(say, trained, folder, tmp_path):
    file = tmp_path / "out.csv"
    status, out, err = say(folder, "--csv", file, "--top", "1")
    assert status == 1 and len(out.splitlines()) == 2 + 7, "the table is printed as well, and one is no image"
    head, *rows = rows_of(file.read_text())
    predictor = Predictor(trained)
    assert head == [*HEADS, *predictor.classnames] and len(rows) == 8
    for p, row in zip(predictor(folder, top=99, every=True), rows, strict=True):
        assert row[0] == p.image
        if p.error:
            assert row[5] == p.error and row[1:5] == [""] * 4 and len(row) == 6
            continue
        values = [float(cell) for cell in row[6:]]
        assert values == pytest.approx(list(p.every), rel=1e-5) and sum(values) == pytest.approx(1, abs=1e-5)
        assert dict(p.top) == dict(zip(predictor.classnames, p.every, strict=True))
        assert row[1] == head[6 + int(np.argmax(values))] == p.classname
        assert float(row[2]) == pytest.approx(max(values)) and row[3:6] == ["", "", ""]


def test_csv_on_the_standard_output(say, folder):
    status, out, err = say(folder, "--csv", "-")
    rows = rows_of(out)
    assert rows[0][:6] == HEADS and len(rows) == 9 and status == 1
    assert err.splitlines()[0].startswith("7 images in ") and "images/s, reading and classifying" in err


def test_the_file_is_whole_or_not_there(say, folder, tmp_path, monkeypatch):
    file = tmp_path / "out.csv"
    file.write_text("before")
    monkeypatch.setattr(Predictor, "predict", lambda *args: (_ for _ in ()).throw(FloatingPointError("NaN")))
    status, out, err = say(folder, "--csv", file)
    assert (status, out, err) == (1, "", "error: NaN\n") and file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


def test_no_name_is_a_formula_or_steers_a_terminal():
    names = ['=HYPERLINK("http://evil","x")', "+1", "-a", "@b", "plain, with comma", "\x1b[2J\n"]
    (head,) = rows_of(csv_head(names))
    assert head[6:] == [f"'{names[0]}", "'+1", "'-a", "'@b", "plain, with comma", r"\x1b[2J\n"]
    p = Prediction("=cmd|' /C calc'!A0.png", "=1+1", 0.5, [], unsure=True, every=(0.5, 0.25, 0.25))
    (row,) = rows_of(csv_row(p))
    assert row == ["./=cmd|' /C calc'!A0.png", "'=1+1", "0.5", "unsure", "", "", "0.5", "0.25", "0.25"]
    (row,) = rows_of(csv_row(Prediction("dir/\udce9.png", "", 0.0, [], error="not\x07 there")))
    assert row == [r"dir/\udce9.png", "", "", "", "", r"not\x07 there"]


# ------------------------------------------------------------------ doubts


def test_below_the_threshold_it_is_unsure(say, trained, folder, tmp_path):
    """With the best guess, in every form alike; the probabilities and the exit status are as without."""
    sure = {p.image: p.probability for p in Predictor(trained)(folder) if not p.error}
    threshold = sorted(sure.values())[3] + 1e-6  # four are below it
    images = list(sure)
    status, table, _ = say(*images, "--threshold", threshold)
    assert status == 0 and table.count("unsure: ") == 4
    status, out, _ = say(*images, "--threshold", threshold, "--csv", "-")
    rows = {row[0]: row for row in rows_of(out)[1:]}
    assert status == 0 and {row[3] for row in rows.values()} == {"", "unsure"}
    status, out, _ = say(*images, "--threshold", threshold, "--json")
    for said in json.loads(out):
        name = said["image"]
        assert said["probability"] == sure[name] and said["unsure"] == (sure[name] < threshold)
        assert rows[name][3] == "unsure" * said["unsure"] and rows[name][1] == said["classname"]
        assert (f"unsure: {said['classname']} " in table) >= said["unsure"] and "every" not in said
    assert not any(said["unsure"] for said in json.loads(say(*images, "--json")[1]))
    for said in json.loads(say(*images, "--json", "--threshold", 1)[1]):
        assert said["unsure"] == (said["probability"] < 1)


def test_how_doubt_is_shown():
    p = Prediction("a.png", "cat", 0.4, [("cat", 0.4)], unsure=True)
    assert "unsure: cat" in format_table([p]) and titles_of([p])[0][1].startswith("unsure: cat\n40 %")
    assert json.loads(format_json([p]))[0]["unsure"] is True


# ------------------------------------------------------------------ what is wrong, and what is not needed


def test_what_is_wrong_is_one_line(say, folder, tmp_path):
    for words, told in (
        (["--threshold", "2"], "--threshold is 2: give a probability, from 0 to 1"),
        (["--threshold", "nan"], "--threshold is nan"),
        (["--threshold", "-0.1"], "--threshold is -0.1"),
        (["--csv", tmp_path / "no" / "a.csv"], f"--csv cannot be written: there is no {tmp_path / 'no'}"),
        (["--csv", tmp_path], "is no name of a file"),
        (["--csv", ""], '--csv cannot be written: "" is no name'),
        (["--csv", "-", "--json"], "both for the standard output"),
    ):
        status, out, err = say(folder, *words)
        assert status == 1 and out == "" and err.startswith("error: ") and err.count("\n") == 1 and told in err, err
    assert not (tmp_path / "no").exists()
    with pytest.raises(SystemExit) as caught:
        say()
    assert caught.value.code == 2


def test_one_image_has_no_speed(say, folder):
    assert say(next(folder.glob("1*")))[2] == ""


UNNEEDED = """datasets tensorboard torch.utils.tensorboard matplotlib sklearn scipy gdown ray gradio pandas transformers
    open_clip onnx onnxruntime fastapi torch._inductor.compile_fx""".split()


def test_predicting_imports_what_it_needs(trained, folder, root):
    """All of these take time, and some are only there where another extra is installed."""
    code = f"""
import sys, predict
assert "torch" not in sys.modules, "wrong flags answer at once"
assert predict.main(sys.argv[1:]) == 0
print([name for name in {UNNEEDED} if name in sys.modules])
"""
    words = [sys.executable, "-c", code, "--model-dir", trained, next(folder.glob("1*")), "--csv", "-"]
    done = subprocess.run(words, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_all_probabilities_of_pictures_in_memory(trained):
    predictor = Predictor(trained, ["a", "b", "c"])
    first, second = predictor(
        [Image.new("RGB", (40, 40), c) for c in ("red", "blue")], top=1, threshold=0.99, every=True
    )
    for p in (first, second):
        assert len(p.every) == 3 and len(p.top) == 1 and math.isclose(sum(p.every), 1, abs_tol=1e-6)
        assert p.classname == "abc"[int(np.argmax(p.every))] and p.unsure == (p.probability < 0.99)


# ------------------------------------------------------------------ where tables may go


def test_a_pipe_and_a_device_get_the_lines_and_stay(say, folder, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    lines = []
    reader = threading.Thread(target=lambda: lines.extend((tmp_path / "pipe").read_text().splitlines()))
    reader.start()
    status, *_ = say(folder, "--csv", tmp_path / "pipe")
    reader.join(20)
    assert status == 1 and len(lines) == 1 + 8 and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    (tmp_path / "link").symlink_to("/dev/null")
    assert say(folder, "--csv", tmp_path / "link")[0] == 1
    assert (tmp_path / "link").is_symlink() and stat.S_ISCHR(os.stat("/dev/null").st_mode)


def test_no_output_replaces_an_image(say, folder, tmp_path, monkeypatch):
    image = shutil.copy(next(folder.rglob("0*.png")), tmp_path / "mine.png")
    table = shutil.copy(image, tmp_path / "mine.data")
    content = image.read_bytes()
    monkeypatch.chdir(tmp_path)
    for words in (
        [image, "--csv", image],
        [image, "--csv", tmp_path / "other.PNG"],
        [table, "--csv", "mine.data"],
        [image, "--picture", "mine.png"],
        [tmp_path, "--picture", "mine.png"],
    ):
        status, out, err = say(*words)
        assert status == 1 and out == "" and err.startswith("error: --") and err.count("\n") == 1, words
    assert image.read_bytes() == table.read_bytes() == content and not (tmp_path / "other.PNG").exists()


def test_images_may_stand_before_and_behind_flags(say, folder):
    first, second = sorted(folder.glob("[01]*.png"))
    status, out, _ = say(first, "--threshold", 0.0, second, "--top", 1, "--json")
    assert status == 0 and [row["image"] for row in json.loads(out)] == [str(first), str(second)]
