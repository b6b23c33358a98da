"""Few-shot splits of others: JSON lines files, as the 165 of 2SFS (github.com/FarinaMatteo/rethinking_fewshot_vlms).

shot_1-seed_2_train.jsonl     a line an image: {"_impath": PATH, "_label": 0, "_domain": 0, "_classname": "havanese"}
shot_1-seed_2_val.jsonl       the same for val; it may be missing

A path is relative to the folder of all data sets, as oxford_pets/images/havanese_12.jpg, or to that of the images. Its
first folder may have the name that other code gives to the data set. Labels are those of all classes.
"""

import json
import os.path as osp
from typing import NamedTuple

from dassl.data.datasets import Datum
from dassl.infrastructure.files import read_text

FORM = '{"_impath": PATH, "_label": NUMBER, "_domain": NUMBER, "_classname": NAME}'


class Line(NamedTuple):
    """An image of a few-shot split."""

    location: str  # file and number of the line, for messages
    impath: str
    label: int
    classname: str


def files_of(path: str) -> list[str]:
    """Return the file of the training images and, if there is one beside it, the file of the val images.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if not osp.exists(path):
        raise FileNotFoundError(f"there is no few-shot split {path}: give a JSON lines file with --few-shot-split")
    folder, name = osp.split(path)
    val = osp.join(folder, "_val".join(name.rsplit("_train", 1)))
    return [path, val] if val != path and osp.exists(val) else [path]


def read_lines(path: str) -> list[Line]:
    """Return the lines of a file.

    Raises:
        ValueError: a line has another form, or there is none.
    """
    lines = []
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        if text.strip():
            lines.append(parse_line(text, f"{path}, line {number}"))
    if not lines:
        raise ValueError(f"{path} has no image: give a few-shot split with lines {FORM}")
    return lines


def parse_line(text: str, location: str) -> Line:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{location} is no JSON ({error}): it should read {FORM}") from error
    keys = ("_impath", "_label", "_classname")
    values = [entry.get(key) for key in keys] if isinstance(entry, dict) else []
    if [type(value) for value in values] != [str, int, str] or not values[0] or not values[2]:
        raise ValueError(f"{location} is {text.strip()[:80]!r}, but should read {FORM}")
    return Line(location, *values)


def find_items(lines: list[Line], splits: tuple[list[Datum], ...], folders: tuple[str, str, str]) -> list[Datum]:
    """Return the data set's own item for each line.

    Args:
        lines: lines of the split.
        splits: train, val and test of the data set, with the labels of all classes.
        folders: folders of all data sets, of the data set, of its images.

    Raises:
        ValueError: an image is not in the data set or is a test image, or its label or class name differs.
    """
    places = [possible_paths(line.impath, folders) for line in lines]
    wanted_paths = {path for paths in places for path in paths}
    own_items = {item.impath: item for split in splits for item in split if item.impath in wanted_paths}
    test_paths = {item.impath for item in splits[-1] if item.impath in wanted_paths}
    items = [next((own_items[path] for path in paths if path in own_items), None) for paths in places]
    missing = [line for line, item in zip(lines, items, strict=True) if item is None]
    if missing:
        count = f"{len(missing):,} of {len(lines):,} images are not in the data set in {folders[1]}"
        first = f"first {missing[0].impath[:200]}"
        raise ValueError(f"{missing[0].location}: {count}, {first}: give a split of this data set")
    for line, item in zip(lines, items, strict=True):
        check_same(line, item)
        if item.impath in test_paths:
            raise ValueError(f"{line.location}: {line.impath} is a test image of this data set: give another split")
    return items


def possible_paths(path: str, folders: tuple[str, str, str]) -> list[str]:
    """Return the paths that a path of a split may mean here, the likeliest first."""
    root, dataset_dir, image_dir = folders
    path = path.replace("\\", "/")
    inner_path = path.partition("/")[2]  # without the name that other code gives to the data set's folder
    paths = [osp.join(root, path), osp.join(image_dir, path)]
    if inner_path and not osp.isabs(path):
        paths += [osp.join(dataset_dir, inner_path), osp.join(image_dir, inner_path)]
    return list(map(osp.normpath, paths))


def check_same(line: Line, item: Datum) -> None:
    """Raise ValueError if a line has another label or class than the data set's own item."""
    if line.label != item.label:
        problem = f"label {str(line.label)[:20]} for {line.impath}, which has {item.label} in this data set"
    elif comparable_name(line.classname) != comparable_name(item.classname):
        problem = f'class "{line.classname[:80]}" for label {item.label}, which is "{item.classname}" in this data set'
    else:
        return
    raise ValueError(f"{line.location} has {problem}: give a split of this data set")


def comparable_name(name: str) -> str:
    """Return a class name as CLIP reads it, by which it is compared."""
    return name.replace("_", " ").lower()
