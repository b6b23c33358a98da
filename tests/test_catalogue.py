"""The table of the data sets: complete, true of the classes and the YAML files, and found by any name."""

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml
from miniatures import MINIATURES, TEST_ONLY, size_of
from test_datasets import PUBLISHED, REFERENCE

import datasets
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import read_json
from datasets import catalogue
from datasets.base import DrawnDataset, SplitDataset
from datasets.catalogue import BENCHMARKS, downloads, find, get, in_order, short, source_of, stems, targets, variants
from orthcr.run.declarations import discover

REPO = Path(__file__).resolve().parents[1]
discover(datasets)
DOWNLOADS = downloads(["all"])

# CoOp's DATASETS.md, folder by folder
COOP = {
    "caltech-101": "101_ObjectCategories split_zhou_Caltech101.json",
    "oxford_pets": "images annotations split_zhou_OxfordPets.json",
    "stanford_cars": "cars_test cars_test_annos_withlabels.mat cars_train devkit split_zhou_StanfordCars.json",
    "oxford_flowers": "cat_to_name.json imagelabels.mat jpg split_zhou_OxfordFlowers.json",
    "food-101": "images license_agreement.txt meta README.txt split_zhou_Food101.json",
    "fgvc_aircraft": "images variants.txt images_variant_train.txt images_variant_val.txt images_variant_test.txt",
    "sun397": "SUN397 split_zhou_SUN397.json",
    "dtd": "images imdb labels split_zhou_DescribableTextures.json",
    "eurosat": "2750 split_zhou_EuroSAT.json",
    "ucf101": "UCF-101-midframes split_zhou_UCF101.json",
    "imagenet": "images/train images/val classnames.txt",
    "imagenetv2": "imagenetv2-matched-frequency-format-val classnames.txt",
    "imagenet-sketch": "images classnames.txt",
    "imagenet-adversarial": "imagenet-a classnames.txt",
    "imagenet-rendition": "imagenet-r classnames.txt",
}


def names(found):
    return [benchmark.name for benchmark in found]


# ------------------------------------------------------------------ what it says


def test_every_data_set_has_a_row_a_config_and_a_class():
    files = (REPO / "configs" / "datasets").glob("*.yaml")
    configs = {path.stem: yaml.safe_load(path.read_text())["DATASET"]["NAME"] for path in files}
    assert {b.stem: b.name for b in BENCHMARKS} == configs == stems() and len(configs) == len(BENCHMARKS) == 25
    own = [DATASET_REGISTRY.get(n) for n in DATASET_REGISTRY.registered_names()]
    own = [cls for cls in own if issubclass(cls, SplitDataset) and cls.__module__.startswith("datasets.")]
    assert {cls.__name__ for cls in own} == {*configs.values(), "Images"}
    assert set(names(DOWNLOADS)) == MINIATURES.keys() and len(DOWNLOADS) == 15


@pytest.mark.parametrize("b", BENCHMARKS, ids=lambda b: b.name)
def test_a_row_is_true_of_its_class(b):
    cls = DATASET_REGISTRY.get(b.name)
    assert cls.dataset_dir == b.folder
    assert b.embedded == issubclass(cls, DrawnDataset) == (not b.items)
    assert cls.test_only == bool(b.variant_of)
    if not b.embedded:
        assert cls.__module__ == f"datasets.{b.stem}"
        assert getattr(cls, "n_classes", b.size.classes) == b.size.classes
        assert not cls.image_dir or any((path + "/").startswith(cls.image_dir + "/") for path in b.layout)
        assert not cls.split_file.startswith("split_zhou") or cls.split_file in b.layout


def test_layouts_are_coops():
    assert {b.folder: set(b.layout) for b in DOWNLOADS} == {
        folder: set(paths.split()) for folder, paths in COOP.items()
    }


