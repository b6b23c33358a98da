"""Readers of raw annotations, and CoOp's rules for splits, for data sets without a split file.

A missing file or folder raises FileNotFoundError; `SplitDataset.read_splits` adds the advice. A file of another form
raises ValueError with the file and the line.
"""

import io
import os
import os.path as osp
import random
import zlib
from collections.abc import Collection, Iterator

from dassl.data.datasets import Datum
from dassl.infrastructure.files import read_bytes
from dassl.infrastructure.images import is_image, is_system_folder
from dassl.utils import progress, read_json
from datasets.base import Splits

COMPRESSED, MOST_MAT = 15, 2**25  # the type of a compressed part of a MATLAB file; bytes that all of them may unpack to
SEED = 1  # CoOp's split depends on the seed of the first run; its scripts begin with 1


# ------------------------------------------------------------------ folders


def list_classes(image_dir: str, ignored_folders: Collection[str] = ()) -> dict[str, list[str]]:
    """Return the paths of the images of each class folder, relative to `image_dir`.

    Links are followed; other files and system folders are left out. Folders and images are sorted. CoOp shuffles and
    samples the order of `os.listdir`, which differs between file systems.

    Args:
        image_dir: holds the class folders.
        ignored_folders: names of folders that are no classes.
    """
    with os.scandir(image_dir) as entries:
        names = [entry.name for entry in entries if entry.name[0] != "." and entry.is_dir()]
    folders = sorted(name for name in names if name not in ignored_folders and not is_system_folder(name))
    bar = progress(folders, desc=f"listing {image_dir}", unit="folder", delay=2)
    return {folder: list_images(image_dir, folder) for folder in bar}


def list_images(image_dir: str, folder: str) -> list[str]:
    names = os.listdir(osp.join(image_dir, folder))
    return [osp.join(folder, name) for name in sorted(names) if name[0] != "." and is_image(name)]


def read_class_folders(image_dir: str, names: dict[str, str], n_classes: int) -> list[Datum]:
    """Return the images of `n_classes` class folders, labelled by the order of the folders in `names`.

    Args:
        image_dir: holds the class folders.
        names: {folder: class name}; may have folders that do not exist.
        n_classes: number of folders that must hold images.

    Raises:
        ValueError: another number of folders hold images, or a folder is not in `names`.
    """
    images = list_classes(image_dir)
    unknown_folders = sorted(images.keys() - names.keys())
    if unknown_folders:
        problem = f"{image_dir} has {format_names(unknown_folders)}, which is no class of classnames.txt"
        raise ValueError(f"{problem}: remove it")
    folders = [folder for folder in names if images.get(folder)]
    if len(folders) != n_classes:
        hint = ""
        missing = [folder for folder in names if not images.get(folder)]
        if missing and len(names) == n_classes:
            hint = f"; missing or empty: {format_names(missing)}"
        raise ValueError(
            f"{image_dir} has {len(folders):,} of the {n_classes:,} class folders{hint}: complete the copy, or "
            f"unpack it with one folder for each class"
        )
    return [
        Datum(impath=osp.join(image_dir, path), label=label, classname=names[folder])
        for label, folder in enumerate(folders)
        for path in images[folder]
    ]


def format_names(names: list[str], limit: int = 20) -> str:
    text = ", ".join(names[:limit])
    if len(names) > limit:
        text += f" and {len(names) - limit:,} more"
    return text


# ------------------------------------------------------------------ files


def read_lines(path: str, form: str) -> Iterator[tuple[str, ...]]:
    """Yield (location, word, ...) for every line that is not blank; the location is "file, line n", for messages.

    Args:
        path: text file.
        form: the words of a line, e.g. "image class"; the last one may contain spaces.

    Raises:
        ValueError: a line has fewer words, or the file is no text.
    """
    n_words = len(form.split())
    with io.TextIOWrapper(io.BytesIO(read_bytes(path)), encoding="utf-8") as f:
        try:
            for k, line in enumerate(f, start=1):
                words = line.strip().split(maxsplit=n_words - 1)
                if words and len(words) != n_words:
                    raise ValueError(f'{path}, line {k}: "{line.strip()[:60]}" should read "{form}"')
                if words:
                    yield f"{path}, line {k}", *words
        except UnicodeDecodeError as error:
            raise ValueError(f'{path} is no text ({error.reason}): it should have lines of "{form}"') from error


def read_classnames(path: str, n_classes: int) -> dict[str, str]:
    """Return {folder: class name}, sorted by folder, of ImageNet's classnames.txt.

    Raises:
        ValueError: the file does not have `n_classes` folders.
    """
    names = {folder: name for _, folder, name in read_lines(path, "folder name")}
    if len(names) != n_classes:
        raise ValueError(f"{path} names {len(names):,} classes instead of {n_classes:,}: take CoOp's classnames.txt")
    return dict(sorted(names.items()))


