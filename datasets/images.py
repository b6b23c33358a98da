"""A user's own images, for `train.py --images`: no code, no split file.

photos/cat/1.jpg                     one folder a class
photos/train/cat/1.jpg               train/, test/ and, if wanted, val/ with such folders
photos.csv, photos.json              path, label[, split]; paths are relative to the file
"""

import csv
import io
import json
import os
import os.path as osp
import random
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import get_most_similar_str_to_a_from_b, read_json, write_json

from .base import PARTS, SplitDataset, Splits, read_split

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
    ".ppm",
    ".heic",
    ".heif",
    ".avif",
)


class Row(NamedTuple):
    path: str  # absolute
    classname: str
    split: str  # train, val, test, or "" if none was said


@DATASET_REGISTRY.register()
class Images(SplitDataset):
    """The images of `DATASET.IMAGES`, a folder, CSV or JSON file.

    Where they come without a split, half of every class is for training, a fifth for validation, the rest for test,
    shuffled by `SEED`; of few images the training gets the first. The split is kept as `split.json` in the output
    directory, in CoOp's format, so that a run goes on with it, and is evaluated on it, whatever is added meanwhile.
    With `ALL_TEST` nothing is divided: all that come without a split are for test.

    Raises:
        FileNotFoundError: nothing at `DATASET.IMAGES`, or no image in it.
        ValueError: fewer than two classes, a class without training image, images that cannot be read.
    """

    def __init__(self, cfg):
        self.cfg = cfg
        self.kept = osp.join(cfg.OUTPUT_DIR, "split.json")
        super().__init__(cfg)
        for split, items in (("test", self.test), ("val", self.val)):
            without = set(self.lab2cname) - {item.label for item in items}
            if items and without:
                names = ", ".join(sorted(self.lab2cname[label] for label in without))
                print(f"{len(without)} of {self.num_classes} classes have no {split} image: {names}")
        prompts = Counter(name.replace("_", " ").lower() for name in self.classnames)
        for name in (name for name, count in prompts.items() if count > 1):
            print(f'several classes read as "{name}" to CLIP, which cannot tell them apart')

    advice = "put them back, or take another --output-dir"

    def source(self) -> str:
        return self.kept

    def read_splits(self, keep: bool = True) -> Splits:
        if self.cfg.DATASET.ALL_TEST:
            return self.read_test()
        rows = find_images(self.cfg.DATASET.IMAGES)
        if osp.exists(self.kept) and osp.exists(osp.join(self.cfg.OUTPUT_DIR, "config.yaml")):
            splits = read_split(self.kept, "")
            added = {row.path for row in rows} - {item.impath for part in splits for item in part}
            print(f"Going on with the split of {self.kept}")
            if added:
                print(f"{len(added):,} images that are not in it play no part: take another --output-dir for them")
            return splits
        write_json(as_split(divide(self.readable(rows), self.cfg.SEED)), self.kept)
        return read_split(self.kept, "")

    def read_test(self) -> Splits:
        """All that is not said to be for training or val, among the model's classes if these are some of them."""
        rows = find_images(self.cfg.DATASET.IMAGES)
        names = sorted({row.classname for row in rows})
        rows = self.readable([row for row in rows if row.split in ("", "test")])
        if not rows:
            raise ValueError(f"{self.cfg.DATASET.IMAGES} has no test images: there is nothing to evaluate")
        known = list(self.cfg.DATASET.CLASSES)
        if known and set(names) <= set(known):
            names = known
        elif known:
            print(f"Not all of these classes were trained: the {len(names)} of the images alone are told apart")
        check_classes(names)
        test = [Datum(row.path, names.index(row.classname), classname=row.classname) for row in rows]
        return [Datum(rows[0].path, label, classname=name) for label, name in enumerate(names)], [], test

    def few_shot(self, train, val, shots, seed):
        return self.sample(train, val, shots, random.Random(seed if seed >= 0 else None))  # kept nowhere but in OUT

    def readable(self, rows: list[Row]) -> list[Row]:
        problems = unreadable([row.path for row in rows])
        if not problems:
            return rows
        for path, reason in list(problems.items())[:20]:
            print(f"  {path}: {reason}")
        if len(problems) > 20:
            print(f"  ... and {len(problems) - 20:,} more")
        told = f"{len(problems):,} of {len(rows):,} images cannot be read, see above"
        if not self.cfg.DATASET.SKIP_UNREADABLE:
            raise ValueError(f"{told}: replace or remove them, or leave them out with --skip-unreadable")
        print(f"{told}; they are left out")
        return [row for row in rows if row.path not in problems]


# ------------------------------------------------------------------ finding them


