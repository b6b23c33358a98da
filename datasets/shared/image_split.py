"""The division of a user's own images into train, val and test."""

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
    """Return the same rows, each with a split; rows without one are divided by the rule of `Images`.

    Images of one content get one split and count as one image. A content of several classes is for training in each of
    them.

    Args:
        rows: all with a split, or all without; `split_problems` has no line for them.
        seed: seed of the shuffling; negative: not seeded.
        val: validation images of each class: a fraction below 1, or a number. Negative: a fifth if the rows have no
            split, else none. Rows with a split have none for val: they are taken from the training images.
        originals: {path: path of the first image of the same content} of images with copies.
    """
    rng = random.Random(seed if seed >= 0 else None)
    rows_with_split = [row for row in rows if row.split]
    if rows_with_split:
        return rows_with_split if val < 0 else val_from_train(rows_with_split, rng, val, originals)
    common_contents = shared_contents(rows, originals)
    for contents in contents_by_class(rows, originals).values():
        parts = {content: "train" for content in contents if content in common_contents}
        unique_contents = [content for content in contents if content not in common_contents]
        n = len(unique_contents)
        n_train = max(1, round(0.5 * n))
        n_val = max(0, min(count_images(n, 0.2 if val < 0 else val), n - n_train - 1))  # at least one is for test
        names = ["train"] * n_train + ["val"] * n_val + ["test"] * (n - n_train - n_val)
        parts |= zip(rng.sample(unique_contents, n), names, strict=False)
        rows_with_split += [row._replace(split=part) for content, part in parts.items() for row in contents[content]]
    return rows_with_split


def val_from_train(rows: list[Row], rng: random.Random, val: float, originals: Mapping[str, str]) -> list[Row]:
    """Return the same rows with some training images of each class moved to val; at least one stays.

    Args:
        rows: all with a split.
        rng: random generator of the selection.
        val: fraction below 1, or number, of the training images of each class.
        originals: see `divide`.
    """
    train, val_rows = [row for row in rows if row.split == "train"], set()
    common_contents = shared_contents(train, originals)
    for contents in contents_by_class(train, originals).values():
        unique_contents = [content for content in contents if content not in common_contents]
        n_val = max(0, min(count_images(len(unique_contents), val), len(unique_contents) - 1))
        for content in rng.sample(unique_contents, n_val):
            val_rows.update(contents[content])
    return [row._replace(split="val") if row in val_rows else row for row in rows]


def contents_by_class(rows: list[Row], originals: Mapping[str, str]) -> dict[str, dict[str, list[Row]]]:
    """Return {class name: {content: rows}}; a content is the path of its first image."""
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
    """Return lines about the copies among the images, and about those in several classes or several splits.

    Args:
        rows: all images.
        originals: see `divide`.
        folder: paths are shown relative to it.
    """
    rows_by_content = {}
    for row in rows:
        if row.path in originals:
            rows_by_content.setdefault(originals[row.path], []).append(row)
    has_splits = any(row.split for row in rows)
    split = [group for group in rows_by_content.values() if len({row.split for row in group}) > 1]
    classes = [group for group in rows_by_content.values() if len({row.classname for row in group}) > 1]
    count = sum(len(group) for group in rows_by_content.values())
    lines = []
    if count and not has_splits:
        lines.append(
            f"{count:,} images are copies of each other, {len(rows_by_content):,} different ones: copies share a split"
        )
        lines += name_copies(rows_by_content.values(), folder)
    if split:
        lines.append(
            f"{len(split):,} images are in more than one split, which flatters the accuracy: remove the copies"
        )
        lines += name_copies(split, folder)
    if classes:
        rule = "" if has_splits else "; they are for training only"
        lines.append(f"{len(classes):,} images are in more than one class, which no model can learn{rule}")
        lines += name_copies(classes, folder)
    return lines


def name_copies(groups: Iterable[list[Row]], folder: str) -> list[str]:
    """Return a line for each of the first 20 groups of copies, with their paths below `folder`."""
    return listing([" = ".join(osp.relpath(row.path, folder) for row in group) for group in groups])


def count_images(n: int, val: float) -> int:
    """Return the number of images that `val` asks for: a fraction of `n` if it is below 1, else the number itself."""
    return round(val * n) if val < 1 else int(val)


def split_problems(rows: list[Row], val: float) -> list[str]:
    """Return a line for each reason why the rows cannot be divided; see `divide` for the arguments."""
    problems = []
    if not (val < 1 or math.isfinite(val) and val == int(val)):
        problems.append(f"--val is {val:g}: give a share of each class below 1, or a whole number of images")
    rows_without_split = [row for row in rows if not row.split]
    if rows_without_split and len(rows_without_split) < len(rows):
        count = f"{len(rows_without_split):,} of {len(rows):,} images"
        problems.append(f"{count} have no split, first {rows_without_split[0].path}: give all one, or none")
    problems += class_problems({row.classname for row in rows})
    classes = sorted({row.classname for row in rows})
    training_classes = {row.classname for row in rows if row.split == "train"}
    empty_classes = [name for name in classes if name not in training_classes]
    if empty_classes and not rows_without_split and len(classes) > 1:
        nearest_name = get_most_similar_str_to_a_from_b(empty_classes[0], training_classes)
        hint = f' (did you mean "{nearest_name}"?)' if nearest_name else ""
        problems.append(f'{len(empty_classes)} classes have no training image, first "{empty_classes[0]}"{hint}')
    if val >= 0 and any(row.split == "val" for row in rows):
        problems.append("some images are said to be for val already: leave out --val")
    return problems


def class_problems(names: Collection[str]) -> list[str]:
    """Return a line if there are fewer than two classes."""
    if len(names) == 1:
        return [f'there is one class only, "{min(names)}": a classifier needs two or more']
    return []


def as_split(rows: list[Row]) -> dict:
    """Return the content of CoOp's split file, with labels in the order of the class names and absolute paths."""
    label = {name: k for k, name in enumerate(sorted({row.classname for row in rows}))}
    return {part: [[r.path, label[r.classname], r.classname] for r in rows if r.split == part] for part in PARTS}
