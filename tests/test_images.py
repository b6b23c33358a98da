"""A user's own images: found, checked and divided."""

import csv
import json
import os
import os.path as osp
import random
import re
import shutil
import struct
from collections import Counter

import numpy as np
import own_photos
import pytest
import torch
from clip import clip
from own_photos import COLOURS, SMALL, build, draw, make_photos, names_of, said
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngImageFile

from dassl.infrastructure.images import images_in
from dassl.utils import read_image, read_json, read_photo
from datasets.base import read_split
from datasets.shared.image_files import Row, find_unreadable, image_problem
from datasets.shared.image_split import divide
from orthcr.run.config import setup_cfg
from orthcr.run.flags import parse
from orthcr.run.runner import main
from predict import Predictor
from trainers.shared.classes import same_to_clip

photos = own_photos.photos  # the fixture


# ------------------------------------------------------------------ finding and dividing


def test_a_folder_of_folders(photos, tmp_path):
    (photos / ".hidden").mkdir()
    (photos / "猫" / ".DS_Store").write_bytes(b"x")
    (photos / "猫" / "notes.txt").write_text("no image")
    deep = photos / "猫" / "more"
    deep.mkdir()
    (photos / "猫" / "img 00.jpeg").rename(deep / "img 00.jpeg")
    data = build(photos, tmp_path / "OUT")
    assert data.classnames == sorted(COLOURS) and data.num_classes == 5
    sizes = {
        name: [sum(i.classname == name for i in part) for part in (data.train_x, data.val, data.test)]
        for name in COLOURS
    }
    assert sizes == dict.fromkeys(COLOURS, [6, 2, 4])
    everything = names_of(data.train_x + data.val + data.test)
    assert everything == sorted((p.relative_to(photos).parts[0], str(p)) for p in photos.rglob("img*"))


def test_the_split_is_seeded_and_kept(photos, tmp_path, capsys):
    first = build(photos, tmp_path / "a")
    (tmp_path / "a" / "config.yaml").write_text("")  # as train.py leaves it when a training begins
    same = build(photos, tmp_path / "b")
    other = build(photos, tmp_path / "c", "--seed", 2)
    assert names_of(first.train_x) == names_of(same.train_x) != names_of(other.train_x)

    draw(photos / "猫" / "another", (90, 60, 110), "png", np.random.default_rng(0))  # a run goes on with what it had
    again = build(photos, tmp_path / "a")
    for part in ("train_x", "val", "test"):
        assert getattr(again, part) == getattr(first, part)
    assert "1 images that are not in it play no part: take another --output-dir" in capsys.readouterr().out
    fresh = build(photos, tmp_path / "d")
    assert len(fresh.train_x + fresh.val + fresh.test) == 61

    kept = tmp_path / "a" / "split.json"  # a split file like CoOp's: can be given, and moved
    copied = build(kept, tmp_path / "e")
    for part in ("train_x", "val", "test"):
        assert names_of(getattr(copied, part)) == names_of(getattr(first, part))


@pytest.mark.parametrize(
    ("n", "sizes"),
    [
        (1, (1, 0, 0)),
        (2, (1, 0, 1)),
        (3, (2, 0, 1)),
        (4, (2, 1, 1)),
        (5, (2, 1, 2)),
        (10, (5, 2, 3)),
        (100, (50, 20, 30)),
    ],
)
def test_few_images_go_to_the_training_first(n, sizes):
    rows = [Row(f"/{c}/{k}.jpg", c, "") for c in "ab" for k in range(n)]
    divided = divide(rows, seed=random.randrange(100))
    assert sorted(r.path for r in divided) == sorted(r.path for r in rows)
    for name in "ab":
        count = Counter(row.split for row in divided if row.classname == name)
        assert tuple(count[part] for part in ("train", "val", "test")) == sizes


@pytest.mark.parametrize("names", [("train", "val", "test"), ("train", "test"), ("Training", "validation", "Test")])
def test_split_folders(names, photos, tmp_path):
    root, wanted = tmp_path / "divided", {}
    for k, path in enumerate(sorted(photos.rglob("img*"))):
        part = names[k % len(names)]
        wanted.setdefault(part.lower()[:2], []).append(
            (path.parent.name, str(root / part / path.parent.name / path.name))
        )
        (root / part / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, root / part / path.parent.name)
    data = build(root, tmp_path / "OUT")
    for items, part in ((data.train_x, "tr"), (data.val, "va"), (data.test, "te")):
        assert names_of(items) == sorted(wanted.get(part, []))


