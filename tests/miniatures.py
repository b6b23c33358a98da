"""A miniature of each benchmark's real layout on disk; shared by several test files."""

import io
import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat
from test_datasets import PARTS, rows

import datasets
from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import write_json
from datasets import catalogue
from datasets.catalogue import Size
from datasets.imagenet import ImageNet, ImageNetVariant
from datasets.imagenet_a import ImageNetA
from datasets.imagenet_r import ImageNetR
from orthcr.run.declarations import discover

discover(datasets)

_file = io.BytesIO()
Image.new("RGB", (8, 6), "teal").save(_file, "JPEG")
JPEG = _file.getvalue()


def put(path, content=JPEG):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def shuffled(rng, items):
    return rng.sample(list(items), len(items))


# ------------------------------------------------------------------ CoOp's rules, again and otherwise


def by_half(groups):
    """50/20/30 of {(label, class name): paths}, with the global generator."""
    state, split = random.getstate(), {part: [] for part in PARTS}
    random.seed(1)
    for (label, name), paths in groups.items():
        order = list(range(len(paths)))
        random.shuffle(order)
        a = round(len(paths) / 2)
        b = a + round(len(paths) / 5)
        for k, index in enumerate(order):
            split[PARTS[(k >= a) + (k >= b)]].append([paths[index], label, name])
    random.setstate(state)
    return split


def by_fifth(trainval, test):
    """Val gets the first fifth of each class of the shuffled trainval, with the global generator."""
    state, split = random.getstate(), {"train": [], "val": [], "test": test}
    random.seed(1)
    for label in dict.fromkeys(row[1] for row in trainval):
        order = [k for k, row in enumerate(trainval) if row[1] == label]
        random.shuffle(order)
        for k, index in enumerate(order):
            split["val" if k < round(len(order) / 5) else "train"].append(trainval[index])
    random.setstate(state)
    return split


# ------------------------------------------------------------------ miniatures: each returns the split it should give


def class_folders(folder, names, rng, file="{name}_{n}.jpg", least=4):
    """A folder of images for each of {folder name: class name}; returns {(label, class name): sorted paths}."""
    groups = {}
    for label, (name, classname) in enumerate(names.items()):
        numbers = rng.sample(range(1, 130), rng.randint(least, 12))
        paths = [f"{name}/" + file.format(name=name, n=n) for n in numbers]
        for path in paths:
            put(folder / path)
        put(folder / name / ".DS_Store", b"\0")
        groups[label, classname] = sorted(paths)
    put(folder / ".DS_Store", b"\0")
    return groups


def caltech101(root, rng):
    folder = root / "caltech-101" / "101_ObjectCategories"
    names = {
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
        "accordion": "accordion",
        "airplanes": "airplane",
        "yin_yang": "yin_yang",
    }
    put(folder / "BACKGROUND_Google" / "image_0001.jpg")
    put(folder / "BACKGROUND_Google" / "tmp", b"")
    put(folder / "Faces_easy" / "image_0001.jpg")
    return by_half(class_folders(folder, names, rng, "image_{n:04d}.jpg"))


def describable_textures(root, rng):
    put(root / "dtd" / "labels" / "train1.txt", "banded/banded_0002.jpg\n")
    put(root / "dtd" / "imdb" / "imdb.mat", b"")
    names = {name: name for name in ("banded", "blotchy", "polka-dotted", "zigzagged")}
    put(root / "dtd" / "images" / "waffled.txt", "no folder")
    put(root / "dtd" / "images" / "banded" / ".directory", "[Dolphin]")
    return by_half(class_folders(root / "dtd" / "images", names, rng, "{name}_{n:04d}.jpg"))


def eurosat(root, rng):
    names = {
        "AnnualCrop": "Annual Crop Land",
        "Forest": "Forest",
        "Highway": "Highway or Road",
        "River": "River",
        "SeaLake": "Sea or Lake",
    }
    return by_half(class_folders(root / "eurosat" / "2750", names, rng))


