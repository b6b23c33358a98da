"""A user's own images, for `train.py --images`; `shared/image_files.py` describes the folders and lists it reads."""

import os.path as osp
import random
from collections import Counter

from tabulate import tabulate

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import write_json

from .base import SplitDataset, Splits, read_split
from .shared.image_files import Row, find_images, find_unreadable, listing, print_lines, raise_problems, same_content
from .shared.image_split import as_split, class_problems, describe_copies, divide, split_problems


@DATASET_REGISTRY.register()
class Images(SplitDataset):
    """The images of `DATASET.IMAGES`, a folder, CSV or JSON file.

    Images without a split are shuffled by `SEED`. Half of every class is for training, a fifth (or `VAL`) for
    validation, the rest for test; a class of few images has a training image first. Images with the same content share
    a split. The split is saved as `split.json` in the output directory, in CoOp's format. A resumed run and an
    evaluation read it, so that images added later do not change it.

    With `ALL_TEST` the images are not divided. Those of `TEST.SPLIT` are read; images without a split are for test.

    Raises:
        FileNotFoundError: nothing at `DATASET.IMAGES`, or no image in it.
        ValueError: fewer than two classes, a class without training image, images that cannot be read, or no image for
            val although a setting needs one. Several problems are printed, each in a line.
    """

    advice = "put them back, or take another --output-dir"
    takes_few_shot_file = False  # a list of images has a column for the split
    ask_for_val = "give --val 0.2 in training, a share or a number of images of each class, and another --output-dir"

    def __init__(self, cfg):
        self.cfg = cfg
        self.saved_split = osp.join(cfg.OUTPUT_DIR, "split.json")
        super().__init__(cfg)
        self.check_val()
        for split, items in (("test", self.test), ("val", self.val)):
            without = set(self.lab2cname) - {item.label for item in items}
            if items and without:
                names = ", ".join(sorted(self.lab2cname[label] for label in without))
                print(f"{len(without)} of {self.num_classes} classes have no {split} image: {names}")
        if not cfg.DATASET.ALL_TEST:
            print(self.class_balance())

    def class_balance(self, limit: int = 20) -> str:
        """Return a table of the number of images of each class and split, ordered by the training images.

        Args:
            limit: largest number of rows; of more classes the smallest and the largest are shown.
        """
        splits = {"train": self.train_x, "val": self.val, "test": self.test}
        counts = {split: Counter(item.label for item in items) for split, items in splits.items()}
        labels = sorted(self.lab2cname, key=lambda label: (counts["train"][label], label))
        rows = [[self.lab2cname[label], *(counts[split][label] for split in splits)] for label in labels]
        if len(rows) > limit:
            n_shown = limit // 2
            rows = [*rows[:n_shown], [f"... {len(rows) - 2 * n_shown:,} more classes", "", "", ""], *rows[-n_shown:]]
        total = [f"all {len(labels):,} classes", *(len(items) for items in splits.values())]
        return tabulate([*rows, total], ["images a class", *splits], disable_numparse=[0], missingval="")

    def check_val(self) -> None:
        cfg = self.cfg
        if self.val or cfg.DATASET.ALL_TEST:
            return
        if cfg.DATASET.VAL > 0:
            setting = "DATASET.VAL"
        elif cfg.TEST.SPLIT == "val":
            setting = "TEST.SPLIT val"
        elif cfg.TEST.FINAL_MODEL == "best_val":
            setting = "TEST.FINAL_MODEL best_val"
        else:
            return
        raise ValueError(f"no image is for val, which {setting} asks for: {self.ask_for_val}")

    def source(self) -> str:
        return self.saved_split

    def read_splits(self, keep: bool = True) -> Splits:
        if self.cfg.DATASET.ALL_TEST:
            return self.read_evaluated()
        source, keys = self.cfg.DATASET.IMAGES, self.cfg.DATASET
        rows, problems = find_images(source)
        if osp.exists(self.saved_split) and osp.exists(osp.join(self.cfg.OUTPUT_DIR, "config.yaml")):
            splits = read_split(self.saved_split, "")
            new_images = {row.path for row in rows} - {item.impath for part in splits for item in part}
            print(f"Going on with the split of {self.saved_split}")
            if new_images:
                print(f"{len(new_images):,} images that are not in it play no part: take another --output-dir for them")
            return splits
        readable_rows = self.drop_unreadable(rows, problems)
        problems += split_problems(readable_rows, keys.VAL)
        raise_problems(source, problems)
        originals = same_content([row.path for row in readable_rows])
        folder = source if osp.isdir(source) else osp.dirname(source)
        print_lines(describe_copies(readable_rows, originals, folder))
        write_json(as_split(divide(readable_rows, self.cfg.SEED, keys.VAL, originals)), self.saved_split)
        return read_split(self.saved_split, "")

    def read_evaluated(self) -> Splits:
        """Read the images of `TEST.SPLIT`.

        Their labels are those of the model, if the model knows all of their classes; else they are numbered anew.
        """
        source, part = self.cfg.DATASET.IMAGES, self.cfg.TEST.SPLIT
        rows, problems = find_images(source)
        names = sorted({row.classname for row in rows})
        has_splits = any(row.split for row in rows)
        rows = [row for row in rows if (row.split or "test") == part]
        if not rows and not problems:
            advice = "there is nothing to evaluate"
            if part == "val":
                advice = "they are not divided, all are for test: leave out TEST.SPLIT"
                if has_splits:
                    advice = self.ask_for_val
            problems.append(f"{source} has no {part} images: {advice}")
        rows = self.drop_unreadable(rows, problems)
        model_classes = list(self.cfg.DATASET.CLASSES)
        if model_classes and set(names) <= set(model_classes):
            names = model_classes
        elif model_classes:
            print(f"Not all of these classes were trained: the {len(names)} of the images alone are told apart")
        raise_problems(source, problems + class_problems(names))
        items = [Datum(row.path, names.index(row.classname), classname=row.classname) for row in rows]
        # the training split is never read, but the list of classes is taken from it
        train = [Datum(rows[0].path, label, classname=name) for label, name in enumerate(names)]
        return (train, items, []) if part == "val" else (train, [], items)

    def few_shot(self, train, val, shots, seed):
        if self.cfg.DATASET.ALL_TEST:
            return train, val
        return self.sample(train, val, shots, random.Random(seed if seed >= 0 else None))  # nothing is saved

    def print_small_classes(self, train: list[Datum], shots: int) -> None:
        if not self.cfg.DATASET.ALL_TEST:
            super().print_small_classes(train, shots)

    def drop_unreadable(self, rows: list[Row], problems: list[str]) -> list[Row]:
        """Return the rows whose images can be read, and print the others.

        Args:
            rows: all images.
            problems: gets a line if an image cannot be read and none may be left out, or if a class has none left.
        """
        unreadable = find_unreadable([row.path for row in rows], "reading all images")
        if not unreadable:
            return rows
        print_lines(listing([f"{path}: {reason}" for path, reason in unreadable.items()]))
        count = f"{len(unreadable):,} of {len(rows):,} images cannot be read, see above"
        readable_rows = [row for row in rows if row.path not in unreadable]
        if not self.cfg.DATASET.SKIP_UNREADABLE:
            install = next((reason for reason in unreadable.values() if "pip install" in reason), "")
            advice = install or "replace or remove them"
            problems.append(f"{count}: {advice}, or leave them out with --skip-unreadable")
            return rows  # all of them, so that the checks that follow report no class as empty
        print(f"{count}; they are left out")
        lost_classes = sorted({row.classname for row in rows} - {row.classname for row in readable_rows})
        if lost_classes:
            problems.append(f"no image of {', '.join(lost_classes)} can be read: replace them, or remove the class")
        return readable_rows
