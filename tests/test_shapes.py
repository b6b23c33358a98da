"""The embedded data sets: what is drawn, and how well the embedded CLIP knows it without training."""

import json
import os
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dassl.data.datasets import build_dataset
from datasets.shapes import Shapes
from datasets.shared import drawing
from orthcr.run.config import setup_cfg
from orthcr.run.flags import parse
from orthcr.run.runner import main

IMAGES = dict(Shapes.images)  # as the file says; fixtures of other tests draw fewer
CLASSES = {"Shapes": 40, "Digits": 10}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data root with the real Shapes, drawn at first use."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Shapes, "images", IMAGES)
        yield tmp_path_factory.mktemp("embedded")


def cfg_of(name, root, *opts):
    config = f"configs/datasets/{name.lower()}.yaml"
    argv = ["--root", str(root), "--trainer", "ZeroshotCLIP", "--dataset-config-file", config]
    return setup_cfg(parse([*argv, "VERBOSE", "False", "DATASET.NUM_SHOTS", "-1", *opts]))


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(Path(__file__).resolve().parents[1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pixels(path):
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("RGB", (32, 32))
        return np.asarray(image)


@pytest.mark.parametrize("name", CLASSES)
def test_classes_splits_and_files(name, root):
    data = build_dataset(cfg_of(name, root))
    assert data.num_classes == len(set(data.classnames)) == CLASSES[name]
    splits = (data.train_x, data.val, data.test)
    paths = [item.impath for items in splits for item in items]
    assert len(set(paths)) == len(paths), "no image is in two splits"
    counts = [np.bincount([i.label for i in items], minlength=data.num_classes) for items in splits]
    if name == "Shapes":
        assert [set(c) for c in counts] == [{20}, {20}, {40}]
    else:
        assert sum(map(sum, counts)) == 1797
        total = sum(counts)
        assert (total == np.bincount(load_digits().target)).all()
        assert all((abs(c - f * total) < 1).all() for c, f in zip(counts, (0.5, 0.2, 0.3), strict=True))
    for item in data.test[:: len(data.test) // 20]:
        assert pixels(item.impath).std() > 5, "no empty picture"
    assert not list(root.glob(".*")), "nothing half-drawn is left"


@pytest.mark.parametrize("name", CLASSES)
def test_drawn_again_it_is_the_same(name, root):
    data = build_dataset(cfg_of(name, root))
    kept = {"train": iter(data.train_x), "val": iter(data.val), "test": iter(data.test)}
    for split, label, classname, image in islice(data.pictures(), 400):
        item = next(kept[split])
        assert (item.label, item.classname) == (label, classname)
        assert (pixels(item.impath) == np.asarray(image)).all(), item.impath


def test_no_two_pictures_are_the_same(root):
    data = build_dataset(cfg_of("Shapes", root))
    seen = {pixels(item.impath).tobytes() for items in (data.train_x, data.val, data.test) for item in items}
    assert len(seen) == 40 * sum(IMAGES.values())


def test_what_pretraining_saw_is_not_in_the_data_sets(root):
    seen = {drawing.name(composition) for composition in drawing.SEEN}
    names = build_dataset(cfg_of("Shapes", root)).classnames
    assert not seen & set(names) and set(names) <= {drawing.name(composition) for composition in drawing.UNSEEN}
    assert len({*drawing.SEEN, *drawing.UNSEEN}) == len(drawing.SEEN) + len(drawing.UNSEEN) == 5 * 8 * 10
    assert Shapes.style in drawing.STYLES and Shapes.style not in drawing.SEEN_STYLES
    words = {word for composition in drawing.SEEN for word in composition}
    assert words >= {word for name in names for word in name.split()}, "each word alone was seen"


def test_new_classes_of_shapes_are_other_things(root):
    base, new = (build_dataset(cfg_of("Shapes", root, "DATASET.SUBSAMPLE_CLASSES", half)) for half in ("base", "new"))
    assert [*base.classnames, *new.classnames] == [drawing.name(c) for c in Shapes.compositions()]
    last_words = [{name.split()[-1] for name in data.classnames} for data in (base, new)]
    assert base.num_classes == new.num_classes == 20 and not last_words[0] & last_words[1]


@pytest.mark.parametrize("style", drawing.STYLES)
def test_a_picture_is_a_function_of_its_seed(style):
    composition = drawing.UNSEEN[0]

    def draw(seed):
        rng = np.random.default_rng(seed)
        a = drawing.draw(composition, drawing.STYLES[style], rng)
        return a.tobytes() + drawing.draw_digit("seven", drawing.STYLES[style], rng).tobytes()

    assert draw(1) == draw(1) != draw(2)


@pytest.mark.parametrize("classes", ["base", "new"])
def test_zero_shot_leaves_room_above_and_below(classes, root, tmp_path, capsys):
    argv = ["--root", str(root), "--trainer", "ZeroshotCLIP", "--output-dir", str(tmp_path), "--eval-only"]
    assert main([*argv, "VERBOSE", "False", "DATASET.SUBSAMPLE_CLASSES", classes]) == 0
    result = json.loads((tmp_path / "results.json").read_text())
    assert re.search(r"\* total: 800$", capsys.readouterr().out, re.MULTILINE), "20 classes of 40 images"
    assert 40 <= result["accuracy"] <= 80
    assert result["trained_on"] is None and result["trainable_params"] == 0


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_others_may_read_what_was_drawn(root):
    build_dataset(cfg_of("Digits", root))
    os.mkdir(root / "usual")
    assert (root / "digits").stat().st_mode == (root / "usual").stat().st_mode


def test_a_folder_without_its_split_file_is_not_touched(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "mine.txt").write_text("keep")
    with pytest.raises(FileNotFoundError, match="split.json: remove that folder"):
        build_dataset(cfg_of("Digits", tmp_path))
    assert [p.name for p in tmp_path.rglob("*")] == ["digits", "mine.txt"]