@pytest.mark.parametrize("form", ["csv", "csv;", "json", "json lists", "jsonl", "jsonl lists"])
@pytest.mark.parametrize("with_split", [True, False])
def test_lists(form, with_split, photos, tmp_path):
    rows = [
        (str(p.relative_to(photos.parent)), p.parent.name, ("train", "val", "test")[k % 3])
        for k, p in enumerate(sorted(photos.rglob("img*")))
    ]
    heads = ["path", "label", "split"]
    if not with_split:
        rows, heads = [row[:2] for row in rows], heads[:2]
    if form.startswith("csv"):
        file = photos.parent / "list.csv"
        with open(file, "w", encoding="utf-8-sig", newline="") as f:
            csv.writer(f, delimiter=form[3:] or ",").writerows([heads, *rows])
    else:
        rows_in_json = rows if "lists" in form else [dict(zip(heads, r, strict=True)) for r in rows]
        file = photos.parent / f"list.{form.split()[0]}"
        lines = "\n".join(map(json.dumps, rows_in_json)) + "\n\n"
        file.write_text(lines if "jsonl" in form else json.dumps(rows_in_json))
    data = build(file, tmp_path / "OUT")
    if with_split:
        for items, part in ((data.train_x, "train"), (data.val, "val"), (data.test, "test")):
            assert names_of(items) == sorted((r[1], str(photos.parent / r[0])) for r in rows if r[2] == part)
    else:
        folder = build(photos, tmp_path / "folder")
        assert names_of(data.train_x) == names_of(folder.train_x)


@pytest.mark.parametrize(
    "heads", ["path,label", "filename,class", "File_Name, Category", "label,impath,classname", "image,class_name,label"]
)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_heads_of_lists(heads, form, photos, tmp_path):
    """As other programs have them; beside a class name, the label is its number and plays no part."""
    heads = [head.strip() for head in heads.split(",")]
    rows = []
    for k, path in enumerate(sorted(photos.rglob("img*"))):
        values = [str(path), path.parent.name] if len(heads) == 2 else {"label": k % 7}
        rows.append(dict(zip(heads, values, strict=True)) if len(heads) == 2 else values)
        for head in heads if len(heads) == 3 else ():
            values.setdefault(head, str(path) if head.startswith("im") else path.parent.name)
    if form == "csv":
        with open(photos.parent / "list.csv", "w", encoding="utf-8", newline="") as f:
            writer = csv.DictWriter(f, heads)
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps({head.lower(): value for head, value in row.items()}) for row in rows]
        (photos.parent / "list.jsonl").write_text("\n".join(lines))
    data = build(photos.parent / f"list.{form}", tmp_path / "OUT")
    everything = names_of(data.train_x + data.val + data.test)
    assert everything == sorted((path.parent.name, str(path)) for path in photos.rglob("img*"))


def test_accents_are_spelt_one_way(tmp_path):
    """macOS writes é as e and an accent: the class must not differ between two machines."""
    rng = np.random.default_rng(0)
    for part, name in (("train", "cafe\u0301"), ("test", "caf\u00e9"), ("train", "tea"), ("test", "tea")):
        draw(tmp_path / "p" / part / name / "x", (9, 99, 199), "png", rng)
    assert build(tmp_path / "p", tmp_path / "OUT").classnames == ["caf\u00e9", "tea"]