def food101(root, rng):
    folder = root / "food-101"
    for file in (
        "license_agreement.txt",
        "README.txt",
        "meta/classes.txt",
        "meta/train.txt",
        "images/apple_pie/Thumbs.db",
    ):
        put(folder / file, "text")
    names = {name: name for name in ("apple_pie", "baby_back_ribs", "waffles")}
    return by_half(class_folders(folder / "images", names, rng, "10{n}.jpg"))


def oxford_pets(root, rng):
    folder, breeds, lists = root / "oxford_pets", ("Abyssinian", "american_bulldog", "Bengal", "yorkshire_terrier"), {}
    for part, numbers in (("trainval", range(1, 100)), ("test", range(100, 200))):  # no image is in both
        images = [(f"{breed}_{n}", k) for k, breed in enumerate(breeds) for n in rng.sample(numbers, rng.randint(3, 9))]
        lines = [f"{image} {k + 1} {1 + (image[0].islower())} {rng.randint(1, 25)}" for image, k in images]
        put(folder / "annotations" / f"{part}.txt", "\n".join(lines) + "\n")
        lists[part] = [[f"{image}.jpg", k, breeds[k].lower()] for image, k in images]
        for image, _ in images:
            put(folder / "images" / f"{image}.jpg")
    put(folder / "images" / "Abyssinian_100.mat", b"")  # there are such
    put(folder / "annotations" / "list.txt", "#Image CLASS-ID SPECIES BREED ID\n")
    put(folder / "annotations" / "trimaps" / "._Abyssinian_1.png", b"")
    return by_fifth(lists["trainval"], lists["test"])