def read_dict(path: str) -> dict:
    """Return the content of a JSON file that holds an object.

    Raises:
        ValueError: the file holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path} should read {{"key": "value", ...}}: get it again')
    return content


def read_mat(path: str, key: str, fields: tuple[str, ...] = ()) -> list:
    """Return an array of a MATLAB file as a list of numbers, of strings, or of dicts for structures.

    Args:
        path: MATLAB file.
        key: name of the array.
        fields: names that each structure must have; empty: the array holds no structures.

    Raises:
        ValueError: the array or a field is missing.
    """
    from scipy.io import loadmat  # here, because it is slow to import and only raw annotations need it

    data = read_bytes(path)
    try:
        check_unpacked_size(data)
        value = loadmat(io.BytesIO(data), simplify_cells=True)[key]
        values = [value] if isinstance(value, str | dict) else list(value)
        for value in values:
            for field in fields:
                value[field]
    except Exception as error:  # SciPy raises many kinds
        raise ValueError(f'{path} has no "{key}" to read ({type(error).__name__}: {error}): get it again') from error
    return values


def check_unpacked_size(data: bytes) -> None:
    """Raise ValueError if the compressed parts of a MATLAB file have more than `MOST_MAT` bytes together.

    Args:
        data: its content: 128 bytes, then parts with a head of two numbers, the type and the length.
    """
    order, at, left = "big" if data[126:128] == b"MI" else "little", 128, MOST_MAT - len(data)
    while at + 8 <= len(data) and left >= 0:
        kind, length = (int.from_bytes(data[at + k : at + k + 4], order) for k in (0, 4))
        if kind == COMPRESSED:
            left -= len(zlib.decompressobj().decompress(data[at + 8 : at + 8 + length], left + 1))
        at += 8 + length
    if left < 0:
        raise ValueError(f"it unpacks to more than {MOST_MAT >> 20} MB")


def to_label(number: str, location: str) -> int:
    """Return the label from 0 of a class number from 1.

    Args:
        number: the word of a file.
        location: its file and line, for the message.

    Raises:
        ValueError: the word is no such number.
    """
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f'{location}: "{number}" should be the number of a class, from 1')
    return int(number) - 1


def look_up(name: str | int, classes: dict, location: str, source: str):
    """Return `classes[name]`.

    Args:
        name: name of a class.
        classes: the content of `source`.
        location: file and line of the name, for the message.
        source: file with the classes, for the message.

    Raises:
        ValueError: `classes` lacks the name.
    """
    if name not in classes:
        raise ValueError(f'{location}: "{name}" is no class of {source}')
    return classes[name]


# ------------------------------------------------------------------ CoOp's rules


def split_folders(
    image_dir: str, ignored_folders: Collection[str] = (), new_cnames: dict[str, str] | None = None
) -> Splits:
    """Split every class folder 50/20/30; the labels are in the order of the folders.

    Args:
        image_dir: holds the class folders.
        ignored_folders: names of folders that are no classes.
        new_cnames: {folder: class name} of classes that are not called as their folder.
    """
    new_cnames = new_cnames or {}
    groups = {}
    for label, (folder, paths) in enumerate(list_classes(image_dir, ignored_folders).items()):
        groups[label, new_cnames.get(folder, folder)] = paths
    return split_groups(groups, image_dir)


def split_groups(groups: dict[tuple[int, str], list[str]], image_dir: str) -> Splits:
    """Split each class into 50 % train, 20 % val and the rest test, after shuffling.

    Args:
        groups: {(label, class name): paths}.
        image_dir: folder to which the paths are relative.

    Raises:
        FileNotFoundError: there is no class.
        ValueError: a class has fewer than 4 images.
    """
    rng, splits = random.Random(SEED), ([], [], [])
    if not groups:
        raise FileNotFoundError(f"a class folder in {image_dir}")
    for (label, name), paths in groups.items():
        paths, n_train, n_val = list(paths), round(len(paths) * 0.5), round(len(paths) * 0.2)
        if n_val == 0 or n_train + n_val == len(paths):
            raise ValueError(f'{image_dir} has {len(paths)} images of "{name}": train, val and test need 4 to share')
        rng.shuffle(paths)
        parts = paths[:n_train], paths[n_train : n_train + n_val], paths[n_train + n_val :]
        for items, part in zip(splits, parts, strict=True):
            items += [Datum(impath=osp.join(image_dir, path), label=label, classname=name) for path in part]
    return splits


def split_trainval(trainval: list[Datum]) -> tuple[list[Datum], list[Datum]]:
    """Split each class into 20 % val and the rest train, after shuffling; classes in order of first appearance.

    Raises:
        ValueError: a class has fewer than 3 images.
    """
    rng, train, val, items_by_label = random.Random(SEED), [], [], {}
    for item in trainval:
        items_by_label.setdefault(item.label, []).append(item)
    for items in items_by_label.values():
        n_val = round(len(items) * 0.2)
        if not n_val:
            raise ValueError(
                f'{len(items)} images to train "{items[0].classname}" ({items[0].impath}): '
                f"train and val need 3 to share"
            )
        rng.shuffle(items)
        val += items[:n_val]
        train += items[n_val:]
    return train, val