def test_shots_and_halves(photos, tmp_path):
    data = build(photos, tmp_path / "OUT", "DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "base")
    assert data.classnames == sorted(COLOURS)[:3] and len(data.train_x) == 6
    assert set(data.train_x) <= set(build(photos, tmp_path / "b", "DATASET.SUBSAMPLE_CLASSES", "base").train_x)
    assert not (photos / "split_fewshot").exists()


# ------------------------------------------------------------------ what is refused, or said


def spoil(photos):
    """Four images that cannot be read, and one that can, but is a surprise: {path: a word of the reason}."""
    cut = photos / "red bus" / "cut.png"
    cut.write_bytes((photos / "red bus" / "img 01.png").read_bytes()[:2000])
    (photos / "red bus" / "text.jpg").write_text("I am a text file")
    (photos / "猫" / "empty.jpg").write_bytes(b"")
    Image.fromarray(np.full((9, 9), 40_000, np.uint16)).save(photos / "猫" / "sixteen bits.png")
    Image.new("RGB", (2, 900)).save(photos / "猫" / "strip.png")
    return {
        "cut.png": "",
        "text.jpg": "identify",
        "empty.jpg": "identify",
        "sixteen bits.png": "I;16",
        "strip.png": "2 x 900",
    }


def test_what_cannot_be_read_is_listed_and_refused_or_skipped(photos, tmp_path, capsys):
    problems = spoil(photos)
    with pytest.raises(ValueError, match="5 of 65 images cannot be read") as caught:
        build(photos, tmp_path / "OUT")
    assert "--skip-unreadable" in str(caught.value)
    listed = capsys.readouterr().out.splitlines()
    for name, reason in problems.items():
        (line,) = [line for line in listed if name in line]
        assert reason in line
    assert not (tmp_path / "OUT" / "split.json").exists()

    data = build(photos, tmp_path / "OUT", "--skip-unreadable")
    assert "5 of 65 images cannot be read, see above; they are left out" in capsys.readouterr().out
    left = data.train_x + data.val + data.test
    assert len(left) == 60 and not any(i.impath.endswith(tuple(problems)) for i in left)


def test_one_pixel_and_100_megapixels_are_images(photos, tmp_path):
    Image.new("RGB", (1, 1), (30, 60, 210)).save(photos / "blue boat" / "one pixel.png")
    Image.new("L", (10_000, 10_000), 90).save(photos / "猫" / "huge.png")
    rng = random.Random(0)
    data = build(photos, tmp_path / "OUT")
    assert len(data.train_x + data.val + data.test) == 62
    assert read_image(str(photos / "猫" / "huge.png")).size == (10_000, 10_000)
    rows = [Row(str(p), p.parent.name, rng.choice(["train", "test"])) for p in photos.rglob("*.png")]
    assert not find_unreadable([row.path for row in rows], "")


def test_an_image_too_large_for_pillow_is_listed(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert len(find_unreadable([str(p) for p in photos.rglob("img*")], "")) == 60
    with pytest.raises(OSError, match="exceeds limit"):
        read_image(str(photos / "猫" / "img 00.jpeg"))


def test_lists_of_other_programs(photos, tmp_path):
    """Tabs, Windows' paths, and within a quoted name a character that only Python takes for the end of a line."""
    odd = photos / "red bus" / "a\u2028b.png"
    (photos / "red bus" / "img 01.png").rename(odd)
    paths = [path.relative_to(tmp_path) for path in photos.rglob("*.*")]
    lines = [f'"{path}"\t{path.parts[1]}' for path in paths]
    (tmp_path / "photos.csv").write_text("\r\n".join(["path\tlabel", *lines]).replace("/", "\\"), encoding="utf-8")
    data = build(tmp_path / "photos.csv", tmp_path / "OUT")
    found = {item.impath for item in data.train_x + data.val + data.test}
    assert found == {str(tmp_path / path) for path in paths} and str(odd) in found and len(found) == 60


def test_a_quotation_mark_that_is_not_closed(tmp_path, capsys):
    (tmp_path / "photos.csv").write_text('path,label\n"a.png,a\n' + "b.png,b\n" * 30_000)
    told = said(capsys, "--images", tmp_path / "photos.csv", "--output-dir", tmp_path / "OUT", "VERBOSE", "False")
    assert "photos.csv, line" in told and "quotation mark" in told


def test_names_that_are_not_in_utf8(photos, tmp_path, capsys):
    try:
        os.rename(photos / "red bus", os.fsencode(photos) + b"/\xe9t\xe9")
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    told = said(capsys, "--images", photos, "--output-dir", tmp_path / "OUT", "VERBOSE", "False")
    assert "names that are not in UTF-8" in told and r"\udce9t\udce9" in told


@pytest.mark.parametrize("orientation", range(10))
def test_every_orientation_is_turned_as_pillow_does(orientation, tmp_path):
    pixels = np.random.default_rng().integers(0, 256, (5, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        wanted = ImageOps.exif_transpose(image).convert("RGB")
    assert np.array_equal(read_photo(tmp_path / "a.png"), wanted)
    assert np.array_equal(read_image(tmp_path / "a.png"), pixels)


def test_an_exif_that_pillow_cannot_write_again(tmp_path):
    """Its resolution is a text: `exif_transpose` raises TypeError."""
    tiff = b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHIIHHI4sI", 0x0112, 3, 1, 6, 0x011A, 2, 4, b"72\0\0", 0)
    picture = Image.fromarray(np.random.default_rng().integers(0, 256, (20, 30, 3), dtype=np.uint8))
    picture.save(tmp_path / "phone.jpg", exif=b"Exif\0\0" + tiff)
    with Image.open(tmp_path / "phone.jpg") as image, pytest.raises(TypeError):
        ImageOps.exif_transpose(image)
    assert image_problem(str(tmp_path / "phone.jpg")) == ""
    assert read_photo(tmp_path / "phone.jpg").size == (20, 30)
    picture.save(tmp_path / "odd.jpg", exif=b"Exif\0\0no TIFF at all")
    assert read_photo(tmp_path / "odd.jpg").size == (30, 20)


def test_whatever_a_decoder_raises_is_one_line(photos, monkeypatch):
    def decode(self, *args):
        raise RuntimeError("decoding of color planes failed")

    monkeypatch.setattr(PngImageFile, "load", decode)
    with pytest.raises(OSError, match="Cannot read the image .*planes failed"):
        read_image(photos / "red bus" / "img 01.png")


def test_bad_folders_get_one_line(photos, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = ["--output-dir", tmp_path / "OUT", "VERBOSE", "False"]
    assert "has no images: it should have one folder a class" in said(capsys, "--images", empty, *out)
    assert f"there is no {tmp_path / 'nowhere'}" in said(capsys, "--images", tmp_path / "nowhere", *out)
    (empty / "cat").mkdir()
    assert "has no images" in said(capsys, "--images", empty, *out)
    draw(empty / "cat" / "a", (1, 2, 3), "png", np.random.default_rng(0))
    assert 'one class only, "cat"' in said(capsys, "--images", empty, *out)
    (photos / "dog").mkdir()
    assert "class folders without images: dog" in said(capsys, "--images", photos, *out)
    assert "both name a data set" in said(capsys, "--images", photos, "--dataset-config-file", "x.yaml", *out)
    assert "CoOp takes no --template" in said(capsys, "--images", photos, "--trainer", "CoOp", "--template", "{}", *out)
    (photos / "dog").rmdir()
    assert not (tmp_path / "OUT" / "split.json").exists()
    assert "with one {} where the class name goes" in said(capsys, "--images", photos, "--template", "a photo", *out)
    text = tmp_path / "list.txt"
    text.write_text("x")
    assert "neither a folder nor a .csv or .json" in said(capsys, "--images", text, *out)
    assert not (tmp_path / "OUT" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "its first line should read"),
        ("photo,class\na.jpg,cat\n", "'photo', 'class'"),
        ("path,label\na.jpg,\n", "line 2: the label is missing"),
        ("path,label\na.jpg,cat\n,dog\n", "line 3: the path is missing"),
        ("path,label,split\na.jpg,cat,tset\n", 'line 2: the split is "tset"'),
        ("path,label\na.jpg,cat\na.jpg,dog\n", "more than once, first"),
        ("path,label,split\na.jpg,cat,train\nb.jpg,dog,\n", "1 of 2 images have no split"),
        (
            "path,label,split\na.jpg,cat,train\nb.jpg,cats,test\n",
            'no training image, first "cats" (did you mean "cat"?)',
        ),
        ("path,label\na.jpg,cat\ngone.jpg,dog\n", "1 of 2 images cannot be read"),
    ],
)
def test_bad_lists_get_one_line(content, told, tmp_path, capsys):
    for name in "ab":
        Image.new("RGB", (9, 9)).save(tmp_path / f"{name}.jpg")
    (tmp_path / "list.csv").write_text(content)
    line = said(capsys, "--images", tmp_path / "list.csv", "--output-dir", tmp_path / "OUT", "VERBOSE", "False")
    assert told in line, line


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("path,label\na.jpg,cat\nb.jpg,d\xf6g\n".encode("latin-1"), "no UTF-8: save it as UTF-8"),
        ("path,label\na.jpg,cat\n".encode("utf-16"), "no UTF-8: save it as UTF-8"),
        (b"path,label\na.jpg,cat, black\n", "line 2 has more fields than the first line"),
        (b"path,label,label\na.jpg,cat,dog\n", "its first line should read"),
        (b"path,label\na.jpg,  \n", "line 2: the label is missing"),
    ],
)
def test_what_excel_makes_gets_one_line(content, told, tmp_path, capsys):
    (tmp_path / "list.csv").write_bytes(content)
    line = said(capsys, "--images", tmp_path / "list.csv", "--output-dir", tmp_path / "OUT", "VERBOSE", "False")
    assert told in line and str(tmp_path / "list.csv") in line, line


@pytest.mark.parametrize(
    "content",
    [
        "{",
        '{"a": 1}',
        "[5]",
        '[["a.jpg"]]',
        '[{"path": "a.jpg"}]',
        '{"train": 1, "val": [], "test": []}',
        '{"train": [["a", 1]], "val": [], "test": []}',
    ],
)
def test_bad_json_gets_one_line(content, tmp_path, capsys):
    (tmp_path / "list.json").write_text(content)
    said(capsys, "--images", tmp_path / "list.json", "--output-dir", tmp_path / "OUT", "VERBOSE", "False")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ('{"path": "a.jpg", "label": "cat"}\n{"path": "b.jpg", "label"\n', "list.jsonl, line 2 is no JSON"),
        ('{"path": "a.jpg", "label": "cat"}\n\n{"path": "b.jpg"}\n', "list.jsonl, line 3: the label is missing"),
        ('{"photo": "a.jpg", "label": "cat"}\n', "list.jsonl, line 1: the path is missing"),
        ("5\n", 'list.jsonl, line 1 should be {"path"'),
        ("", "has no images"),
        ("\xe9", "list.jsonl, line 1: byte 0xe9 is no UTF-8"),
    ],
)
def test_bad_json_lines_get_one_line(content, told, tmp_path, capsys):
    (tmp_path / "list.jsonl").write_bytes(content.encode("latin-1"))
    line = said(capsys, "--images", tmp_path / "list.jsonl", "--output-dir", tmp_path / "OUT", "VERBOSE", "False")
    assert told in line, line