def stanford_cars(root, rng):
    folder = root / "stanford_cars"
    models = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
    names = ["2000 AM General Hummer SUV", "2012 Acura RL Sedan", "2012 Ram C/V Cargo Van Minivan"]
    class_names = np.empty((1, 3), object)
    class_names[0, :] = models
    (folder / "devkit").mkdir(parents=True)
    savemat(folder / "devkit" / "cars_meta.mat", {"class_names": class_names})
    put(folder / "devkit" / "README.txt", "text")
    lists = {}
    for part, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        labels = shuffled(rng, [k for k in range(3) for _ in range(rng.randint(3, 9))])
        structure = np.empty(
            (1, len(labels)),
            [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")],
        )
        for i, label in enumerate(labels):
            boxes = [np.uint16([[rng.randint(1, 999)]]) for _ in range(4)]
            structure[0, i] = (*boxes, np.uint8([[label + 1]]), f"{i + 1:05d}.jpg")
            put(folder / f"cars_{part}" / f"{i + 1:05d}.jpg")
        savemat(folder / file, {"annotations": structure})
        lists[part] = [[f"cars_{part}/{i + 1:05d}.jpg", label, names[label]] for i, label in enumerate(labels)]
    return by_fifth(lists["train"], lists["test"])


def oxford_flowers(root, rng):
    folder, names = root / "oxford_flowers", {2: "hard-leaved pocket orchid", 1: "pink primrose", 3: "canterbury bells"}
    labels = shuffled(rng, [k for k in names for _ in range(rng.randint(4, 12))])
    for i in range(len(labels)):
        put(folder / "jpg" / f"image_{i + 1:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.uint8([labels])})
    write_json({str(k): name for k, name in names.items()}, folder / "cat_to_name.json")
    return by_half(
        {
            (k - 1, names[k]): [f"image_{i:05d}.jpg" for i, label in enumerate(labels, 1) if label == k]
            for k in dict.fromkeys(labels)
        }
    )


def fgvc_aircraft(root, rng):
    folder, variants, split = root / "fgvc_aircraft", ["707-320", "Cessna 172", "F-16A/B", "F/A-18", "DC-10"], {}
    put(folder / "variants.txt", "\n".join(variants) + "\n")
    put(folder / "families.txt", "Boeing 707\n")
    put(folder / "images_box.txt", "0000001 1 2 3 4\n")
    for part in PARTS:
        chosen = shuffled(rng, [k for k in range(5) for _ in range(rng.randint(1, 6))])
        images = [f"{number:07d}" for number in rng.sample(range(10**6), len(chosen))]
        lines = [f"{image} {variants[k]}" for image, k in zip(images, chosen, strict=True)]
        put(folder / f"images_variant_{part}.txt", "\n".join(lines) + "\n")
        split[part] = [[f"{image}.jpg", k, variants[k]] for image, k in zip(images, chosen, strict=True)]
        for image in images:
            put(folder / "images" / f"{image}.jpg")
    return split


def sun397(root, rng):
    folder, lists = root / "sun397", {}
    scenes = {
        "/a/abbey": "abbey",
        "/c/church/indoor": "indoor church",
        "/c/church/outdoor": "outdoor church",
        "/t/theater/indoor_procenium": "indoor_procenium theater",
    }
    put(folder / "ClassName.txt", "".join(f"{scene}\n" for scene in scenes))
    for part in ("Training", "Testing"):
        paths = [
            (f"{scene}/sun_{rng.getrandbits(40):x}.jpg", k)
            for k, scene in enumerate(scenes)
            for _ in range(rng.randint(3, 8))
        ]
        put(folder / f"{part}_01.txt", "".join(f"{path}\n" for path, _ in paths))
        put(folder / f"{part}_02.txt", "")
        for path, _ in paths:
            put(folder / "SUN397" / path[1:])
        lists[part] = [[path[1:], k, list(scenes.values())[k]] for path, k in paths]
    return by_fifth(lists["Training"], lists["Testing"])


def ucf101(root, rng):
    folder, lists = root / "ucf101", {}
    actions = {
        "ApplyEyeMakeup": "Apply_Eye_Makeup",
        "CleanAndJerk": "Clean_And_Jerk",
        "HandstandPushups": "Handstand_Pushups",
        "YoYo": "Yo_Yo",
    }
    text = folder / "ucfTrainTestlist"
    put(text / "classInd.txt", "".join(f"{k} {action}\r\n" for k, action in enumerate(actions, 1)))
    for part, groups in (("train", range(8, 99)), ("test", range(8))):  # no video is in both
        videos = [
            (action, k, f"v_{action.replace('dstandP', 'dStandP')}_g{n:02d}_c01")
            for k, action in enumerate(actions)
            for n in rng.sample(groups, rng.randint(3, 8))
        ]
        numbered = part == "train"
        put(text / f"{part}list01.txt", "".join(f"{a}/{v}.avi{f' {k + 1}' * numbered}\n" for a, k, v in videos))
        put(text / f"{part}list02.txt", "")
        lists[part] = [[f"{actions[a]}/{v}.jpg", k, actions[a]] for a, k, v in videos]
        for path, *_ in lists[part]:
            put(folder / "UCF-101-midframes" / path)
    return by_fifth(lists["train"], lists["test"])


WNIDS = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n02012849": "crane",
    "n02795169": "barrel",
    "n03126707": "crane",
    "n03710637": "maillot",
    "n03710721": "tank suit",
    "n04399382": "teddy bear",
    "n07753592": "banana",
    "n13044778": "earth star",
    "n15075141": "toilet paper",
}


def classnames_txt(folder, rng):
    put(folder / "classnames.txt", "".join(f"{wnid} {WNIDS[wnid]}\n" for wnid in shuffled(rng, WNIDS)))


def as_rows(groups):
    return [[path, label, name] for (label, name), paths in groups.items() for path in paths]


def imagenet(root, rng):
    images, split = root / "imagenet" / "images", {"val": []}
    classnames_txt(root / "imagenet", rng)
    for part, folder, file in (("train", "train", "{name}_{n}.JPEG"), ("test", "val", "ILSVRC2012_val_{n:08d}.JPEG")):
        found = as_rows(class_folders(images / folder, WNIDS, rng, file, least=1))
        split[part] = [[f"{folder}/{path}", label, name] for path, label, name in found]
    return split


def variant(folder, images, names, file):
    def lay(root, rng):
        # with a list of its own, as in CoOp, or beside ImageNet's
        classnames_txt(root / rng.choice([folder, "imagenet"]), rng)
        put(root / folder / images / "README.txt", "text")
        groups = class_folders(root / folder / images, names, rng, file, least=1)
        return {"train": [], "val": [], "test": as_rows(groups)}

    return lay


EVERY_FOURTH = dict(list(WNIDS.items())[1::4])
MINIATURES = {
    "Caltech101": caltech101,
    "OxfordPets": oxford_pets,
    "StanfordCars": stanford_cars,
    "OxfordFlowers": oxford_flowers,
    "Food101": food101,
    "FGVCAircraft": fgvc_aircraft,
    "SUN397": sun397,
    "DescribableTextures": describable_textures,
    "EuroSAT": eurosat,
    "UCF101": ucf101,
    "ImageNet": imagenet,
    "ImageNetV2": variant(
        "imagenetv2",
        "imagenetv2-matched-frequency-format-val",
        {str(k): name for k, name in enumerate(WNIDS.values())},
        "{n:x}.jpeg",
    ),
    "ImageNetSketch": variant("imagenet-sketch", "images", WNIDS, "sketch_{n}.JPEG"),
    "ImageNetA": variant("imagenet-adversarial", "imagenet-a", EVERY_FOURTH, "0.0{n:03d}_fox squirrel _ cliff_0.9.jpg"),
    "ImageNetR": variant("imagenet-rendition", "imagenet-r", EVERY_FOURTH, "art_{n}.jpg"),
}
WITH_SPLIT_FILE = [n for n in MINIATURES if n not in ("FGVCAircraft",) and not n.startswith("ImageNet")]
LISTED = ["ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"]
TEST_ONLY = LISTED[1:]


def size_of(split):
    classes = {label for part in PARTS for _, label, _ in split[part]}
    return Size(len(classes), *(len(split[part]) or None for part in PARTS))


def change_row(monkeypatch, name, **changes):
    """Replaces fields of a benchmark's row in the table."""
    rows = tuple(replace(b, **changes) if b.name == name else b for b in catalogue.BENCHMARKS)
    monkeypatch.setattr(catalogue, "BENCHMARKS", rows)


@pytest.fixture
def lay(tmp_path, monkeypatch):
    """lay(name): its miniature in tmp_path, which then has the expected size; returns its class and split."""
    monkeypatch.setattr(ImageNet, "n_classes", len(WNIDS))
    monkeypatch.setattr(ImageNetVariant, "n_classes", len(WNIDS))
    for cls in (ImageNetA, ImageNetR):
        monkeypatch.setattr(cls, "n_classes", len(EVERY_FOURTH))

    def make(name):
        seed = random.SystemRandom().getrandbits(32)
        print(f"the miniature of {name} is that of {seed}")
        split = MINIATURES[name](tmp_path, random.Random(seed))
        change_row(monkeypatch, name, size=size_of(split))
        return DATASET_REGISTRY.get(name), split

    return make


def folder_of(cls, root):
    return root / cls.dataset_dir / cls.image_dir


def as_split(data, cls, root):
    """What a built data set holds, as in a split file."""
    return {
        part: rows(items, folder_of(cls, root))
        for part, items in zip(PARTS, (data.train_x, data.val, data.test), strict=True)
    }


def all_of(cls, split):
    """The split that a data set with all its images holds: one for testing only has its test images as train too."""
    return {**split, "train": split["test"]} if cls.test_only else split