def find_images(source: str) -> list[Row]:
    """The images of a folder, a CSV or a JSON file, sorted by class and path."""
    source = osp.abspath(osp.expanduser(source))
    if osp.isdir(source):
        rows = from_folders(source)
    elif not osp.exists(source):
        raise FileNotFoundError(
            f"there is no {source}: give --images a folder with one folder a class, a CSV or a JSON"
        )
    elif source.lower().endswith(".csv"):
        rows = from_csv(source)
    elif source.lower().endswith(".json"):
        rows = from_json(source)
    else:
        raise ValueError(f"{source} is neither a folder nor a .csv or .json file of path, label[, split]")
    if not rows:
        raise FileNotFoundError(
            f"{source} has no images: it should have one folder a class with {', '.join(SUFFIXES[:5])}"
        )
    odd = next((row.path for row in rows if is_undecoded(row.path)), None)
    if odd:
        raise ValueError(f"{source} has names that are not in UTF-8, as {ascii(odd)}: rename them (convmv does)")
    twice = [path for path, count in Counter(osp.realpath(row.path) for row in rows).items() if count > 1]
    if twice:
        raise ValueError(f"{source} has {len(twice)} images more than once, first {twice[0]}: name, or link, each once")
    return sorted(rows, key=lambda row: (row.classname, row.path))


def from_folders(source: str) -> list[Row]:
    """One folder a class, or such folders within train/, val/ and test/."""
    folders = {name: osp.join(source, name) for name in visible(source) if osp.isdir(osp.join(source, name))}
    loose = [name for name in visible(source) if name not in folders and is_image(name)]
    parts = {part_of(name): path for name, path in folders.items() if part_of(name) and holds_folders(path)}
    if "train" in parts or (parts and len(parts) == len(folders)):
        others = sorted(folders.keys() - {osp.basename(path) for path in parts.values()})
        if others:
            raise ValueError(
                f"{source} has train/ with class folders, but also {', '.join(others)}, which is no val/ or test/ with "
                f"class folders: move it away"
            )
        return [row._replace(split=part) for part, path in parts.items() for row in from_folders(path)]
    if loose:
        print(f"{len(loose):,} images in {source} are in no class folder and are left out, first {loose[0]}")
    rows, empty = [], []
    for name, folder in tqdm(folders.items(), "looking for images", unit="folder", disable=None, delay=2):
        images, others = images_in(folder)
        if not images:
            empty.append(name)
        elif others:
            print(f"{len(others):,} files of {folder} are no images and are left out, first {others[0]}")
        rows += [Row(path, normal(name), "") for path in images]
    if empty and rows:
        raise ValueError(f"{source} has class folders without images: {', '.join(sorted(empty))}: fill or remove them")
    return rows


def from_csv(source: str) -> list[Row]:
    try:
        with open(source, encoding="utf-8-sig", newline="") as f:
            text = f.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not in UTF-8 ({error.reason}): save it as CSV UTF-8") from error
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
    if not {"path", "label"} <= set(reader.fieldnames) or len(set(reader.fieldnames)) < len(reader.fieldnames):
        raise ValueError(
            f'{source} has the columns {reader.fieldnames}: its first line should read "path,label" or '
            f'"path,label,split"'
        )
    rows = []
    try:
        for line in reader:
            where = f"line {reader.line_num}"
            if None in line:
                raise ValueError(f"{source}, {where} has more fields than the first line: quote what has a comma in it")
            rows.append(make_row(source, where, line["path"], line["label"], line.get("split")))
    except csv.Error as error:
        raise ValueError(f"{source}, line {reader.line_num}: {error}: is a quotation mark not closed?") from error
    return rows


def from_json(source: str) -> list[Row]:
    """[{"path": ..., "label": ..., "split": ...}, ...], [[path, label, split], ...], or CoOp's split file."""
    try:
        content = read_json(source)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is no JSON ({error})") from error
    if isinstance(content, dict) and set(PARTS) <= content.keys():
        splits = zip(PARTS, read_split(source, osp.dirname(source)), strict=True)
        content = [[item.impath, item.classname, part] for part, items in splits for item in items]
    if not isinstance(content, list):
        raise ValueError(
            f'{source} should read [{{"path": ..., "label": ..., "split": ...}}, ...]; "split" may be left out'
        )
    rows = []
    for k, entry in enumerate(content):
        fields = [entry.get(c) for c in ("path", "label", "split")] if isinstance(entry, dict) else entry
        if not isinstance(fields, list) or not 2 <= len(fields) <= 3:
            raise ValueError(
                f'{source}, entry {k + 1} is {str(entry)[:60]}: it should be {{"path": ..., "label": ...}}'
            )
        rows.append(make_row(source, f"entry {k + 1}", *fields))
    return rows


def make_row(source: str, where: str, path: object, label: object, split: object = None) -> Row:
    path, label, split = ("" if value is None else str(value).strip() for value in (path, label, split))
    if not path or not label:
        raise ValueError(f"{source}, {where}: the {'label' if path else 'path'} is missing")
    part = part_of(split) if split else ""
    if part is None:
        raise ValueError(f'{source}, {where}: the split is "{split}", but should be train, val or test')
    found = osp.normpath(osp.join(osp.dirname(source), osp.expanduser(path)))
    if "\\" in path and not osp.exists(found):  # written on Windows
        found = osp.normpath(osp.join(osp.dirname(source), path.replace("\\", "/")))
    return Row(found, normal(label), part)