def test_links_do_not_leak(photos, tmp_path, capsys):
    """An image that is found twice could be trained on and tested on."""
    up = photos / "猫" / "up"
    up.symlink_to(photos)
    with pytest.raises(ValueError, match="48 images more than once"):
        build(photos, tmp_path / "OUT")
    up.unlink()
    (photos / "猫" / "same").symlink_to(photos / "猫")  # a circle, in which nothing is new
    assert len(build(photos, tmp_path / "a").test) == 20
    (photos / "猫" / "copy.png").symlink_to(photos / "red bus" / "img 01.png")
    with pytest.raises(ValueError, match="1 images more than once, first .*img 01.png"):
        build(photos, tmp_path / "OUT")
    outside = tmp_path / "elsewhere"  # what people link for is read
    (photos / "blue boat").rename(outside)
    (photos / "blue boat").symlink_to(outside)
    (photos / "猫" / "copy.png").unlink()
    assert build(photos, tmp_path / "b").num_classes == 5


def test_a_pipe_is_no_image(photos, tmp_path):
    os.mkfifo(photos / "猫" / "pipe.jpg")
    assert find_unreadable([str(photos / "猫" / "pipe.jpg")], "") == {str(photos / "猫" / "pipe.jpg"): "it is no file"}


def test_folders_that_cannot_be_read_are_said(photos, tmp_path, monkeypatch):
    def refuse(folder):
        if str(folder).endswith("deep"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    (photos / "猫" / "deep").mkdir()
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match="deep cannot be read .Permission denied.: change its permissions"):
        build(photos, tmp_path / "OUT")


