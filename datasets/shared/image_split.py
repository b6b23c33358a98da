"""Dividing a user's own images into train, val and test."""

import math
import random

from dassl.utils import get_most_similar_str_to_a_from_b
from datasets.base import PARTS

from .image_files import Row


def divide(rows: list[Row], seed: int, val: float = -1.0) -> list[Row]:
    """The same rows, each with a split; by the rule of `Images` where none was said.

    Args:
        rows: all with a split, or none.
        seed: of the shuffling; negative: not seeded.
        val: of each class, a share below 1 or a number of images, for validation. Negative: a fifth where none has a
            split. Where all have one, and none is for val, they are taken from the training images.
    """
    if not (val < 1 or math.isfinite(val) and val == int(val)):
        raise ValueError(f"--val is {val:g}: give a share of each class below 1, or a whole number of images")
    unsaid = [row for row in rows if not row.split]
    if unsaid and len(unsaid) < len(rows):
        some = f"{len(unsaid):,} of {len(rows):,} images"
        raise ValueError(f"{some} have no split, first {unsaid[0].path}: give all one, or none")
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
    rng, divided = random.Random(seed if seed >= 0 else None), []
    if not unsaid:
        return rows if val < 0 else val_from_train(rows, rng, val)
    for of_class in classes.values():
        n = len(of_class)
        n_train = max(1, round(0.5 * n))
        n_val = max(0, min(wanted(n, 0.2 if val < 0 else val), n - n_train - 1))  # one at least is for test
        parts = ["train"] * n_train + ["val"] * n_val + ["test"] * (n - n_train - n_val)
        divided += [row._replace(split=part) for row, part in zip(rng.sample(of_class, n), parts, strict=True)]
    return divided


def val_from_train(rows: list[Row], rng: random.Random, val: float) -> list[Row]:
    """The same rows, of which some training images of each class, but never the last one, now are for val."""
    if any(row.split == "val" for row in rows):
        raise ValueError("some images are said to be for val already: leave out --val")
    train, moved = {}, set()
    for row in rows:
        if row.split == "train":
            train.setdefault(row.classname, []).append(row)
    for of_class in train.values():
        moved.update(rng.sample(of_class, min(wanted(len(of_class), val), len(of_class) - 1)))
    return [row._replace(split="val") if row in moved else row for row in rows]


def wanted(n: int, val: float) -> int:
    """How many of `n` images a share or a number of images is."""
    return round(val * n) if val < 1 else int(val)


def check_classes(names: list[str]) -> None:
    if len(names) < 2:
        raise ValueError(f'there is one class only, "{names[0]}": a classifier needs two or more')


def as_split(rows: list[Row]) -> dict:
    """CoOp's split file, labels in order of the class names, with absolute paths."""
    label = {name: k for k, name in enumerate(sorted({row.classname for row in rows}))}
    return {part: [[r.path, label[r.classname], r.classname] for r in rows if r.split == part] for part in PARTS}