def part_of(name: str) -> str | None:
    """train, val or test, for the names that people give them."""
    return {
        "train": "train",
        "training": "train",
        "val": "val",
        "valid": "val",
        "validation": "val",
        "test": "test",
        "testing": "test",
    }.get(name.lower())


def normal(name: str) -> str:
    """One spelling of accented letters: macOS writes file names with the accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def is_undecoded(path: str) -> bool:
    """Whether bytes of a file name could not be read as characters; nothing can write such a name down."""
    return any("\udc80" <= character <= "\udcff" for character in path)


def visible(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def images_in(folder: str) -> tuple[list[str], list[str]]:
    """Paths of the images and of the other files below a folder, sorted; hidden ones are passed over."""
    paths, seen = [], set()
    for at, inner, files in os.walk(folder, onerror=stop, followlinks=True):
        if osp.realpath(at) in seen:  # a link in a circle
            inner.clear()
            continue
        seen.add(osp.realpath(at))
        inner[:] = [name for name in inner if not name.startswith(".")]
        paths += [osp.join(at, name) for name in files if not name.startswith(".")]
    return sorted(filter(is_image, paths)), sorted(path for path in paths if not is_image(path))


def stop(error: OSError) -> None:
    raise error  # os.walk would pass over what may not be read


def holds_folders(folder: str) -> bool:
    return any(osp.isdir(osp.join(folder, name)) for name in visible(folder))


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


# ------------------------------------------------------------------ reading them


def image_problem(path: str, decode: bool = True) -> str:
    """Why an image cannot be taken, "" if it can; with `decode` all of the file is looked at, else its header."""
    try:
        if osp.isdir(path):
            return "it is a folder without images"
        if osp.exists(path) and not osp.isfile(path):
            return "it is no file"  # opening a pipe would wait for ever
        with Image.open(path) as image:
            if max(image.size) > 100 * min(image.size):
                return f"it is {image.width} x {image.height} pixels: more than 100 times as long as wide"
            if image.mode.startswith(("I", "F")):
                return f"its pixels are of mode {image.mode}, not 8 bits, and would be read as white: convert it"
            if decode:
                image.draft("RGB", (256, 256))  # a JPEG is decoded at a fraction of its size
                image.load()
    except Exception as error:  # Pillow raises a dozen types
        return " ".join(str(error).split()) or type(error).__name__
    return ""


def unreadable(paths: list[str]) -> dict[str, str]:
    """{path: what is wrong} of those images that cannot be read; all are decoded."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # not more: each holds a decoded image
        problems = tqdm(pool.map(image_problem, paths), "reading all images", len(paths), unit="image", disable=None)
        return {path: problem for path, problem in zip(paths, problems, strict=True) if problem}


# ------------------------------------------------------------------ dividing them


def divide(rows: list[Row], seed: int) -> list[Row]:
    """The same rows, each with a split; see `Images` for the rule where none was said."""
    unsaid = [row for row in rows if not row.split]
    if unsaid and len(unsaid) < len(rows):
        raise ValueError(
            f"{len(unsaid):,} of {len(rows):,} images have no split, first {unsaid[0].path}: give all one, or none"
        )
    classes = {}
    for row in rows:
        classes.setdefault(row.classname, []).append(row)
    check_classes(list(classes))
    if not unsaid:
        without = [name for name, of_class in classes.items() if not any(row.split == "train" for row in of_class)]
        if without:
            near = get_most_similar_str_to_a_from_b(without[0], [name for name in classes if name not in without])
            hint = f' (did you mean "{near}"?)' if near else ""
            raise ValueError(f'{len(without)} classes have no training image, first "{without[0]}"{hint}')
        return rows
    rng, divided = random.Random(seed if seed >= 0 else None), []
    for of_class in classes.values():
        n = len(of_class)
        n_train = max(1, round(0.5 * n))
        n_val = min(round(0.2 * n), n - n_train - 1) if n > 2 else 0  # of two images, the second is for test
        parts = ["train"] * n_train + ["val"] * n_val + ["test"] * (n - n_train - n_val)
        divided += [row._replace(split=part) for row, part in zip(rng.sample(of_class, n), parts, strict=True)]
    return divided


def check_classes(names: list[str]) -> None:
    if len(names) < 2:
        raise ValueError(f'there is one class only, "{names[0]}": a classifier needs two or more')


def as_split(rows: list[Row]) -> dict:
    """CoOp's split file, labels in order of the class names, with absolute paths."""
    label = {name: k for k, name in enumerate(sorted({row.classname for row in rows}))}
    return {part: [[r.path, label[r.classname], r.classname] for r in rows if r.split == part] for part in PARTS}
