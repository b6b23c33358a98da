"""Finding a user's own images, and telling which cannot be read.

photos/cat/1.jpg                     one folder a class
photos/train/cat/1.jpg               train/, test/ and, if wanted, val/ with such folders
photos.csv, .json, .jsonl            path, label[, split], or their other HEADS; paths are relative to the file
"""

import csv
import io
import json
import os
import os.path as osp
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tqdm import tqdm

from dassl.utils import read_json
from dassl.utils.images import SUFFIXES, image_problem, images_in, in_threads, is_image
from datasets.base import PARTS, read_split

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
HEADS = {  # of lists, the first that is there; where there is a class name, a label is its number
    "path": "path filename file_name file filepath file_path image image_path img impath".split(),
    "label": "classname class_name class label category".split(),
    "split": "split subset partition".split(),
}


class Row(NamedTuple):
    path: str  # absolute
    classname: str
    split: str  # train, val, test, or "" if none was said


def find_images(source: str) -> list[Row]:
    """The images of a folder, a CSV, JSON or JSON lines file, sorted by class and path."""
    source = osp.abspath(osp.expanduser(source))
    if osp.isdir(source):
        rows = from_folders(source)
    elif not osp.exists(source):
        raise FileNotFoundError(f"there is no {source}: --images takes a folder of class folders, a CSV or a JSON")
    elif source.lower().endswith(".csv"):
        rows = from_csv(source)
    elif source.lower().endswith(".json"):
        rows = from_json(source)
    elif source.lower().endswith((".jsonl", ".ndjson")):
        rows = from_json_lines(source)
    else:
        raise ValueError(f"{source} is neither a folder nor a .csv or .json or .jsonl file of path, label[, split]")
    if not rows:
        kinds = ", ".join(SUFFIXES[:5])
        raise FileNotFoundError(f"{source} has no images: it should have one folder a class with {kinds}")
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
            odd = f"{', '.join(others)}, which is no val/ or test/ with class folders: move it away"
            raise ValueError(f"{source} has train/ with class folders, but also {odd}")
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
    path, label, split = heads(reader.fieldnames)
    if not path or not label or len(set(reader.fieldnames)) < len(reader.fieldnames):
        wanted = '"path,label", "filename,class" or "path,label,split"'
        raise ValueError(f"{source} has the columns {reader.fieldnames}: its first line should read {wanted}")
    rows = []
    try:
        for line in reader:
            where = f"line {reader.line_num}"
            if None in line:
                raise ValueError(f"{source}, {where} has more fields than the first line: quote what has a comma in it")
            rows.append(make_row(source, where, line[path], line[label], line[split] if split else None))
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
        raise ValueError(f'{source} should read [{{"path": ..., "label": ...}}, ...], with "split": ... if wanted')
    return [json_row(source, f"entry {k}", entry) for k, entry in enumerate(content, start=1)]


def from_json_lines(source: str) -> list[Row]:
    """{"path": ..., "label": ..., "split": ...} or [path, label, split] in each line."""
    rows, k = [], 0
    try:
        with open(source, encoding="utf-8-sig") as f:
            for k, line in enumerate(f, start=1):
                if line.strip():
                    rows.append(json_row(source, f"line {k}", json.loads(line)))
    except json.JSONDecodeError as error:
        raise ValueError(f"{source}, line {k} is no JSON ({error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{source} is not in UTF-8 ({error.reason}): save it so") from error
    return rows


def json_row(source: str, where: str, entry: object) -> Row:
    fields = [entry[head] if head else None for head in heads(entry)] if isinstance(entry, dict) else entry
    if not isinstance(fields, list) or not 2 <= len(fields) <= 3:
        raise ValueError(f'{source}, {where} should be {{"path": ..., "label": ...}}, not {str(entry)[:60]}')
    return make_row(source, where, *fields)


def heads(given: Iterable[str]) -> list[str]:
    """Which of the `given` heads has the path, which the class, which the split; "" for what is not there."""
    given = set(given)
    return [next((name for name in names if name in given), "") for names in HEADS.values()]


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
    return next((part for part, names in SPLIT_NAMES.items() if name.lower() in names), None)


def normal(name: str) -> str:
    """One spelling of accented letters: macOS writes file names with the accent as a character of its own."""
    return unicodedata.normalize("NFC", name)


def is_undecoded(path: str) -> bool:
    """Whether bytes of a file name could not be read as characters; nothing can write such a name down."""
    return any("\udc80" <= character <= "\udcff" for character in path)


def visible(folder: str) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def holds_folders(folder: str) -> bool:
    return any(osp.isdir(osp.join(folder, name)) for name in visible(folder))


# ------------------------------------------------------------------ reading them


def unreadable(paths: list[str], title: str) -> dict[str, str]:
    """{path: what is wrong} of those images that cannot be read; all are decoded."""
    return {path: problem for path, problem in of_all(image_problem, paths, title).items() if problem}


def of_all(function: Callable[[str], object], paths: list[str], title: str) -> dict:
    """{path: function(path)}, by several threads."""
    with in_threads(function, paths) as results:
        return dict(zip(paths, tqdm(results, title, len(paths), unit="image", disable=None, delay=1), strict=True))


def listing(lines: list[str], most: int = 20) -> list[str]:
    """The first of many lines, indented, and how many more there are."""
    rest = [f"  ... and {len(lines) - most:,} more"] if len(lines) > most else []
    return [*(f"  {line}" for line in lines[:most]), *rest]
