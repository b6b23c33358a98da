"""The search for a user's own images, and for those that cannot be read.

photos/cat/1.jpg                     a folder for each class
photos/train/cat/1.jpg               train/, test/ and, if wanted, val/ with such folders
photos.csv, .json, .jsonl            path, label[, split], or their other HEADS; paths are relative to the file
"""

import contextlib
import csv
import io
import json
import os
import os.path as osp
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from dassl.infrastructure.files import file_hash, read_text
from dassl.infrastructure.images import (
    SUFFIXES,
    describe_system_folders,
    image_problem,
    images_in,
    in_threads,
    is_image,
    is_system_folder,
)
from dassl.utils import progress, read_json
from datasets.base import PARTS, locate, read_split

SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
HEADS = {  # of a list's columns: the first one that exists counts. Beside a class name, a label is its number.
    "path": "path filename file_name file filepath file_path image image_path img impath".split(),
    "label": "classname class_name class label category".split(),
    "split": "split subset partition".split(),
}


class Row(NamedTuple):
    """An image of the user."""

    path: str  # absolute
    classname: str
    split: str  # train, val, test, or "" if it has none


def find_images(source: str) -> tuple[list[Row], list[str]]:
    """Find the images of a folder, a CSV, JSON or JSON lines file.

    Returns:
        The rows, sorted by class and path, and a line for each problem.

    Raises:
        FileNotFoundError: nothing is there, or no image in it.
        ValueError: a list has lines that cannot be read.
    """
    source, problems = osp.abspath(osp.expanduser(source)), []
    if osp.isdir(source):
        rows = from_folders(source, problems)
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
    if not rows and not problems:
        kinds = ", ".join(SUFFIXES[:5])
        raise FileNotFoundError(f"{source} has no images: it should have one folder a class with {kinds}")
    undecoded_paths = [row.path for row in rows if is_undecoded(row.path)]
    if undecoded_paths:
        is_listed = f"{len(undecoded_paths):,} names that are not in UTF-8, first {ascii(undecoded_paths[0])}"
        problems.append(f"{source} has {is_listed}: rename them (convmv does)")
    repeated_paths = [path for path, count in Counter(osp.realpath(row.path) for row in rows).items() if count > 1]
    if repeated_paths:
        is_listed = f"{len(repeated_paths)} images more than once, first {repeated_paths[0]}"
        problems.append(f"{source} has {is_listed}: name, or link, each once")
    return sorted(rows, key=lambda row: (row.classname, row.path)), problems


def raise_problems(source: str, problems: list[str]) -> None:
    """Raise ValueError if there are problems; print several of them first, because an error has one line."""
    if len(problems) == 1:
        raise ValueError(problems[0])
    if problems:
        print("\n".join(listing(problems)))
        raise ValueError(f"{source} has {len(problems)} problems, see above: mend them and give the command again")


def from_folders(source: str, problems: list[str]) -> list[Row]:
    """Return the images of class folders, or of class folders within train/, val/ and test/.

    Args:
        source: the folder.
        problems: gets a line for each problem.
    """
    names = os.listdir(source)
    folders = {name: osp.join(source, name) for name in visible_names(names) if osp.isdir(osp.join(source, name))}
    system = [osp.join(source, name) for name in sorted(names) if is_system_folder(name)]
    loose_files = [name for name in visible_names(names) if name not in folders and is_image(name)]
    parts = {part_of(name): path for name, path in folders.items() if part_of(name) and holds_folders(path)}
    if "train" in parts or (parts and len(parts) == len(folders)):
        print_lines(describe_system_folders(system))
        other_files = sorted(folders.keys() - {osp.basename(path) for path in parts.values()})
        if other_files:
            odd_names = f"{', '.join(other_files)}, which is no val/ or test/ with class folders: move it away"
            problems.append(f"{source} has train/ with class folders, but also {odd_names}")
        return [row._replace(split=part) for part, path in parts.items() for row in from_folders(path, problems)]
    if loose_files:
        count = f"{len(loose_files):,} images in {source}"
        print(f"{count} are in no class folder and are left out, first {loose_files[0]}")
    rows, empty = [], []
    for name, folder in progress(folders.items(), desc="looking for images", unit="folder", delay=2):
        try:
            content = images_in(folder)
        except OSError as error:
            problems.append(f"{error.filename or folder} cannot be read ({error.strerror}): change its permissions")
            continue
        if not content.images:
            empty.append(name)
        else:
            print_lines(content._replace(system_folders=[]).omissions(folder))
        system += content.system_folders
        rows += [Row(path, compose_accents(name), "") for path in content.images]
    print_lines(describe_system_folders(system))
    if empty and rows:
        problems.append(f"{source} has class folders without images: {', '.join(empty)}: fill or remove them")
    return rows