def test_split_folders_that_do_not_fit(photos, tmp_path, capsys):
    root, out = tmp_path / "divided", ["--output-dir", tmp_path / "OUT", "VERBOSE", "False"]
    shutil.copytree(photos, root / "test")
    assert "5 classes have no training image" in said(capsys, "--images", root, *out)
    shutil.copytree(photos, root / "train")
    (root / "more").mkdir()
    shutil.rmtree(root / "test")
    (root / "test").mkdir()  # as Kaggle's: images without a class
    draw(root / "test" / "1", (1, 2, 3), "png", np.random.default_rng(0))
    assert "has train/ with class folders, but also more, test, which" in said(capsys, "--images", root, *out)


def test_all_that_is_wrong_with_a_folder_is_told_at_once(photos, tmp_path, capsys):
    """In one run: what one mends shows no other error."""
    (photos / "dog").mkdir()
    (photos / "猫" / "copy.png").symlink_to(photos / "red bus" / "img 01.png")
    (photos / "red bus" / "text.jpg").write_text("I am a text file")
    out = ["--output-dir", str(tmp_path / "OUT"), "--val", "1.5"]
    assert main(["--images", str(photos), *out, "VERBOSE", "False"]) == 1
    done = capsys.readouterr()
    assert done.err == f"error: {photos} has 4 problems, see above: mend them and give the command again\n"
    for words in (
        "has class folders without images: dog",
        "has 1 images more than once, first",
        "1 of 62 images cannot be read, see above",
        "--val is 1.5: give a share",
        "text.jpg: cannot identify image file",
    ):
        assert sum(words in line for line in done.out.splitlines()) == 1, words
    assert "Loading CLIP" not in done.out and not (tmp_path / "OUT" / "split.json").exists()


def test_all_bad_lines_of_a_list_are_told_at_once(tmp_path, capsys):
    (tmp_path / "list.csv").write_text("path,label,split\na.jpg,,\n,cat,\na.jpg,cat,tset\na,b,c,d\n")
    (tmp_path / "list.jsonl").write_text('{"path": "a"}\n{\n5\n["a.jpg", "cat", "tset"]\n')
    for name in ("list.csv", "list.jsonl"):
        told = said(capsys, "--images", tmp_path / name, "--output-dir", tmp_path / "OUT", "VERBOSE", "False")
        assert f"{name} has 4 problems, see above" in told


def test_classes_of_fewer_images_than_shots_are_told(tmp_path, capsys):
    make_photos(tmp_path / "photos", 4, {"a": (1, 2, 3), "b": (9, 200, 9)})
    draw(tmp_path / "photos" / "c" / "x", (200, 9, 9), "png", np.random.default_rng(0))
    build(tmp_path / "photos", tmp_path / "OUT", "DATASET.NUM_SHOTS", 2)
    told = "1 of 3 classes have fewer training images than DATASET.NUM_SHOTS asks for, 2: c (1)\n"
    assert told in capsys.readouterr().out
    build(tmp_path / "photos", tmp_path / "b", "DATASET.NUM_SHOTS", 1)
    assert "DATASET.NUM_SHOTS" not in capsys.readouterr().out


