"""Split files, few-shot selections against the published ones, base and new classes, the cache of selections."""

import multiprocessing
import os
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from dassl.data.datasets import DatasetBase, build_dataset
from dassl.utils import read_json, write_json
from datasets import base
from datasets.caltech101 import Caltech101
from datasets.dtd import DescribableTextures
from datasets.oxford_pets import OxfordPets
from datasets.shapes import Shapes
from orthcr.run.config import setup_cfg
from orthcr.run.flags import parse

REPO = Path(__file__).resolve().parents[1]
REFERENCE = REPO.parent / "shared" / "reference"
PARTS = ("train", "val", "test")
PUBLISHED = {"caltech101": Caltech101, "dtd": DescribableTextures, "oxford_pets": OxfordPets}


def cfg_of(root, dataset="OxfordPets", shots=-1, seed=1, classes="all"):
    argv = ["--root", str(root), "--trainer", "CoOp", "--seed", str(seed), "DATASET.NAME", dataset, "VERBOSE", "False"]
    return setup_cfg(parse([*argv, "DATASET.NUM_SHOTS", str(shots), "DATASET.SUBSAMPLE_CLASSES", classes]))


def rows(items, image_dir):
    return [[str(Path(i.impath).relative_to(image_dir)), i.label, i.classname] for i in items]


def lay(folder, split, image_dir="images"):
    """Empty files where the images of a split should be."""
    paths = {folder / image_dir / row[0] for part in split.values() for row in part}
    for parent in {path.parent for path in paths}:
        parent.mkdir(parents=True, exist_ok=True)
    for path in paths:
        path.touch()


def made_up(n_classes=7, seed=0):
    """A split in which classes come mixed and not in the order of their labels; small classes among them."""
    rng = random.Random(seed)
    split = {}
    for part, most in (("train", 30), ("val", 6), ("test", 5)):
        counts = [rng.randint(3 if part == "train" else 1, most) for _ in range(n_classes)]
        split[part] = [[f"{part}/c{k}/{i}.jpg", k, f"class_{k}"] for k, n in enumerate(counts) for i in range(n)]
        rng.shuffle(split[part])
    return split


def write_split(root, split):
    folder = root / "oxford_pets"
    lay(folder, split)
    write_json(split, folder / OxfordPets.split_file)
    return folder


@pytest.fixture
def pets(tmp_path):
    """(data root, folder, split) of a made-up OxfordPets."""
    split = made_up()
    return tmp_path, write_split(tmp_path, split), split


def coop_selection(split, shots, seed):
    """Again, and otherwise: the published procedure, with the global generator."""
    state = random.getstate()
    random.seed(seed)
    chosen = {}
    for part, n in (("train", shots), ("val", min(shots, 4))):
        by_class = {}
        for row in split[part]:
            by_class.setdefault(row[1], []).append(row)
        chosen[part] = [
            row
            for of_class in by_class.values()
            for row in (random.sample(of_class, n) if len(of_class) >= n else of_class)
        ]
    random.setstate(state)
    return chosen


# ------------------------------------------------------------------ selections


@pytest.fixture(scope="module")
def published_root(tmp_path_factory):
    if not REFERENCE.is_dir():
        pytest.skip("the published split files are not here")
    root = tmp_path_factory.mktemp("published")
    for name, cls in PUBLISHED.items():
        folder = root / cls.dataset_dir
        lay(folder, read_json(REFERENCE / name / cls.split_file), cls.image_dir)
        shutil.copyfile(REFERENCE / name / cls.split_file, folder / cls.split_file)
    return root