def print_lines(lines: list[str]) -> None:
    for line in lines:
        print(line)


def from_csv(source: str) -> list[Row]:
    """Return the images of a CSV file.

    Raises:
        ValueError: lines are malformed. If there are several, each is printed.
    """
    text = read_text(source)
    head = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=head.count))
    rows, problems = [], []
    try:
        reader.fieldnames = [name.strip().lower() for name in reader.fieldnames or []]
        path, label, split = heads(reader.fieldnames)
        if not path or not label or len(set(reader.fieldnames)) < len(reader.fieldnames):
            wanted_columns = '"path,label", "filename,class" or "path,label,split"'
            columns = str(reader.fieldnames)[:300]
            raise ValueError(f"{source} has the columns {columns}: its first line should read {wanted_columns}")
        for line in reader:
            location = f"line {reader.line_num}"
            if None in line:
                problems.append(
                    f"{source}, {location} has more fields than the first line: quote what has a comma in it"
                )
                continue
            with collect_problems(problems):
                rows.append(make_row(source, location, line[path], line[label], line[split] if split else None))
    except csv.Error as error:
        line = max(1, reader.line_num)
        raise ValueError(f"{source}, line {line}: {error}: is a quotation mark not closed?") from error
    raise_problems(source, problems)
    return rows


@contextlib.contextmanager
def collect_problems(problems: list[str]) -> Iterator[None]:
    """Add the message of a ValueError to the problems, and go on."""
    try:
        yield
    except ValueError as error:
        problems.append(str(error))


def from_json(source: str) -> list[Row]:
    """Return the images of a JSON file.

    It holds [{"path": ..., "label": ..., "split": ...}, ...], [[path, label, split], ...], or is CoOp's split file.

    Raises:
        ValueError: entries are malformed. If there are several, each is printed.
    """
    try:
        content = read_json(source)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{source} is no JSON ({error})") from error
    if isinstance(content, dict) and set(PARTS) <= content.keys():
        splits = zip(PARTS, read_split(source, osp.dirname(source)), strict=True)
        content = [[item.impath, item.classname, part] for part, items in splits for item in items]
    if not isinstance(content, list):
        raise ValueError(f'{source} should read [{{"path": ..., "label": ...}}, ...], with "split": ... if wanted')
    rows, problems = [], []
    for k, entry in enumerate(content, start=1):
        with collect_problems(problems):
            rows.append(json_row(source, f"entry {k}", entry))
    raise_problems(source, problems)
    return rows


def from_json_lines(source: str) -> list[Row]:
    """Return the images of a JSON lines file.

    A line holds {"path": ..., "label": ..., "split": ...} or [path, label, split].

    Raises:
        ValueError: lines are malformed. If there are several, each is printed.
    """
    rows, problems = [], []
    for k, line in enumerate(read_text(source).split("\n"), start=1):
        if line.strip():
            with collect_problems(problems):
                rows.append(json_line(source, k, line))
    raise_problems(source, problems)
    return rows