def test_a_class_that_is_never_trained_is_told(tmp_path, capsys):
    """Three images in batches of two: the third is left out. In two runs of one epoch as in one of two."""
    make_photos(tmp_path / "photos", 1, {"a": (1, 2, 3), "b": (9, 200, 9), "c": (200, 9, 9)})
    argv = ["--images", str(tmp_path / "photos"), "--output-dir", str(tmp_path / "OUT"), *SMALL]
    few = [*argv, "DATALOADER.TRAIN_X.BATCH_SIZE", "2", "OPTIM.MAX_EPOCH", "1"]
    assert main(few) == 0
    told = re.findall("1 of 3 classes were in no training batch: ([abc])\n.*BATCH_SIZE than 2", capsys.readouterr().out)
    state = torch.load(tmp_path / "OUT" / "rotations" / "model.pth.tar-1", weights_only=True)["extra_state"]
    (left_out,) = [name for name, seen in zip("abc", state["trained_classes"].tolist(), strict=True) if not seen]
    assert told == [left_out]
    argv[3] += "2"
    assert main([*argv, "DATALOADER.TRAIN_X.BATCH_SIZE", "3", "OPTIM.MAX_EPOCH", "1"]) == 0
    assert "in no training batch" not in capsys.readouterr().out


def test_the_table_of_class_balance(photos, tmp_path, capsys):
    for path in sorted((photos / "猫").iterdir())[1:]:
        path.unlink()
    build(photos, tmp_path / "OUT")
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["images", "a", "class", "train", "val", "test"] in rows and ["猫", "1", "0", "0"] in rows
    assert ["red", "bus", "6", "2", "4"] in rows and ["all", "5", "classes", "25", "8", "16"] in rows
    many = make_photos(tmp_path / "many", 2, {f"class {k}": (k, k, k) for k in range(30)})
    build(many, tmp_path / "M")
    told = capsys.readouterr().out
    assert told.count("\nclass ") == 20 and "... 10 more classes" in told


# ------------------------------------------------------------------ what is no image of the user


SYSTEM = ["@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "__MACOSX", "lost+found", "System Volume Information",
          "@Recently-Snapshot", ".Trashes", "FOUND.000"]  # fmt: skip


@pytest.mark.parametrize("name", SYSTEM)
def test_system_folders_are_passed_over(name, photos, tmp_path, capsys):
    """As class folders, within one, and beside train/ and test/."""
    wanted = names_of(items_of(build(photos, tmp_path / "a")))
    rng = np.random.default_rng()
    draw(photos / name / "thumb", (9, 9, 9), "png", rng)
    draw(photos / name / "deep" / "thumb", (9, 9, 9), "png", rng)
    draw(photos / "red bus" / name / "img 01.png" / "thumb", (9, 9, 9), "png", rng)
    capsys.readouterr()
    assert names_of(items_of(build(photos, tmp_path / "b"))) == wanted
    hidden = name.startswith(".")
    assert ("2 system folders are passed over, first" in capsys.readouterr().out) != hidden
    assert images_in(photos)[0] == sorted(path for _, path in wanted)

    root = tmp_path / "divided"
    for part in ("train", "test"):
        for k, label in enumerate("ab"):
            draw(root / part / label / "x", (k, 99, 199), "png", rng)
            draw(root / part / label / name / "x", (k, 99, 199), "png", rng)
    draw(root / name / "x", (9, 99, 199), "png", rng)
    data = build(root, tmp_path / "c")
    assert len(data.train_x) == len(data.test) == 2 and data.classnames == ["a", "b"]
    told = capsys.readouterr().out
    assert (f"4 system folders are passed over, first {root}" in told or "1 system folder is" in told) != hidden


def items_of(data):
    return data.train_x + data.val + data.test


@pytest.mark.parametrize("name", ["recycle", "found", "@cat", "lost and found", "#1"])
def test_classes_whose_names_look_like_those_of_systems(name, tmp_path):
    make_photos(tmp_path / "p", 2, {name: (1, 2, 3), "b": (200, 9, 9)})
    assert name in build(tmp_path / "p", tmp_path / "OUT").classnames


def test_files_of_all_kinds(photos, tmp_path, capsys):
    """Also those without a suffix, by their content; what is left out is told."""
    red = photos / "red bus"
    Image.new("L", (9, 9)).save(red / "a.pgm")
    Image.new("RGB", (9, 9)).save(red / "b.jp2")
    shutil.copy(red / "img 01.png", red / "no suffix")
    (red / "README").write_text("no image")
    (red / "img.jpg.part").write_bytes(b"x")
    (red / "img 01.png").write_bytes((red / "img 01.png").read_bytes() + b" ")
    os.mkfifo(red / "pipe")
    found = {osp.basename(path) for _, path in names_of(items_of(build(photos, tmp_path / "OUT")))}
    assert {"a.pgm", "b.jp2", "no suffix"} <= found and not {"README", "img.jpg.part", "pipe"} & found
    assert f"3 files of {red} are no images and are left out, first README\n" in capsys.readouterr().out