@pytest.mark.parametrize("name", PUBLISHED)
def test_selections_are_the_published_ones(name, published_root):
    cls = PUBLISHED[name]
    files = sorted((REFERENCE / name).glob("shot_*-seed_*.json"))
    assert len(files) >= 9
    for file in files:
        shots, seed = map(int, re.findall(r"\d+", file.stem))
        published = read_json(file)
        for attempt in ("selected", "kept"):
            data = build_dataset(cfg_of(published_root, cls.__name__, shots, seed))
            image_dir = published_root / cls.dataset_dir / cls.image_dir
            assert rows(data.train_x, image_dir) == published["train"], (file.name, attempt)
            assert rows(data.val, image_dir) == published["val"], (file.name, attempt)
        assert (published_root / cls.dataset_dir / "split_fewshot" / file.name).exists()
    split = read_json(REFERENCE / name / cls.split_file)
    data = build_dataset(cfg_of(published_root, cls.__name__))
    for items, part in ((data.train_x, "train"), (data.val, "val"), (data.test, "test")):
        assert rows(items, image_dir) == split[part]


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_selections_follow_the_published_procedure(shots, seed, pets):
    root, folder, split = pets
    wanted = coop_selection(split, shots, seed)
    random.seed(99)
    data = build_dataset(cfg_of(root, shots=shots, seed=seed))
    assert rows(data.train_x, folder / "images") == wanted["train"]
    assert rows(data.val, folder / "images") == wanted["val"]
    assert rows(data.test, folder / "images") == split["test"]
    assert max(Counter(i.label for i in data.val).values()) <= 4


def test_a_split_is_read_whole_without_shots(pets):
    root, folder, split = pets
    data = build_dataset(cfg_of(root))
    for items, part in ((data.train_x, "train"), (data.val, "val"), (data.test, "test")):
        assert rows(items, folder / "images") == split[part]
    assert data.num_classes == 7 and data.classnames == [f"class_{k}" for k in range(7)]
    assert not (folder / "split_fewshot").exists()


