"""A user's own images, for `train.py --images`: no code, no split file; `shared/image_files.py` says what is taken."""

import os.path as osp
import random
from collections import Counter

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.utils import write_json

from .base import SplitDataset, Splits, read_split
from .shared.image_files import Row, find_images, listing, unreadable
from .shared.image_split import as_split, check_classes, divide


@DATASET_REGISTRY.register()
class Images(SplitDataset):
    """The images of `DATASET.IMAGES`, a folder, CSV or JSON file.

    Where they come without a split, half of every class is for training, a fifth (or `VAL`) for validation, the rest
    for test, shuffled by `SEED`; of few images the training gets the first. The split is kept as `split.json` in the
    output directory, in CoOp's format, so that a run goes on with it, and is evaluated on it, whatever is added
    meanwhile. With `ALL_TEST` nothing is divided, and only what is for `TEST.SPLIT` is taken: all that come without a
    split are for test.

    Raises:
        FileNotFoundError: nothing at `DATASET.IMAGES`, or no image in it.
        ValueError: fewer than two classes, a class without training image, images that cannot be read, none for val
            where val is asked for.
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
        prompts = Counter(name.replace("_", " ").lower() for name in self.classnames)
        for name in (name for name, count in prompts.items() if count > 1):
            print(f'several classes read as "{name}" to CLIP, which cannot tell them apart')

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
        rows = find_images(self.cfg.DATASET.IMAGES)
        if osp.exists(self.kept) and osp.exists(osp.join(self.cfg.OUTPUT_DIR, "config.yaml")):
            splits = read_split(self.kept, "")
            added = {row.path for row in rows} - {item.impath for part in splits for item in part}
            print(f"Going on with the split of {self.kept}")
            if added:
                print(f"{len(added):,} images that are not in it play no part: take another --output-dir for them")
            return splits
        write_json(as_split(divide(self.readable(rows), self.cfg.SEED, self.cfg.DATASET.VAL)), self.kept)
        return read_split(self.kept, "")

    def read_evaluated(self) -> Splits:
        """All that is for `TEST.SPLIT`, among the model's classes if these are some of them."""
        rows, part = find_images(self.cfg.DATASET.IMAGES), self.cfg.TEST.SPLIT
        names = sorted({row.classname for row in rows})
        divided = any(row.split for row in rows)
        rows = self.readable([row for row in rows if (row.split or "test") == part])
        if not rows:
            advice = "there is nothing to evaluate"
            if part == "val":
                advice = self.ask_for_val if divided else "they are not divided, all are for test: leave out TEST.SPLIT"
            raise ValueError(f"{self.cfg.DATASET.IMAGES} has no {part} images: {advice}")
        known = list(self.cfg.DATASET.CLASSES)
        if known and set(names) <= set(known):
            names = known
        elif known:
            print(f"Not all of these classes were trained: the {len(names)} of the images alone are told apart")
        check_classes(names)
        items = [Datum(row.path, names.index(row.classname), classname=row.classname) for row in rows]
        train = [Datum(rows[0].path, label, classname=name) for label, name in enumerate(names)]  # for its classes only
        return (train, items, []) if part == "val" else (train, [], items)

    def few_shot(self, train, val, shots, seed):
        if self.cfg.DATASET.ALL_TEST:
            return train, val
        return self.sample(train, val, shots, random.Random(seed if seed >= 0 else None))  # kept nowhere but in OUT

    def readable(self, rows: list[Row]) -> list[Row]:
        problems = unreadable([row.path for row in rows], "reading all images")
        if not problems:
            return rows
        print("\n".join(listing([f"{path}: {reason}" for path, reason in problems.items()])))
        told = f"{len(problems):,} of {len(rows):,} images cannot be read, see above"
        if not self.cfg.DATASET.SKIP_UNREADABLE:
            install = next((reason for reason in problems.values() if "pip install" in reason), "")
            raise ValueError(f"{told}: {install or 'replace or remove them'}, or leave them out with --skip-unreadable")
        print(f"{told}; they are left out")
        return [row for row in rows if row.path not in problems]