# ------------------------------------------------------------------ copies


RED = sorted(COLOURS).index("red bus")


def copy_some(photos, count):
    """`count` images of one class, each of them twice more: {name of the copies: name of the first}."""
    names = {}
    for path in sorted((photos / "red bus").iterdir())[:count]:
        for k in range(2):
            shutil.copy(path, path.with_name(f"copy{k} of {path.name}"))
            names[f"copy{k} of {path.name}"] = path.name
    return names


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_copies_share_a_split(seed, photos, tmp_path, capsys):
    names = copy_some(photos, 4)
    data = build(photos, tmp_path / "OUT", "--seed", seed)
    splits = enumerate((data.train_x, data.val, data.test))
    parts = {osp.basename(item.impath): part for part, items in splits for item in items if item.label == RED}
    assert len(parts) == 20 and all(parts[copy] == parts[first] for copy, first in names.items())
    firsts = [part for name, part in parts.items() if not name.startswith("copy")]
    assert [firsts.count(part) for part in range(3)] == [6, 2, 4], "copies count as one image"
    told = capsys.readouterr().out
    assert "12 images are copies of each other, 4 different ones: copies share a split\n" in told
    some = sorted(names)[0]
    line = next(line for line in told.splitlines() if some in line)
    assert f"red bus/{names[some]}" in line and line.count(" = ") == 2


def test_what_two_classes_hold_is_not_tested(photos, tmp_path, capsys):
    held = set()
    for path in sorted((photos / "red bus").iterdir())[:3]:
        held |= {str(path), shutil.copy(path, str(photos / "猫" / f"copy of {path.name}"))}
    data = build(photos, tmp_path / "OUT")
    assert held <= {item.impath for item in data.train_x} and len(data.train_x) == 6 * 4 + 3 + 4 + 3
    told = capsys.readouterr().out
    assert "3 images are in more than one class, which no model can learn; they are for training only" in told


def test_copies_in_given_splits_are_told(photos, tmp_path, capsys):
    """They stay where the user put them; val, which is taken from train, holds none of train."""
    root = tmp_path / "divided"
    shutil.copytree(photos, root / "train")
    for name in COLOURS:
        (root / "test" / name).mkdir(parents=True)
        for k, path in enumerate(sorted((root / "train" / name).iterdir())):
            if k < 3:
                path.rename(root / "test" / name / path.name)
            elif k < 5:
                shutil.copy(path, path.with_name(f"copy of {path.name}"))
    some = sorted((root / "train" / "猫").iterdir())[-1]
    shutil.copy(some, root / "test" / "猫" / "leak.png")
    data = build(root, tmp_path / "OUT", "--val", 4)
    assert len(data.test) == 16
    told = capsys.readouterr().out
    assert "1 images are in more than one split, which flatters the accuracy: remove the copies\n" in told
    assert f"test/猫/leak.png = train/猫/{some.name}" in told
    train, val = ({item.impath.replace("copy of ", "") for item in part} for part in (data.train_x, data.val))
    assert not train & val and len(val) == 20


# ------------------------------------------------------------------ flags and paths


def test_split_files_of_windows(photos, tmp_path):
    """Backslashes in a split file and in lists; a file whose name has one is found, too."""
    odd = photos / "red bus" / "back\\slash.png"
    (photos / "red bus" / "img 01.png").rename(odd)
    paths = sorted(path.relative_to(tmp_path) for path in photos.rglob("*.*"))
    label = {name: k for k, name in enumerate(sorted(COLOURS))}
    written = [str(path) if "\\" in str(path) else str(path).replace("/", "\\") for path in paths]
    rows = [[text, label[path.parts[1]], path.parts[1]] for text, path in zip(written, paths, strict=True)]
    (tmp_path / "split.json").write_text(json.dumps({"train": rows[::2], "val": [], "test": rows[1::2]}))
    data = build(tmp_path / "split.json", tmp_path / "OUT")
    wanted = {str(tmp_path / path) for path in paths}
    assert {item.impath for item in items_of(data)} == wanted and str(odd) in wanted
    read = read_split(str(tmp_path / "split.json"), str(tmp_path))
    assert {item.impath for part in read for item in part} == wanted
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps([row[0], row[2]]) for row in rows))
    assert {item.impath for item in items_of(build(tmp_path / "list.jsonl", tmp_path / "L"))} == wanted