@pytest.mark.parametrize("n_classes", [2, 5, 6, 7])
def test_base_and_new_halves(n_classes, tmp_path):
    split = made_up(n_classes)
    folder = write_split(tmp_path, split)
    half = -(-n_classes // 2)
    for seed in (1, 2, 3):
        whole = coop_selection(split, 2, seed)
        for classes, labels in (("base", range(half)), ("new", range(half, n_classes))):
            data = build_dataset(cfg_of(tmp_path, shots=2, seed=seed, classes=classes))
            assert data.num_classes == len(labels)
            assert data.classnames == [f"class_{k}" for k in labels]
            for items, part in ((data.train_x, whole["train"]), (data.val, whole["val"]), (data.test, split["test"])):
                assert rows(items, folder / "images") == [[p, k - labels[0], c] for p, k, c in part if k in labels]


def test_labels_with_gaps_are_halved_by_number_of_classes():
    items = [base.Datum(impath=f"{k}", label=k, classname=f"c{k}") for k in (9, 2, 40, 7, 5)]
    (chosen,) = base.subsample_classes(items, subsample="base")
    assert [(i.impath, i.label) for i in chosen] == [("2", 0), ("7", 2), ("5", 1)]
    (chosen,) = base.subsample_classes(items, subsample="new")
    assert [(i.impath, i.label) for i in chosen] == [("9", 0), ("40", 1)]


def test_unseeded_selections_differ_and_are_not_kept(tmp_path):
    rows_of = {part: [[f"{part}/{k}/{i}.jpg", k, f"class_{k}"] for k in range(5) for i in range(40)] for part in PARTS}
    folder = write_split(tmp_path, rows_of)
    random.seed(1)
    a = build_dataset(cfg_of(tmp_path, shots=16, seed=-1)).train_x
    random.seed(1)
    b = build_dataset(cfg_of(tmp_path, shots=16, seed=-1)).train_x
    assert a != b and [i.label for i in a] == [i.label for i in b] == [k for k in range(5) for _ in range(16)]
    assert not (folder / "split_fewshot").exists()


def test_a_data_set_written_for_coop_runs(tmp_path):
    """Its own split file, made by the helpers that CoOp's files borrow from each other; then the halves."""
    rng = random.Random()
    for name in ("cat", "dog", "eel"):
        (tmp_path / "mine" / "images" / name).mkdir(parents=True)
        for k in range(rng.randint(5, 12)):
            (tmp_path / "mine" / "images" / name / f"{k}.jpg").touch()

    class Mine(DatasetBase):
        dataset_dir = "mine"

        def __init__(self, cfg):
            image_dir = os.path.join(cfg.DATASET.ROOT, self.dataset_dir, "images")
            split_path = os.path.join(cfg.DATASET.ROOT, self.dataset_dir, "split_mine.json")
            if os.path.exists(split_path):
                train, val, test = OxfordPets.read_split(split_path, image_dir)
            else:
                train, val, test = DescribableTextures.read_and_split_data(image_dir, new_cnames={"eel": "an eel"})
                OxfordPets.save_split(train, val, test, split_path, image_dir)
            train = self.generate_fewshot_dataset(train, num_shots=cfg.DATASET.NUM_SHOTS)
            train, val, test = OxfordPets.subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
            super().__init__(train_x=train, val=val, test=test)

    for classes, names in (("all", ["cat", "dog", "an eel"]), ("base", ["cat", "dog"]), ("new", ["an eel"])):
        data = Mine(cfg_of(tmp_path, "OxfordPets", shots=2, classes=classes))
        assert data.classnames == names and len(data.train_x) == 2 * len(names)
        assert sorted({item.label for item in data.test}) == list(range(len(names)))
    kept = read_json(tmp_path / "mine" / "split_mine.json")
    assert sum(map(len, kept.values())) == len(list(tmp_path.rglob("*.jpg")))


# ------------------------------------------------------------------ the cache


def cache_of(folder, shots=2, seed=1):
    return folder / "split_fewshot" / f"shot_{shots}-seed_{seed}.json"


def test_the_cache_is_plain_json_with_relative_paths_and_is_used(pets):
    root, folder, split = pets
    build_dataset(cfg_of(root, shots=2))
    kept = read_json(cache_of(folder))
    assert kept == {"split_sha256": base.file_hash(str(folder / OxfordPets.split_file)), **coop_selection(split, 2, 1)}

    kept["train"].reverse()  # so that reading can be told from selecting again
    write_json(kept, cache_of(folder))
    elsewhere = root / "moved"
    elsewhere.mkdir()
    folder.rename(elsewhere / "oxford_pets")
    data = build_dataset(cfg_of(elsewhere, shots=2))
    assert rows(data.train_x, elsewhere / "oxford_pets" / "images") == kept["train"]


def test_a_changed_split_file_is_selected_from_again(pets):
    root, folder, _ = pets
    build_dataset(cfg_of(root, shots=2))
    other = made_up(seed=5)
    write_split(root, other)
    data = build_dataset(cfg_of(root, shots=2))
    assert rows(data.train_x, folder / "images") == coop_selection(other, 2, 1)["train"]
    assert read_json(cache_of(folder))["split_sha256"] == base.file_hash(str(folder / OxfordPets.split_file))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        '{"split_sha256": "0"}',
        '{"train": []}',
        '{"split_sha256": "HASH"}',
        b"\x80\x04\xff",
        '{"split_sha256": "HASH", "train": [["a.jpg"]], "val": []}',
        "[]",
        "null",
        '{"split_sha256": "HASH", "train": 5, "val": []}',
    ],
)
def test_a_corrupt_cache_is_made_again(content, pets):
    root, folder, split = pets
    cache = cache_of(folder)
    cache.parent.mkdir()
    digest = base.file_hash(str(folder / OxfordPets.split_file))
    cache.write_bytes(content if isinstance(content, bytes) else content.replace("HASH", digest).encode())
    data = build_dataset(cfg_of(root, shots=2))
    assert rows(data.train_x, folder / "images") == coop_selection(split, 2, 1)["train"]
    assert read_json(cache)["train"] == coop_selection(split, 2, 1)["train"]