def json_line(source: str, number: int, line: str) -> Row:
    try:
        entry = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{source}, line {number} is no JSON ({error})") from error
    return json_row(source, f"line {number}", entry)


def json_row(source: str, location: str, entry: object) -> Row:
    fields = entry
    if isinstance(entry, dict):
        fields = [entry[head] if head else None for head in heads(entry)]
    if not isinstance(fields, list) or not 2 <= len(fields) <= 3:
        raise ValueError(f'{source}, {location} should be {{"path": ..., "label": ...}}, not {str(entry)[:60]}')
    return make_row(source, location, *fields)


def heads(columns: Iterable[str]) -> list[str]:
    """Return the columns of the path, of the class and of the split; "" for each that is missing."""
    columns = set(columns)
    return [next((name for name in names if name in columns), "") for names in HEADS.values()]


def make_row(source: str, location: str, path: object, label: object, split: object = None) -> Row:
    path, label, split = ("" if value is None else str(value).strip() for value in (path, label, split))
    if not path or not label:
        raise ValueError(f"{source}, {location}: the {'label' if path else 'path'} is missing")
    part = part_of(split) if split else ""
    if part is None:
        raise ValueError(f'{source}, {location}: the split is "{split}", but should be train, val or test')
    return Row(osp.normpath(locate(osp.expanduser(path), osp.dirname(source))), compose_accents(label), part)


def part_of(name: str) -> str | None:
    """Return train, val or test for one of its usual names; None for another name."""
    return next((part for part, names in SPLIT_NAMES.items() if name.lower() in names), None)


def compose_accents(name: str) -> str:
    """Return a name with each accented letter as one character; macOS writes the accent as a second one."""
    return unicodedata.normalize("NFC", name)


def is_undecoded(path: str) -> bool:
    """Return whether a file name has bytes that are not UTF-8, so that it cannot be written to a file."""
    return any("\udc80" <= character <= "\udcff" for character in path)


def visible_names(names: list[str]) -> list[str]:
    """Return the names that are neither hidden nor those of system folders, sorted."""
    return sorted(name for name in names if not name.startswith(".") and not is_system_folder(name))


def holds_folders(folder: str) -> bool:
    return any(osp.isdir(osp.join(folder, name)) for name in visible_names(os.listdir(folder)))


# ------------------------------------------------------------------ reading them


def same_content(paths: list[str]) -> dict[str, str]:
    """Return {path: first path with the same bytes} of files with copies; only files of equal size are read."""
    sizes = {}
    for path in dict.fromkeys(paths):
        if osp.isfile(path):
            sizes.setdefault(osp.getsize(path), []).append(path)
    candidates = [path for paths_by_size in sizes.values() if len(paths_by_size) > 1 for path in paths_by_size]
    groups = {}
    for path, digest in of_all(file_hash, candidates, "looking for copies").items():
        groups.setdefault(digest, []).append(path)
    return {path: group[0] for group in groups.values() if len(group) > 1 for path in group}


def find_unreadable(paths: list[str], title: str) -> dict[str, str]:
    """Return {path: problem} of the images that cannot be decoded.

    Args:
        paths: images; each is decoded.
        title: title of the progress bar.
    """
    return {path: problem for path, problem in of_all(image_problem, paths, title).items() if problem}


def of_all(function: Callable[[str], object], paths: list[str], title: str) -> dict:
    """Return {path: function(path)}, computed by several threads.

    Args:
        function: is called with each path.
        paths: each once.
        title: title of the progress bar.
    """
    with in_threads(function, paths) as results:
        bar = progress(results, desc=title, total=len(paths), unit="image", delay=1)
        return dict(zip(paths, bar, strict=True))


def listing(lines: list[str], limit: int = 20) -> list[str]:
    """Return the first `limit` lines, indented, and a line with the number of the others."""
    shown_lines = [f"  {line}" for line in lines[:limit]]
    if len(lines) > limit:
        shown_lines.append(f"  ... and {len(lines) - limit:,} more")
    return shown_lines
