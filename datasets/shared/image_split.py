"""Dividing a user's own images into train, val and test."""

import random

from dassl.utils import get_most_similar_str_to_a_from_b
from datasets.base import PARTS

from .image_files import Row


def divide(rows: list[Row], seed: int) -> list[Row]:
    """The same rows, each with a split; by the rule of `Images` where none was said."""
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
