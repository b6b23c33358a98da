"""A user's own images, for `train.py --images`: no code, no split file; `shared/image_files.py` says what is taken."""

import os.path as osp
import random
from collections import Counter

from tabulate import tabulate

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import write_json

from .base import SplitDataset, Splits, read_split
from .shared.image_files import Row, find_images, listing, print_lines, raise_problems, same_content, unreadable
from .shared.image_split import as_split, class_problems, describe_copies, divide, split_problems


@DATASET_REGISTRY.register()
class Images(SplitDataset):
    """The images of `DATASET.IMAGES`, a folder, CSV or JSON file.

    Where they come without a split, half of every class is for training, a fifth (or `VAL`) for validation, the rest
    for test, shuffled by `SEED`; of few images the training gets the first. The split is kept as `split.json` in the
    output directory, in CoOp's format, so that a run goes on with it, and is evaluated on it, whatever is added
    meanwhile. Images of one content share a split.

    With `ALL_TEST` nothing is divided, and only what is for `TEST.SPLIT` is taken: all that come without a split are
    for test.

    Raises:
        FileNotFoundError: nothing at `DATASET.IMAGES`, or no image in it.
        ValueError: fewer than two classes, a class without training image, images that cannot be read, none for val
            where val is asked for. Of several such problems each is printed.
    """

    advice = "put them back, or take another --output-dir"
    ask_for_val = "give --val 0.2 in training, a share or a number of images of each class, and another --output-dir"

    def __init__(self, cfg):
        self.cfg = cfg
        self.kept = osp.join(cfg.OUTPUT_DIR, "split.json")
        super().__init__(cfg)
        self.check_val()
        for split, items in (("test", self.test), ("val", self.val)):
            without = set(self.lab2cname) - {item.label for item in items}
            if items and without:
                names = ", ".join(sorted(self.lab2cname[label] for label in without))
                print(f"{len(without)} of {self.num_classes} classes have no {split} image: {names}")
        if not cfg.DATASET.ALL_TEST:
            print(self.class_balance())

    def class_balance(self, most: int = 20) -> str:
        """Return a table of the images of each class and split; of more than `most` classes the smallest and largest.

        The classes are in the order of their training images.
        """
        splits = {"train": self.train_x, "val": self.val, "test": self.test}
        counts = {split: Counter(item.label for item in items) for split, items in splits.items()}
        labels = sorted(self.lab2cname, key=lambda label: (counts["train"][label], label))
        rows = [[self.lab2cname[label], *(counts[split][label] for split in splits)] for label in labels]
        if len(rows) > most:
            half = most // 2
            rows = [*rows[:half], [f"... {len(rows) - 2 * half:,} more classes", "", "", ""], *rows[-half:]]
        total = [f"all {len(labels):,} classes", *(len(items) for items in splits.values())]
        return tabulate([*rows, total], ["images a class", *splits], disable_numparse=[0], missingval="")

    def check_val(self) -> None:
        cfg = self.cfg
        asks = {"DATASET.VAL": cfg.DATASET.VAL > 0, "TEST.SPLIT val": cfg.TEST.SPLIT == "val"}
        asks["TEST.FINAL_MODEL best_val"] = cfg.TEST.FINAL_MODEL == "best_val"
        if any(asks.values()) and not self.val and not cfg.DATASET.ALL_TEST:
            first = next(key for key in asks if asks[key])
            raise ValueError(f"no image is for val, which {first} asks for: {self.ask_for_val}")

    def source(self) -> str:
        return self.kept

    def read_splits(self, keep: bool = True) -> Splits:
        if self.cfg.DATASET.ALL_TEST:
            return self.read_evaluated()
        source, keys = self.cfg.DATASET.IMAGES, self.cfg.DATASET
        rows, problems = find_images(source)
        if osp.exists(self.kept) and osp.exists(osp.join(self.cfg.OUTPUT_DIR, "config.yaml")):
            splits = read_split(self.kept, "")
            added = {row.path for row in rows} - {item.impath for part in splits for item in part}
            print(f"Going on with the split of {self.kept}")
            if added:
                print(f"{len(added):,} images that are not in it play no part: take another --output-dir for them")
            return splits
        readable = self.readable(rows, problems)
        problems += split_problems(readable, keys.VAL)
        raise_problems(source, problems)
        originals = same_content([row.path for row in readable])
        folder = source if osp.isdir(source) else osp.dirname(source)
        print_lines(describe_copies(readable, originals, folder))
        write_json(as_split(divide(readable, self.cfg.SEED, keys.VAL, originals)), self.kept)
        return read_split(self.kept, "")

    def read_evaluated(self) -> Splits:
        """Read all that is for `TEST.SPLIT`, among the model's classes if these are some of them."""
        source, part = self.cfg.DATASET.IMAGES, self.cfg.TEST.SPLIT
        rows, problems = find_images(source)
        names = sorted({row.classname for row in rows})
        divided = any(row.split for row in rows)
        rows = [row for row in rows if (row.split or "test") == part]
        if not rows and not problems:
            advice = "there is nothing to evaluate"
            if part == "val":
                advice = self.ask_for_val if divided else "they are not divided, all are for test: leave out TEST.SPLIT"
            problems.append(f"{source} has no {part} images: {advice}")
        rows = self.readable(rows, problems)
        known = list(self.cfg.DATASET.CLASSES)
        if known and set(names) <= set(known):
            names = known
        elif known:
            print(f"Not all of these classes were trained: the {len(names)} of the images alone are told apart")
        raise_problems(source, problems + class_problems(names))
        items = [Datum(row.path, names.index(row.classname), classname=row.classname) for row in rows]
        train = [Datum(rows[0].path, label, classname=name) for label, name in enumerate(names)]  # for its classes only
        return (train, items, []) if part == "val" else (train, [], items)

    def few_shot(self, train, val, shots, seed):
        if self.cfg.DATASET.ALL_TEST:
            return train, val
        return self.sample(train, val, shots, random.Random(seed if seed >= 0 else None))  # kept nowhere but in OUT

    def tell_fewer(self, train: list[Datum], shots: int) -> None:
        if not self.cfg.DATASET.ALL_TEST:
            super().tell_fewer(train, shots)

    def readable(self, rows: list[Row], problems: list[str]) -> list[Row]:
        """Return the rows whose images can be read; tell the others, and put among the problems what they prevent."""
        unread = unreadable([row.path for row in rows], "reading all images")
        if not unread:
            return rows
        print_lines(listing([f"{path}: {reason}" for path, reason in unread.items()]))
        count = f"{len(unread):,} of {len(rows):,} images cannot be read, see above"
        left = [row for row in rows if row.path not in unread]
        if not self.cfg.DATASET.SKIP_UNREADABLE:
            install = next((reason for reason in unread.values() if "pip install" in reason), "")
            advice = install or "replace or remove them"
            problems.append(f"{count}: {advice}, or leave them out with --skip-unreadable")
            return rows  # with them, so that only what else is wrong is told, too
        print(f"{count}; they are left out")
        lost = sorted({row.classname for row in rows} - {row.classname for row in left})
        if lost:
            problems.append(f"no image of {', '.join(lost)} can be read: replace them, or remove the class")
        return left
