"""What several data sets share when there is no split file: readers of raw annotations, and CoOp's rules for splits.

A file or folder that is not there raises FileNotFoundError, to which `SplitDataset.read_splits` adds what to do; one
that does not read as it should raises ValueError with the file and the line.
"""

import os
import os.path as osp
import random
from collections.abc import Collection, Iterator

from dassl.data.datasets import Datum
from dassl.files import open_regular
from dassl.utils import progress, read_json
from dassl.utils.images import is_image, is_system_folder
from datasets.base import Splits

SEED = 1  # CoOp's split depends on the seed of the run that comes first; its scripts begin with 1


# ------------------------------------------------------------------ folders


def list_classes(image_dir: str, ignored: Collection[str] = ()) -> dict[str, list[str]]:
    """Return {class folder: paths of its images, relative to `image_dir`}.

    Links are followed, other files and system folders left out.

    Sorted, because the order of `os.listdir`, which CoOp shuffles and samples, is another one on every file system.
    """
    with os.scandir(image_dir) as entries:
        names = [entry.name for entry in entries if entry.name[0] != "." and entry.is_dir()]
    folders = sorted(name for name in names if name not in ignored and not is_system_folder(name))
    bar = progress(folders, desc=f"listing {image_dir}", unit="folder", delay=2)
    return {folder: list_images(image_dir, folder) for folder in bar}


def list_images(image_dir: str, folder: str) -> list[str]:
    names = os.listdir(osp.join(image_dir, folder))
    return [osp.join(folder, name) for name in sorted(names) if name[0] != "." and is_image(name)]


def read_class_folders(image_dir: str, names: dict[str, str], n_classes: int) -> list[Datum]:
    """All images of `n_classes` class folders, labelled by their order in `names`, {folder: class name}.

    Raises ValueError, with the missing ones, unless exactly so many of these folders hold images.
    """
    found = list_classes(image_dir)
    unknown = sorted(found.keys() - names.keys())
    if unknown:
        raise ValueError(f"{image_dir} has {name_some(unknown)}, which is no class of classnames.txt: remove it")
    folders = [folder for folder in names if found.get(folder)]
    if len(folders) != n_classes:
        missing = [folder for folder in names if not found.get(folder)] if len(names) == n_classes else []
        named = f"; missing or empty: {name_some(missing)}" if missing else ""
        raise ValueError(
            f"{image_dir} has {len(folders):,} of the {n_classes:,} class folders{named}: complete the copy, or "
            f"unpack it with one folder for each class"
        )
    return [
        Datum(impath=osp.join(image_dir, path), label=label, classname=names[folder])
        for label, folder in enumerate(folders)
        for path in found[folder]
    ]


def name_some(names: list[str], most: int = 20) -> str:
    rest = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


# ------------------------------------------------------------------ files


def read_lines(path: str, form: str) -> Iterator[tuple[str, ...]]:
    """Yields (where, word, ...) for every line that is not blank; where is "file, line n", for messages.

    Args:
        path: text file.
        form: what a line holds, word by word, e.g. "image class"; the last one may contain spaces.
    """
    n_words = len(form.split())
    with open(path, encoding="utf-8") as f:
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
    """{folder: class name}, sorted by folder, of ImageNet's classnames.txt; raises ValueError unless it has so many."""
    names = {folder: name for _, folder, name in read_lines(path, "folder name")}
    if len(names) != n_classes:
        raise ValueError(f"{path} names {len(names):,} classes instead of {n_classes:,}: take CoOp's classnames.txt")
    return dict(sorted(names.items()))


def read_dict(path: str) -> dict:
    """The content of a JSON file that holds an object."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f'{path} should read {{"key": "value", ...}}: get it again')
    return content


def read_mat(path: str, key: str, fields: tuple[str, ...] = ()) -> list:
    """The array `key` of a MATLAB file as a list: of numbers, strings, or dicts for structures with `fields`."""
    from scipy.io import loadmat  # here: it takes a while to import, and only raw annotations need it

    with open_regular(path) as f:
        try:
            value = loadmat(f, simplify_cells=True)[key]
            values = [value] if isinstance(value, str | dict) else list(value)
            for value in values:
                for field in fields:
                    value[field]
        except Exception as error:  # SciPy raises many kinds
            raise ValueError(
                f'{path} has no "{key}" to read ({type(error).__name__}: {error}): get it again'
            ) from error
    return values


def to_label(number: str, where: str) -> int:
    """The label from 0 of a class number from 1."""
    if not number.isdecimal() or int(number) < 1:
        raise ValueError(f'{where}: "{number}" should be the number of a class, from 1')
    return int(number) - 1


def look_up(name: str | int, known: dict, where: str, source: str):
    """known[name]; raises ValueError for a class that the file `source` does not have."""
    if name not in known:
        raise ValueError(f'{where}: "{name}" is no class of {source}')
    return known[name]


# ------------------------------------------------------------------ CoOp's rules


def split_folders(image_dir: str, ignored: Collection[str] = (), new_cnames: dict[str, str] | None = None) -> Splits:
    """50/20/30 of every class folder; labels in order of the folders, some of which have another class name."""
    folders = list_classes(image_dir, ignored)
    groups = {(k, (new_cnames or {}).get(name, name)): paths for k, (name, paths) in enumerate(folders.items())}
    return split_groups(groups, image_dir)


def split_groups(groups: dict[tuple[int, str], list[str]], image_dir: str) -> Splits:
    """50 % train, 20 % val, the rest test of each class, after shuffling; `groups` is {(label, class name): paths}."""
    rng, splits = random.Random(SEED), ([], [], [])
    if not groups:
        raise FileNotFoundError(f"a class folder in {image_dir}")
    for (label, name), paths in groups.items():
        paths, n_train, n_val = list(paths), round(len(paths) * 0.5), round(len(paths) * 0.2)
        if n_val == 0 or n_train + n_val == len(paths):
            raise ValueError(f'{image_dir} has {len(paths)} images of "{name}": train, val and test need 4 to share')
        rng.shuffle(paths)
        for items, chosen in zip(
            splits, (paths[:n_train], paths[n_train : n_train + n_val], paths[n_train + n_val :]), strict=True
        ):
            items += [Datum(impath=osp.join(image_dir, path), label=label, classname=name) for path in chosen]
    return splits


def split_trainval(trainval: list[Datum]) -> tuple[list[Datum], list[Datum]]:
    """20 % of each class for val, the rest for train, after shuffling; classes in order of first appearance."""
    rng, train, val, by_label = random.Random(SEED), [], [], {}
    for item in trainval:
        by_label.setdefault(item.label, []).append(item)
    for items in by_label.values():
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