@pytest.mark.parametrize("b", DOWNLOADS, ids=lambda b: b.name)
def test_items(b):
    for item in b.items:
        assert sum(map(bool, (item.url, item.drive, item.by_hand))) == 1 and item.gives
        assert bool(item.archive) == bool(item.take) and (item.archive or item.by_hand or len(item.gives) == 1)
        if item.url:
            address = urlsplit(item.url)
            assert address.scheme == "https" and "." in address.netloc and " " not in item.url and not address.query
        assert not item.drive or re.fullmatch(r"[\w-]{33}", item.drive)
        assert item.checksum is None or re.fullmatch(r"[0-9a-f]{32}|[0-9a-f]{64}", item.checksum)
        places = set(item.take.values())
        assert not item.take or "." in places or places >= set(item.gives)
        assert not item.megabytes or item.megabytes > 10


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_published_splits(name):
    cls = PUBLISHED[name]
    path = REFERENCE / name / cls.split_file
    if not path.exists():
        pytest.skip("the published split files are not here")
    assert get(cls.__name__).size == size_of(read_json(path))


# ------------------------------------------------------------------ looking up


def test_any_name_is_found():
    for b in BENCHMARKS:
        for word in (b.name, b.name.upper(), b.stem, b.stem.replace("_", "-"), b.folder):
            assert find(word) is b
    for word, nearest in (("oxfrd_flowers", "OxfordFlowers"), ("eurosta", "EuroSAT"), ("", "")):
        with pytest.raises(ValueError, match=f'no data set "{word}".*mean "{nearest}') as error:
            find(word)
        assert "\n" not in str(error.value)
    assert get("dtd") is None and get("DescribableTextures").stem == "dtd"


def test_what_can_be_downloaded():
    assert names(downloads(["dtd", "ALL", "dtd"])) == [
        "DescribableTextures",
        *names(DOWNLOADS)[:8],
        *names(DOWNLOADS)[9:],
    ]
    assert downloads([]) == []
    with pytest.raises(ValueError, match="ShapesFog is embedded"):
        downloads(["dtd", "shapes-fog"])


def test_protocols_targets_and_variants():
    assert names(variants("ImageNet")) == TEST_ONLY == [f"ImageNet{v}" for v in ("V2", "Sketch", "A", "R")]
    assert names(variants("Shapes")) == [f"Shapes{v}" for v in ("Fog", "Night", "Neon", "Scribble")]
    assert len(targets("ImageNet")) == 10 and not {"ImageNet", *TEST_ONLY} & set(names(targets("ImageNet")))
    assert names(targets("Shapes")) == ["Colours", "Compositions", "Digits", "Outlines", "Patterns"]
    assert variants("Digits") == targets("Digits") == variants("Unknown") == targets("Unknown") == []
    assert all(source_of(b) == b.variant_of for b in BENCHMARKS if b.variant_of)


def test_order_and_short_names():
    unknown = ["Zebra", "Aardvark"]
    shuffled = ["Shapes", *unknown, "UCF101", "Digits", "ImageNetV2", "Caltech101", "Caltech101", "ImageNet"]
    ordered = ["ImageNet", "Caltech101", "UCF101", "ImageNetV2", "Digits", "Shapes", "Aardvark", "Zebra"]
    assert in_order(shuffled) == ordered
    assert [
        short(name) for name in ("DescribableTextures", "ImageNetR", "ShapesFog", "Zebra")
    ] == "DTD -R Fog Zebra".split()


def test_a_users_own_yaml_is_known(tmp_path, monkeypatch):
    (tmp_path / "birds.yaml").write_text("DATASET:\n  NAME: MyBirds\n")
    monkeypatch.setattr(catalogue, "CONFIGS", tmp_path)
    stems.cache_clear()
    try:
        assert stems() == {b.stem: b.name for b in BENCHMARKS} | {"birds": "MyBirds"}
    finally:
        stems.cache_clear()


def test_the_table_needs_nothing_but_python():
    code = "import sys, datasets.catalogue as b; b.find('dtd'); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    loaded = set(re.findall(r"'(\w+)", done.stdout))
    assert "datasets" in loaded and not loaded & {"torch", "dassl", "yaml", "numpy"}