def test_a_read_only_folder_still_works(pets, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(base, "write_json", refuse)
    root, folder, split = pets
    data = build_dataset(cfg_of(root, shots=2))
    assert rows(data.train_x, folder / "images") == coop_selection(split, 2, 1)["train"]
    assert "is not saved: [Errno 30]" in capsys.readouterr().out


# ------------------------------------------------------------------ two processes at once


def build_at_once(cfg, barrier, queue):
    barrier.wait(60)
    try:
        data = build_dataset(cfg)
        queue.put([(i.impath, i.label) for items in (data.train_x, data.val, data.test) for i in items])
    except BaseException as error:
        queue.put(repr(error))


def two_at_once(cfg):
    context = multiprocessing.get_context("fork" if "fork" in multiprocessing.get_all_start_methods() else None)
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=build_at_once, args=(cfg, barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    return results


def test_two_runs_at_once_select_the_same(pets):
    root, folder, split = pets
    for seed in range(5):
        a, b = two_at_once(cfg_of(root, shots=2, seed=seed + 1))
        assert a == b and isinstance(a, list), (a, b)
        kept = read_json(cache_of(folder, seed=seed + 1))
        assert {k: kept[k] for k in ("train", "val")} == coop_selection(split, 2, seed + 1)
    assert not list((folder / "split_fewshot").glob(".*")), "no half-written file is left"


def test_two_runs_at_once_draw_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(Shapes, "images", {"train": 2, "val": 1, "test": 1})
    a, b = two_at_once(cfg_of(tmp_path, "Shapes", shots=1))
    assert a == b and isinstance(a, list), (a, b)
    assert len(list((tmp_path / "shapes").rglob("*.png"))) == 40 * 4
    assert [p.name for p in tmp_path.iterdir()] == ["shapes"], "nothing half-drawn is left"
    for path, _ in a[::10]:
        with Image.open(path) as image:
            image.load()


# ------------------------------------------------------------------ faults


def message(error):
    with pytest.raises((OSError, ValueError)) as caught:
        error()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"train": [], "val": []}',
        '{"train": [[1]], "val": [], "test": []}',
        '{"train": 5, "val": [], "test": []}',
        b"\xff\xfe\x00",
    ],
)
def test_a_split_file_that_is_none(content, pets):
    root, folder, _ = pets
    file = folder / OxfordPets.split_file
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = message(lambda: build_dataset(cfg_of(root)))
    assert said.startswith(f"{file} is no split file") and '"train": [[path, label, class name]' in said


def test_what_is_not_there_is_named(pets, tmp_path):
    root, folder, split = pets
    gone = sorted({row[0] for row in split["test"]})[:5]
    for path in gone:
        (folder / "images" / path).unlink()
    said = message(lambda: build_dataset(cfg_of(root)))
    assert said.startswith(f"5 of the {sum(map(len, split.values()))} images")
    assert sum(str(folder / "images" / path) in said for path in gone) == 3 and OxfordPets.split_file in said

    (folder / OxfordPets.split_file).unlink()
    assert str(folder / OxfordPets.split_file) in message(lambda: build_dataset(cfg_of(root)))
    for missing, named in ((tmp_path / "nowhere", tmp_path / "nowhere"), (folder, folder / "oxford_pets")):
        said = message(lambda missing=missing: build_dataset(cfg_of(missing)))
        assert f"OxfordPets needs the folder {named}," in said and "--root" in said


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda split: split["train"].__setitem__(slice(None), [r for r in split["train"] if r[1] != 2]),
            "labels 0, 1, 3",
        ),
        (lambda split: split["test"][-1].__setitem__(2, "other"), '"other" in'),
        (lambda split: split["test"][-1].__setitem__(1, 77), "has no training image"),
    ],
)
def test_labels_that_do_not_fit_are_refused(change, told, tmp_path):
    """They would name, or count, the wrong classes."""
    split = made_up(5)
    change(split)
    write_split(tmp_path, split)
    assert told in message(lambda: build_dataset(cfg_of(tmp_path)))


@pytest.mark.parametrize("classes", ["old", "", "Base"])
def test_unknown_half(classes):
    with pytest.raises(ValueError, match="all, base, new"):
        base.subsample_classes([], subsample=classes)


def test_nothing_is_pickled():
    sources = [
        REPO / "train.py",
        *(p for d in ("dassl", "datasets", "orthcr", "trainers") for p in (REPO / d).rglob("*.py")),
    ]
    assert len(sources) > 20
    for path in sources:
        text = path.read_text(encoding="utf-8")
        found = re.search(r"^\s*(import|from)\s[^#\n]*\b(c?pickle|dill|cloudpickle|joblib|shelve)\b", text, re.M)
        assert not found, f"{path}: {found}"
        for call in re.findall(r"\btorch\.load\((?:[^()]|\([^()]*\))*\)", text):
            assert "weights_only=True" in call, f"{path}: {call}"
