"""Dividing a user's own images into train, val and test."""

import math
import os.path as osp
import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType

from dassl.utils import get_most_similar_str_to_a_from_b
from datasets.base import PARTS

from .image_files import Row, listing


def divide(
    rows: list[Row], seed: int, val: float = -1.0, originals: Mapping[str, str] = MappingProxyType({})
) -> list[Row]:
    """Return the same rows, each with a split; by the rule of `Images` where none was given.

    Images of one content go to one split, and count as one image. What two classes hold trains both, and tests neither.

    Args:
        rows: all with a split, or none; `split_problems` finds nothing wrong.
        seed: of the shuffling; negative: not seeded.
        val: of each class, a share below 1 or a number of images, for validation. Negative: a fifth where none has a
            split. Where all have one, and none is for val, they are taken from the training images.
        originals: {path: path of the first image of the same content} of those that have copies.
    """
    rng = random.Random(seed if seed >= 0 else None)
    divided = [row for row in rows if row.split]
    if divided:
        return divided if val < 0 else val_from_train(divided, rng, val, originals)
    shared = shared_contents(rows, originals)
    for contents in contents_by_class(rows, originals).values():
        parts = {content: "train" for content in contents if content in shared}
        own = [content for content in contents if content not in shared]
        n = len(own)
        n_train = max(1, round(0.5 * n))
        n_val = max(0, min(wanted(n, 0.2 if val < 0 else val), n - n_train - 1))  # one at least is for test
        names = ["train"] * n_train + ["val"] * n_val + ["test"] * (n - n_train - n_val)
        parts |= zip(rng.sample(own, n), names, strict=False)
        divided += [row._replace(split=part) for content, part in parts.items() for row in contents[content]]
    return divided


def val_from_train(rows: list[Row], rng: random.Random, val: float, originals: Mapping[str, str]) -> list[Row]:
    """Return the same rows, of which some training images of each class, but never the last one, are for val."""
    train, moved = [row for row in rows if row.split == "train"], set()
    shared = shared_contents(train, originals)
    for contents in contents_by_class(train, originals).values():
        own = [content for content in contents if content not in shared]
        for content in rng.sample(own, max(0, min(wanted(len(own), val), len(own) - 1))):
            moved.update(contents[content])
    return [row._replace(split="val") if row in moved else row for row in rows]


def contents_by_class(rows: list[Row], originals: Mapping[str, str]) -> dict[str, dict[str, list[Row]]]:
    """Return {class name: {path of the first image of a content: the class's rows of it}}."""
    classes = {}
    for row in rows:
        content = originals.get(row.path, row.path)
        classes.setdefault(row.classname, {}).setdefault(content, []).append(row)
    return classes


def shared_contents(rows: list[Row], originals: Mapping[str, str]) -> set[str]:
    """Return the contents that images of several classes have."""
    classes = contents_by_class(rows, originals).values()
    count = Counter(content for contents in classes for content in contents)
    return {content for content, n in count.items() if n > 1}


def describe_copies(rows: list[Row], originals: Mapping[str, str], folder: str) -> list[str]:
    """Return lines that name the images of one content that lie in several classes, or in several given splits."""
    by_content = {}
    for row in rows:
        if row.path in originals:
            by_content.setdefault(originals[row.path], []).append(row)
    divided = any(row.split for row in rows)
    split = [same for same in by_content.values() if len({row.split for row in same}) > 1]
    classes = [same for same in by_content.values() if len({row.classname for row in same}) > 1]
    count, lines = sum(len(same) for same in by_content.values()), []
    if count and not divided:
        lines.append(
            f"{count:,} images are copies of each other, {len(by_content):,} different ones: copies share a split"
        )
        lines += name_copies(by_content.values(), folder)
    if split:
        lines.append(
            f"{len(split):,} images are in more than one split, which flatters the accuracy: remove the copies"
        )
        lines += name_copies(split, folder)
    if classes:
        rule = "" if divided else "; they are for training only"
        lines.append(f"{len(classes):,} images are in more than one class, which no model can learn{rule}")
        lines += name_copies(classes, folder)
    return lines


def name_copies(groups: Iterable[list[Row]], folder: str) -> list[str]:
    """Return a line for each group of copies, of the first 20: their paths below `folder`."""
    names = [[osp.relpath(row.path, folder) for row in group] for group in groups]
    return listing([" = ".join(of_group) for of_group in names])


def wanted(n: int, val: float) -> int:
    """Return the number of images that a share, or a number, of `n` images is."""
    return round(val * n) if val < 1 else int(val)


def split_problems(rows: list[Row], val: float) -> list[str]:
    """Return a line for each reason why the rows cannot be divided; see `divide` for the arguments."""
    problems = []
    if not (val < 1 or math.isfinite(val) and val == int(val)):
        problems.append(f"--val is {val:g}: give a share of each class below 1, or a whole number of images")
    unsaid = [row for row in rows if not row.split]
    if unsaid and len(unsaid) < len(rows):
        some = f"{len(unsaid):,} of {len(rows):,} images"
        problems.append(f"{some} have no split, first {unsaid[0].path}: give all one, or none")
    problems += class_problems({row.classname for row in rows})
    classes = sorted({row.classname for row in rows})
    trained = {row.classname for row in rows if row.split == "train"}
    without = [name for name in classes if name not in trained]
    if without and not unsaid and len(classes) > 1:
        near = get_most_similar_str_to_a_from_b(without[0], trained)
        hint = f' (did you mean "{near}"?)' if near else ""
        problems.append(f'{len(without)} classes have no training image, first "{without[0]}"{hint}')
    if val >= 0 and any(row.split == "val" for row in rows):
        problems.append("some images are said to be for val already: leave out --val")
    return problems


def class_problems(names: Collection[str]) -> list[str]:
    """Return a line if there are fewer than two classes."""
    if len(names) == 1:
        return [f'there is one class only, "{min(names)}": a classifier needs two or more']
    return []


def as_split(rows: list[Row]) -> dict:
    """CoOp's split file, labels in order of the class names, with absolute paths."""
    label = {name: k for k, name in enumerate(sorted({row.classname for row in rows}))}
    return {part: [[r.path, label[r.classname], r.classname] for r in rows if r.split == part] for part in PARTS}