def test_unreadable_images_of_a_trained_split_can_be_skipped(photos, tmp_path, capsys):
    """The flag that the message advises is taken, with --images or without."""
    argv = ["--images", str(photos), "--output-dir", str(tmp_path / "OUT"), *SMALL, "OPTIM.MAX_EPOCH", "1"]
    assert main(argv) == 0
    path = read_json(tmp_path / "OUT" / "split.json")["test"][0][0]
    with open(path, "wb") as f:
        f.write(b"torn")
    flags = ["--eval-only", "--model-dir", str(tmp_path / "OUT")]
    assert "leave them out with --skip-unreadable" in said(capsys, *flags, "VERBOSE", "False")
    assert main([*flags, "--skip-unreadable"]) == 0
    assert "* total: 19\n" in capsys.readouterr().out
    told = said(capsys, "--eval-only", "--model-dir", tmp_path, "--skip-unreadable")
    assert "--skip-unreadable has no effect on the data set Shapes" in told

    for path in (photos / "猫").iterdir():
        path.write_bytes(b"torn")
    told = said(capsys, "--images", photos, "--output-dir", tmp_path / "B", "--skip-unreadable", "VERBOSE", "False")
    assert "no image of 猫 can be read" in told


def test_flags_that_say_nothing_are_refused(photos, capsys):
    assert "--images is empty" in said(capsys, "--images", "")
    assert "--skip-unreadable needs --images" in said(capsys, "--skip-unreadable")
    assert "--images comes after a KEY VALUE pair" in said(capsys, "VERBOSE", "False", "--images", photos)


def test_classes_that_read_the_same_are_said(tmp_path, capsys):
    make_photos(tmp_path / "photos", 2, {"hot_dog": (1, 2, 3), "Hot  dog": (200, 9, 9), "c": (9, 200, 9)})
    argv = ["--images", str(tmp_path / "photos"), "--output-dir", str(tmp_path / "OUT"), "--no-train"]
    assert main([*argv, "VERBOSE", "False"]) == 0
    assert '"Hot  dog" and "hot_dog" are the same to CLIP, which cannot tell them apart' in capsys.readouterr().out


@pytest.mark.parametrize("names", [("hot dog", "hot  dog"), ("HOT_dog", " hot dog "), ("caf&eacute;", "caf\u00e9")])
def test_names_of_one_token_sequence_are_one_class(names):
    """They are compared as CLIP's own tokenizer reads them."""
    first, second = (clip.tokenize(name.replace("_", " ")) for name in names)
    assert first.equal(second)
    assert same_to_clip(["x", names[0], "hotdog", names[1]]) == [list(names)]
    assert not same_to_clip(["hot dog", "hotdog", "hot-dog"])


def test_the_tiny_clip_is_told_before_training(tmp_path, capsys):
    """However it was chosen, in the log too, behind the config; not where another CLIP is meant."""
    make_photos(tmp_path / "photos", 2)
    for k, words in enumerate([["--backbone", "tiny"], ["--trainer", "CoOp"], ["MODEL.BACKBONE.NAME", "tiny"]]):
        out = tmp_path / str(k)
        assert main(["--images", str(tmp_path / "photos"), "--output-dir", str(out), "--no-train", *words]) == 0
        log = (out / "log.txt").read_text()
        trainer = "CoOp" if "CoOp" in words else "OrthCR"
        assert log.index("** Config **") < log.index("The tiny CLIP is used. It was trained on drawn shapes only.")
        assert f"For photographs give --config-file configs/trainers/{trainer}/vit_b16" in log
    capsys.readouterr()
    setup_cfg(parse(["--images", str(tmp_path / "photos"), "MODEL.BACKBONE.NAME", "ViT-B/16"]))
    assert "tiny CLIP" not in capsys.readouterr().out


def test_a_class_without_test_image_is_said(photos, tmp_path, capsys):
    for path in sorted((photos / "猫").iterdir())[1:]:
        path.unlink()
    build(photos, tmp_path / "OUT")
    assert "1 of 5 classes have no test image: 猫" in capsys.readouterr().out


def test_one_image_a_class_trains_and_says_that_nothing_is_tested(tmp_path, capsys):
    make_photos(tmp_path / "photos", n=1)
    argv = ["--images", str(tmp_path / "photos"), "--output-dir", str(tmp_path / "OUT"), *SMALL, "OPTIM.MAX_EPOCH", "1"]
    assert main(argv) == 0
    assert "There are no test images: the accuracy is not measured" in capsys.readouterr().out
    assert "accuracy" not in read_json(tmp_path / "OUT" / "results.json")
    assert len(list(Predictor(tmp_path / "OUT")(tmp_path / "photos"))) == 5


def test_exif_turns_own_images_upright_and_no_benchmark(photos, tmp_path):
    path = photos / "red bus" / "img 05.JPG"
    upright, lying = (np.asarray(read(str(path)), float) for read in (read_photo, read_image))
    assert upright.shape == (40, 56, 3) and lying.shape == (56, 40, 3)
    assert upright[:8].mean() < upright[-8:].mean() - 20, "darker at the top, as drawn"
    cfg = setup_cfg(parse(["--images", str(photos)]))
    assert cfg.INPUT.EXIF_TRANSPOSE and not setup_cfg(parse([])).INPUT.EXIF_TRANSPOSE
