"""The benchmarks, each a miniature on disk: read from its annotations and from a split file."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import miniatures
import pytest
from miniatures import (
    EVERY_FOURTH,
    MINIATURES,
    WITH_SPLIT_FILE,
    WNIDS,
    all_of,
    as_split,
    change_row,
    folder_of,
    put,
    shuffled,
)
from scipy.io import savemat
from test_datasets import PARTS, REFERENCE, REPO, cfg_of, coop_selection, message, rows, two_at_once

import datasets
from dassl.data.datasets import build_dataset
from dassl.utils import read_json, write_json
from datasets import base
from datasets.catalogue import BENCHMARKS, Size
from datasets.shared import annotations
from orthcr.run.declarations import discover

discover(datasets)
lay = miniatures.lay  # the fixture


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize("name", MINIATURES)
def test_raw_annotations_are_split_by_the_rule_and_kept(name, lay, tmp_path, capsys):
    cls, split = lay(name)
    before = {path for path in tmp_path.rglob("*")}
    random.seed(7)
    state = random.getstate()
    data = build_dataset(cfg_of(tmp_path, name))
    assert random.getstate() == state, "the global generator is left alone"
    assert as_split(data, cls, tmp_path) == all_of(cls, split)
    assert all(Path(item.impath).exists() for items in (data.train_x, data.val, data.test) for item in items)

    written = {path for path in tmp_path.rglob("*")} - before
    if name not in WITH_SPLIT_FILE:
        assert not written and not cls.split_file
        return
    path = tmp_path / cls.dataset_dir / cls.split_file
    assert path.name == f"split_zhou_{name}.json" and written == {path}
    assert read_json(path) == split
    assert str(path) in capsys.readouterr().out

    moved = tmp_path / "elsewhere"  # read again: with the images alone, and from another place
    moved.mkdir()
    (tmp_path / cls.dataset_dir).rename(moved / cls.dataset_dir)
    for file in (moved / cls.dataset_dir).rglob("*"):
        if file.suffix in (".mat", ".txt") or file.name == "cat_to_name.json":
            file.unlink()
    assert as_split(build_dataset(cfg_of(moved, name)), cls, moved) == split


@pytest.mark.parametrize("name", WITH_SPLIT_FILE)
def test_a_split_file_made_elsewhere_is_taken_as_it_is(name, lay, tmp_path):
    cls, split = lay(name)
    every = shuffled(random.Random(), [row for part in PARTS for row in split[part]])
    first = list({row[1]: row for row in every}.values())  # every class has one to train
    every = [row for row in every if row not in first]
    other = {"train": first + every[::3], "val": every[1::3], "test": every[2::3]}
    write_json(other, tmp_path / cls.dataset_dir / cls.split_file)
    assert as_split(build_dataset(cfg_of(tmp_path, name)), cls, tmp_path) == other


@pytest.mark.parametrize("name", MINIATURES)
def test_shots_and_halves_follow_the_published_procedure(name, lay, tmp_path):
    cls, split = lay(name)
    labels = sorted({label for part in PARTS for _, label, _ in split[part]})
    half = -(-len(labels) // 2)
    for seed in (1, 2, 3):
        chosen = all_of(cls, {**split, **({} if cls.test_only else coop_selection(split, 2, seed))})
        for _ in ("selected", "kept"):
            assert as_split(build_dataset(cfg_of(tmp_path, name, 2, seed)), cls, tmp_path) == chosen
        for classes, kept in (("base", labels[:half]), ("new", labels[half:])):
            data = build_dataset(cfg_of(tmp_path, name, 2, seed, classes))
            wanted = {part: [[p, k - kept[0], c] for p, k, c in chosen[part] if k in kept] for part in PARTS}
            assert as_split(data, cls, tmp_path) == wanted
            assert data.num_classes == len(kept)
    assert (tmp_path / cls.dataset_dir / "split_fewshot").exists() != cls.test_only


NAMES = {
    "Caltech101": ["face", "leopard", "motorbike", "accordion", "airplane", "yin_yang"],
    "OxfordPets": ["abyssinian", "american_bulldog", "bengal", "yorkshire_terrier"],
    "StanfordCars": ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Ram C/V Cargo Van Minivan"],
    "OxfordFlowers": ["pink primrose", "hard-leaved pocket orchid", "canterbury bells"],
    "Food101": ["apple_pie", "baby_back_ribs", "waffles"],
    "FGVCAircraft": ["707-320", "Cessna 172", "F-16A/B", "F/A-18", "DC-10"],
    "SUN397": ["abbey", "indoor church", "outdoor church", "indoor_procenium theater"],
    "DescribableTextures": ["banded", "blotchy", "polka-dotted", "zigzagged"],
    "EuroSAT": ["Annual Crop Land", "Forest", "Highway or Road", "River", "Sea or Lake"],
    "UCF101": ["Apply_Eye_Makeup", "Clean_And_Jerk", "Handstand_Pushups", "Yo_Yo"],
    **dict.fromkeys(
        ["ImageNet", "ImageNetV2", "ImageNetSketch"],
        [
            "tench",
            "goldfish",
            "crane",
            "barrel",
            "crane",
            "maillot",
            "tank suit",
            "teddy bear",
            "banana",
            "earth star",
            "toilet paper",
        ],
    ),
    **dict.fromkeys(["ImageNetA", "ImageNetR"], ["goldfish", "maillot", "earth star"]),
}


@pytest.mark.parametrize("name", MINIATURES)
def test_class_names(name, lay, tmp_path):
    lay(name)
    data = build_dataset(cfg_of(tmp_path, name))
    assert data.classnames == NAMES[name] and data.num_classes == len(NAMES[name])


def test_the_classes_of_the_real_eurosat_and_caltech():
    from datasets import caltech101, eurosat

    assert list(eurosat.NEW_CNAMES.values()) == [
        "Annual Crop Land",
        "Herbaceous Vegetation Land",
        "Highway or Road",
        "Industrial Buildings",
        "Pasture Land",
        "Permanent Crop Land",
        "Residential Buildings",
        "Sea or Lake",
    ]
    path = REFERENCE / "caltech101" / "split_zhou_Caltech101.json"
    if path.exists():
        renamed = {p.split("/")[0]: name for p, _, name in read_json(path)["train"] if p.split("/")[0] != name}
        assert renamed == caltech101.NEW_CNAMES


@pytest.mark.parametrize("name", MINIATURES)
def test_linked_folders_are_followed(name, lay, tmp_path):
    cls, split = lay(name)
    storage = tmp_path / "storage"
    storage.mkdir()
    inner = folder_of(cls, tmp_path)
    for number, folder in enumerate([*(p for p in inner.iterdir() if p.is_dir()), inner, tmp_path / cls.dataset_dir]):
        folder.rename(storage / str(number))
        folder.symlink_to(storage / str(number), target_is_directory=True)
        if folder == tmp_path / cls.dataset_dir:
            break  # of StanfordCars it is the folder of the images as well
    assert as_split(build_dataset(cfg_of(tmp_path, name)), cls, tmp_path) == all_of(cls, split)


def test_importing_the_data_sets_takes_neither_scipy_nor_torch_of_theirs():
    stems = [b.stem for b in BENCHMARKS if not b.embedded]
    code = "import sys; import dassl.data.datasets; before = set(sys.modules)\n"
    code += "".join(f"import datasets.{stem}\n" for stem in stems)
    code += "print(sorted({m.partition('.')[0] for m in set(sys.modules) - before}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "datasets" in done.stdout and "scipy" not in done.stdout
    assert not [stem for stem in stems if "torch" in (REPO / "datasets" / f"{stem}.py").read_text()]


# ------------------------------------------------------------------ keeping splits and selections


@pytest.mark.parametrize("name", ["Food101", "OxfordPets"])
def test_an_incomplete_copy_is_not_kept_as_the_split(name, lay, tmp_path, monkeypatch, capsys):
    cls, split = lay(name)
    change_row(monkeypatch, name, size=Size(101, 50_500, 20_200, 30_300))
    for _ in range(2):
        data = build_dataset(cfg_of(tmp_path, name, 2))
        assert as_split(data, cls, tmp_path) == {**split, **coop_selection(split, 2, 1)}
        said = capsys.readouterr().out
        assert f"{len(split['train'])} train" in said and "50,500 train" in said
    assert not (tmp_path / cls.dataset_dir / cls.split_file).exists()


def test_a_read_only_folder_still_works_without_split_file(lay, tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(30, "Read-only file system")

    cls, split = lay("SUN397")
    monkeypatch.setattr(base, "write_json", refuse)
    data = build_dataset(cfg_of(tmp_path, "SUN397", 2))
    assert as_split(data, cls, tmp_path) == {**split, **coop_selection(split, 2, 1)}
    assert "The split is not saved: [Errno 30]" in capsys.readouterr().out


def test_two_runs_at_once_split_the_same(lay, tmp_path):
    for name in ("StanfordCars", "EuroSAT"):
        cls, split = lay(name)
        a, b = two_at_once(cfg_of(tmp_path, name))
        wanted = [(str(folder_of(cls, tmp_path) / path), label) for part in PARTS for path, label, _ in split[part]]
        assert a == b == wanted, (a, b)
        assert read_json(tmp_path / cls.dataset_dir / cls.split_file) == split
        assert not list((tmp_path / cls.dataset_dir).glob(".*.tmp"))


@pytest.mark.parametrize("name", ["FGVCAircraft", "ImageNet"])
def test_without_split_file_a_selection_holds_for_the_same_images_only(name, lay, tmp_path):
    cls, split = lay(name)
    build_dataset(cfg_of(tmp_path, name, 2))
    cache = tmp_path / cls.dataset_dir / "split_fewshot" / "shot_2-seed_1.json"
    kept = read_json(cache)
    kept["train"].reverse()  # so that reading can be told from selecting again
    write_json(kept, cache)
    assert rows(build_dataset(cfg_of(tmp_path, name, 2)).train_x, folder_of(cls, tmp_path)) == kept["train"]

    if name == "ImageNet":
        old = folder_of(cls, tmp_path) / split["train"][0][0]
        new = old.with_name("another.JPEG")
        old.rename(new)
    else:
        listed = tmp_path / cls.dataset_dir / "images_variant_train.txt"
        first = listed.read_text().split()[0]
        listed.write_text(listed.read_text().replace(first, "9999999", 1))
        image = folder_of(cls, tmp_path) / f"{first}.jpg"
        image.rename(image.with_name("9999999.jpg"))
    build_dataset(cfg_of(tmp_path, name, 2))
    assert read_json(cache)["split_sha256"] != kept["split_sha256"] and read_json(cache)["train"] != kept["train"]


# ------------------------------------------------------------------ ImageNet


def remove(folder):
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


@pytest.mark.parametrize("name, part", [("ImageNet", "train"), ("ImageNet", "val"), ("ImageNetSketch", "")])
def test_a_truncated_imagenet_is_refused(name, part, lay, tmp_path):
    cls, _ = lay(name)
    images = folder_of(cls, tmp_path) / part
    gone, emptied, broken = random.sample(list(WNIDS), 3)
    remove(images / gone)
    for file in (images / emptied).glob("*.JPEG"):
        file.unlink()
    remove(images / broken)
    (images / broken).symlink_to(tmp_path / "nowhere", target_is_directory=True)
    said = message(lambda: build_dataset(cfg_of(tmp_path, name)))
    assert said.startswith(f"{images} has 8 of the 11 class folders; missing or empty: ")
    assert set(re.findall(r"n\d{8}", said)) == {gone, emptied, broken}


def test_the_missing_classes_of_an_imagenet_are_counted_and_named(tmp_path):
    names = {f"n{k:08d}": f"class {k}" for k in random.sample(range(10**8), 1000)}
    gone = random.sample(list(names), 9)
    for wnid in names.keys() - set(gone):
        put(tmp_path / wnid / "a.JPEG", b"")
    said = message(lambda: annotations.read_class_folders(str(tmp_path), names, 1000))
    assert "has 991 of the 1,000 class folders" in said and all(wnid in said for wnid in gone) and "more" not in said

    for wnid in random.sample(sorted(names.keys() - set(gone)), 16):
        remove(tmp_path / wnid)
    said = message(lambda: annotations.read_class_folders(str(tmp_path), names, 1000))
    assert "has 975 of the 1,000" in said and len(re.findall(r"n\d{8}", said)) == 20 and "and 5 more" in said


def test_imagenet_without_class_folders(lay, tmp_path):
    cls, split = lay("ImageNet")
    val = folder_of(cls, tmp_path) / "val"
    for file in list(val.rglob("*.JPEG")):  # as the archive is unpacked
        file.rename(val / f"{file.parent.name}-{file.name}")
    said = message(lambda: build_dataset(cfg_of(tmp_path, "ImageNet")))
    assert f"{val} has 0 of the 11" in said and "one folder for each class" in said


@pytest.mark.parametrize("name", ["ImageNetA", "ImageNetR"])
def test_a_truncated_variant_is_refused(name, lay, tmp_path):
    cls, _ = lay(name)
    remove(folder_of(cls, tmp_path) / next(iter(EVERY_FOURTH)))
    assert "has 2 of the 3 class folders" in message(lambda: build_dataset(cfg_of(tmp_path, name)))


def test_imagenetv2_is_in_the_order_of_numbers(lay, tmp_path):
    cls, _ = lay("ImageNetV2")
    test = build_dataset(cfg_of(tmp_path, "ImageNetV2")).test
    assert len(WNIDS) == 11 and {int(Path(i.impath).parent.name) for i in test} == set(range(11))
    assert all(int(Path(i.impath).parent.name) == i.label for i in test)


def test_a_folder_or_a_list_that_is_not_imagenets(lay, tmp_path):
    cls, _ = lay("ImageNetR")
    put(folder_of(cls, tmp_path) / "n99999999" / "a.jpg")
    said = message(lambda: build_dataset(cfg_of(tmp_path, "ImageNetR")))
    assert str(folder_of(cls, tmp_path)) in said and "n99999999" in said
    lists = list(tmp_path.rglob("classnames.txt"))
    assert len(lists) == 1
    lists[0].write_text("\n".join(lists[0].read_text().splitlines()[:-1]))
    said = message(lambda: build_dataset(cfg_of(tmp_path, "ImageNetR")))
    assert f"{lists[0]} names 10 classes instead of 11" in said


def test_imagenet_is_listed_without_a_look_at_each_file(lay, tmp_path, monkeypatch):
    _, split = lay("ImageNet")
    looked_at = []

    def watching(function):
        def watch(path, *args, **kwargs):
            looked_at.append(str(path))
            return function(path, *args, **kwargs)

        return watch

    for module, function in ((os, "stat"), (os, "lstat"), (os.path, "exists"), (os.path, "isfile")):
        monkeypatch.setattr(module, function, watching(getattr(module, function)))
    data = build_dataset(cfg_of(tmp_path, "ImageNet"))
    monkeypatch.undo()
    assert len(data.train_x) == len(split["train"]) and looked_at
    assert not [path for path in looked_at if path.endswith(".JPEG")]


# ------------------------------------------------------------------ faults


def edit(path, number, line):
    """Replaces a line, counted from 1."""
    lines = path.read_text().splitlines()
    lines[number - 1] = line
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    "name, file, number, line, said",
    [
        ("OxfordPets", "annotations/trainval.txt", 3, "Abyssinian_1 1", "image class species breed"),
        ("OxfordPets", "annotations/test.txt", 2, "Abyssinian_1 x 1 1", '"x" should be the number of a class'),
        ("OxfordPets", "annotations/test.txt", 2, "Abyssinian_1 0 1 1", '"0" should be the number of a class'),
        ("FGVCAircraft", "images_variant_val.txt", 4, "1234567 Concorde", '"Concorde" is no class of'),
        ("FGVCAircraft", "images_variant_test.txt", 1, "1234567", "image variant"),
        ("SUN397", "Training_01.txt", 5, "/z/zoo/sun_1.jpg", '"/z/zoo" is no class of'),
        ("SUN397", "Testing_01.txt", 2, "abbey.jpg", "is no class of"),
        ("UCF101", "ucfTrainTestlist/classInd.txt", 2, "YoYo", "number action"),
        (
            "UCF101",
            "ucfTrainTestlist/trainlist01.txt",
            2,
            "Napping/v_Napping_g01_c01.avi 5",
            '"Napping" is no class of',
        ),
        ("UCF101", "ucfTrainTestlist/testlist01.txt", 3, "v_YoYo.avi", '"v_YoYo.avi" is no class of'),
        ("ImageNet", "classnames.txt", 2, "n01440764", "folder name"),
    ],
)
def test_a_bad_line_is_named(name, file, number, line, said, lay, tmp_path):
    cls, _ = lay(name)
    path = tmp_path / cls.dataset_dir / file
    edit(path, number, line)
    told = message(lambda: build_dataset(cfg_of(tmp_path, name)))
    assert told.startswith(f"{path}, line {number}: ") and said in told


@pytest.mark.parametrize(
    "name, file",
    [
        ("Caltech101", "101_ObjectCategories"),
        ("OxfordPets", "annotations/test.txt"),
        ("StanfordCars", "devkit/cars_meta.mat"),
        ("StanfordCars", "cars_test_annos_withlabels.mat"),
        ("OxfordFlowers", "imagelabels.mat"),
        ("OxfordFlowers", "cat_to_name.json"),
        ("FGVCAircraft", "variants.txt"),
        ("SUN397", "ClassName.txt"),
        ("UCF101", "ucfTrainTestlist/classInd.txt"),
        ("ImageNet", "classnames.txt"),
        ("ImageNet", "images/val"),
        ("ImageNetV2", "imagenetv2-matched-frequency-format-val"),
    ],
)
def test_a_missing_annotation_is_named(name, file, lay, tmp_path):
    cls, _ = lay(name)
    path = tmp_path / cls.dataset_dir / file
    path.rename(tmp_path / "away")
    told = message(lambda: build_dataset(cfg_of(tmp_path, name)))
    assert told.startswith(name) and str(path) in told
    if name in WITH_SPLIT_FILE:
        assert str(tmp_path / cls.dataset_dir / cls.split_file) in told


@pytest.mark.parametrize(
    "name, file, content",
    [
        ("StanfordCars", "devkit/cars_meta.mat", b"not MATLAB"),
        ("OxfordFlowers", "imagelabels.mat", b""),
        ("OxfordFlowers", "imagelabels.mat", {"other": [1]}),
        ("OxfordFlowers", "cat_to_name.json", b"{"),
        ("OxfordFlowers", "cat_to_name.json", b"[]"),
        ("OxfordFlowers", "cat_to_name.json", b'{"1": "a rose"}'),
        ("StanfordCars", "cars_test_annos_withlabels.mat", {"annotations": {"fname": "00001.jpg"}}),
        ("StanfordCars", "devkit/cars_meta.mat", {"class_names": ["one car 2000"]}),
        ("SUN397", "ClassName.txt", b"\xff\xfe\x00"),
    ],
)
def test_a_bad_annotation_file_is_named(name, file, content, lay, tmp_path):
    cls, _ = lay(name)
    path = tmp_path / cls.dataset_dir / file
    savemat(path, content) if isinstance(content, dict) else path.write_bytes(content)
    assert str(path) in message(lambda: build_dataset(cfg_of(tmp_path, name)))


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_class_with_too_few_images_to_split(count, lay, tmp_path):
    cls, _ = lay("DescribableTextures")
    for file in sorted((folder_of(cls, tmp_path) / "blotchy").glob("*.jpg"))[count:]:
        file.unlink()
    told = message(lambda: build_dataset(cfg_of(tmp_path, "DescribableTextures")))
    assert f'has {count} images of "blotchy"' in told and "need 4" in told
    assert not (tmp_path / cls.dataset_dir / cls.split_file).exists()


def test_a_class_with_too_few_images_for_val(lay, tmp_path):
    cls, _ = lay("OxfordPets")
    path = tmp_path / cls.dataset_dir / "annotations" / "trainval.txt"
    lines = path.read_text().splitlines()
    bengal = [line for line in lines if line.startswith("Bengal")]
    path.write_text("\n".join(line for line in lines if line not in bengal[2:]))
    told = message(lambda: build_dataset(cfg_of(tmp_path, "OxfordPets")))
    assert '2 images to train "bengal"' in told and "need 3" in told


@pytest.mark.parametrize("name", ["UCF101", "FGVCAircraft"])
def test_images_that_an_annotation_names_are_looked_for(name, lay, tmp_path):
    cls, split = lay(name)
    (folder_of(cls, tmp_path) / split["test"][0][0]).unlink()
    told = message(lambda: build_dataset(cfg_of(tmp_path, name)))
    assert told.startswith("1 of the ") and split["test"][0][0] in told
