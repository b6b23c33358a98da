"""What all data sets share: split files, few-shot selection, base and new classes."""

import hashlib
import math
import os
import os.path as osp
import random
from collections import Counter
from collections.abc import Iterator

from PIL import Image

from dassl.data.data_manager import own_generators
from dassl.data.datasets import DatasetBase, Datum
from dassl.files import SCRATCH, file_hash, scratch_folder, sweep
from dassl.utils import check_availability, mkdir_if_missing, progress, read_json, write_json

from .benchmarks import Size, get

PARTS = ("train", "val", "test")
Splits = tuple[list[Datum], list[Datum], list[Datum]]  # of PARTS


class SplitDataset(DatasetBase):
    """A data set read from CoOp's split file: {"train": [[path, label, class name], ...], "val": ..., "test": ...}.

    A data set sets three names, relative to `DATASET.ROOT`; where there is no split file, `raw_splits` may make the
    splits from the annotations. The steps are CoOp's, in its order: split, then `DATASET.NUM_SHOTS` of every class,
    then the base or new half of the classes.

    Raises:
        FileNotFoundError: no folder, split file, annotation or image where it should be; says where.
        ValueError: a split file or an annotation that cannot be read.
    """

    dataset_dir = ""  # in DATASET.ROOT
    image_dir = ""  # in dataset_dir
    split_file = ""  # in dataset_dir; "": always read from the annotations or folders
    test_only = False  # the classes come from the test split, and nothing is trained on it
    advice = "unpack the images there, or take the split file of your copy"  # if some are not there
    listed = False  # the images were found by listing folders, so that none needs looking for

    def __init__(self, cfg):
        self.set_paths(cfg.DATASET.ROOT)
        train, val, test = self.read_splits()
        if self.test_only:
            train = test  # as in CoOp
        elif cfg.DATASET.NUM_SHOTS >= 1:
            train, val = self.few_shot(train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        check_labels(train, val, test, source=self.source())
        train, val, test = subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        if not self.test_only:
            self.tell_fewer(train, cfg.DATASET.NUM_SHOTS)
        if not self.listed:
            check_images(train + val + test, self.source(), self.advice)
        super().__init__(train_x=train, val=val, test=test)

    def set_paths(self, root: str) -> None:
        self.root = osp.abspath(osp.expanduser(root))
        self.dataset_dir = osp.join(self.root, self.dataset_dir)
        self.image_dir = osp.normpath(osp.join(self.dataset_dir, self.image_dir))
        self.split_path = osp.join(self.dataset_dir, self.split_file)

    def source(self) -> str:
        """What the splits were read from, for messages."""
        return self.split_path if osp.isfile(self.split_path) else f"the annotations in {self.dataset_dir}"

    # -------------------------------------------------------------- splits

    def read_splits(self, keep: bool = True) -> Splits:
        """From the split file, or, if there is none, from the annotations; these are then kept as split file."""
        if osp.isfile(self.split_path):
            return read_split(self.split_path, self.image_dir)
        name = type(self).__name__
        for folder in (self.root, self.dataset_dir):
            if not osp.isdir(folder):
                advice = f'give the folder that holds "{osp.basename(self.dataset_dir)}" with --root'
                raise FileNotFoundError(f"{name} needs the folder {folder}, which is not there: {advice}")
        try:
            splits = self.raw_splits()
        except FileNotFoundError as error:
            missing = error.filename or error
            if not self.split_file:
                raise FileNotFoundError(f"{name} lacks {missing}: put it there") from error
            raise FileNotFoundError(
                f"{name} has neither the split file {self.split_path} nor {missing} to make it from: put CoOp's "
                f"{self.split_file} there, or complete the annotations"
            ) from error
        if keep and self.split_file:
            self.keep(splits)
        return splits

    def raw_splits(self) -> Splits:
        """Train, val and test from the data set's own annotations and folders."""
        raise FileNotFoundError("annotations")

    def keep(self, splits: Splits) -> None:
        """Writes the split file, unless the copy is known not to be whole: it would stay like that for ever."""
        name, size = type(self).__name__, Size.of(*splits)
        benchmark = get(name)
        if benchmark and size != benchmark.size:
            print(f"{name} is split anew each time until it is whole: it has {size}, but should have {benchmark.size}")
            return
        try:
            save_split(*splits, self.split_path, self.image_dir)
            print(f"{name} was split by CoOp's rule, which is kept in {self.split_path}")
        except OSError as error:  # a read-only data folder: it is split the same way next time
            print(f"The split is not kept: {error}")

    # -------------------------------------------------------------- few shots

    def few_shot(self, train: list[Datum], val: list[Datum], shots: int, seed: int) -> tuple[list[Datum], list[Datum]]:
        """`shots` images of every class for training and at most 4 for validation: the very ones CoOp takes.

        Kept in `split_fewshot/` as JSON with relative paths; a selection from another split file is made again.
        """
        if seed < 0:
            return self.sample(train, val, shots, random.Random())
        path = osp.join(self.dataset_dir, "split_fewshot", f"shot_{shots}-seed_{seed}.json")
        digest = file_hash(self.split_path) if osp.isfile(self.split_path) else self.rows_hash(train + val)
        try:
            kept = read_json(path)
            sweep(osp.dirname(path))
            if kept["split_sha256"] == digest:
                return tuple(from_rows(kept[part], self.image_dir) for part in ("train", "val"))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # not there yet, or not one of ours: select
        train, val = self.sample(train, val, shots, random.Random(seed))
        rows = {"split_sha256": digest, "train": self.to_rows(train), "val": self.to_rows(val)}
        try:
            write_json(rows, path)
        except OSError as error:  # a read-only data folder: the same images are selected again next time
            print(f"The few-shot selection is not kept: {error}")
        return train, val

    def sample(self, train: list[Datum], val: list[Datum], shots: int, rng: random.Random) -> tuple[list, list]:
        """CoOp's order: first train, then val with at most 4, from one random stream."""
        train = self.generate_fewshot_dataset(train, num_shots=shots, rng=rng)
        return train, self.generate_fewshot_dataset(val, num_shots=min(shots, 4), rng=rng)

    def tell_fewer(self, train: list[Datum], shots: int) -> None:
        """Print which classes have fewer training images than the shots that are asked for."""
        count = Counter(item.classname for item in train)
        fewer = sorted((n, name) for name, n in count.items() if n < shots)
        if fewer:
            names = [f"{name} ({n})" for n, name in fewer]
            names = names if len(names) <= 20 else [*names[:20], "..."]
            asked = f"than DATASET.NUM_SHOTS asks for, {shots}"
            print(f"{len(fewer)} of {len(count)} classes have fewer training images {asked}: {', '.join(names)}")

    def to_rows(self, items: list[Datum]) -> list[list]:
        return to_rows(items, self.image_dir)

    def rows_hash(self, items: list[Datum]) -> str:
        """SHA-256 of the rows, hexadecimal; stands for that of a split file where there is none."""
        digest = hashlib.sha256()
        for row in self.to_rows(items):
            digest.update(f"{row}\n".encode())
        return digest.hexdigest()


class DrawnDataset(SplitDataset):
    """An embedded data set: drawn into `DATASET.ROOT` when it is first asked for."""

    image_dir = "images"
    split_file = "split.json"

    def pictures(self) -> Iterator[tuple[str, int, str, Image.Image]]:
        """Yields (split, label, class name, image)."""
        raise NotImplementedError

    def read_splits(self, keep: bool = True) -> Splits:
        sweep(self.root, SCRATCH.format(type(self).__name__))  # of a drawing that was killed
        if not osp.exists(self.split_path):
            self.draw()
        return super().read_splits(keep)

    def draw(self) -> None:
        name, split = type(self).__name__, {"train": [], "val": [], "test": []}
        mkdir_if_missing(self.root)
        # drawn elsewhere and moved in whole: another run may be drawing at the same time
        with scratch_folder(self.root, name) as scratch:
            with own_generators():  # else a run that draws would go on from other random numbers than one that need not
                for part, label, classname, image in progress(self.pictures(), desc=f"drawing {name}", unit="image"):
                    path = osp.join(classname.replace(" ", "_"), f"{part}_{len(split[part]):05d}.png")
                    os.makedirs(osp.join(scratch, type(self).image_dir, osp.dirname(path)), exist_ok=True)
                    image.save(osp.join(scratch, type(self).image_dir, path))
                    split[part].append([path, label, classname])
            write_json(split, osp.join(scratch, self.split_file))
            try:
                os.rename(scratch, self.dataset_dir)
            except OSError as error:
                if not osp.exists(self.split_path):  # else the other run was faster
                    raise FileNotFoundError(
                        f"{self.dataset_dir} is there but lacks {self.split_file}: remove that folder, "
                        f"and {name} is drawn again"
                    ) from error


# ------------------------------------------------------------------ the steps


def read_split(path: str, image_dir: str) -> Splits:
    """Train, val and test of a split file; image paths in it are relative to `image_dir`."""
    try:
        split = read_json(path)
        return tuple(from_rows(split[part], image_dir) for part in PARTS)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"{path} is no split file ({error.__cause__ or error}): it should read "
            f'{{"train": [[path, label, class name], ...], "val": ..., "test": ...}}'
        ) from error


def save_split(train: list[Datum], val: list[Datum], test: list[Datum], path: str, image_dir: str) -> None:
    """Writes a split file that `read_split` reads."""
    write_json({part: to_rows(items, image_dir) for part, items in zip(PARTS, (train, val, test), strict=True)}, path)


def to_rows(items: list[Datum], image_dir: str) -> list[list]:
    """Return [path, label, class name] of each item, with "/" in paths on every system."""
    paths = [item.impath.removeprefix(image_dir + os.sep).replace(os.sep, "/") for item in items]
    return [[path, item.label, item.classname] for path, item in zip(paths, items, strict=True)]


def from_rows(rows: list[list], image_dir: str) -> list[Datum]:
    """Return the items of [path, label, class name] rows. Raises ValueError for a row that is none."""
    items = []
    for row in rows:
        path, label, name = row
        if not (isinstance(path, str) and type(label) is int and isinstance(name, str) and path and name):
            raise ValueError(f"{str(row)[:100]} should be a path, a whole number and a class name")
        items.append(Datum(impath=locate(path, image_dir), label=label, classname=name))
    return items


def locate(path: str, folder: str) -> str:
    """Return a path relative to `folder`, which may be written as on Windows, with backslashes, as one of this system.

    A file whose name has a backslash is found, too.
    """
    joined = osp.join(folder, path)
    if "\\" in path and not osp.exists(joined):
        return osp.join(folder, path.replace("\\", "/"))
    return joined


def subsample_classes(*splits: list[Datum], subsample: str = "all") -> list[list[Datum]]:
    """All classes, the first ceil(n / 2) ("base") or the others ("new"), relabelled from 0 in order of their labels.

    Args:
        splits: lists of items, the first of which has every class.
        subsample: all, base or new.
    """
    check_availability(subsample, ["all", "base", "new"])
    if subsample == "all":
        return list(splits)
    labels = sorted({item.label for item in splits[0]})
    half = math.ceil(len(labels) / 2)
    chosen = labels[:half] if subsample == "base" else labels[half:]
    relabel = {label: k for k, label in enumerate(chosen)}
    return [
        [Datum(impath=i.impath, label=relabel[i.label], classname=i.classname) for i in items if i.label in relabel]
        for items in splits
    ]


def check_labels(*splits: list[Datum], source: str) -> None:
    """Raises ValueError unless the labels of the first are 0 to n - 1, all others among them, and each has one name."""
    names = {item.label: item.classname for item in splits[0]}
    if sorted(names) != list(range(len(names))):
        raise ValueError(
            f"{source} has the labels {', '.join(map(str, sorted(names)[:5]))} ... for {len(names)} classes to train: "
            f"number them from 0, without a gap"
        )
    for item in (item for items in splits for item in items):
        if names.get(item.label) != item.classname:
            known = f'"{names[item.label]}" too' if item.label in names else "no training image"
            raise ValueError(
                f'{source}: the class {item.label} is "{item.classname}" in {item.impath}, but has {known}'
            )


def check_images(items: list[Datum], source: str, advice: str) -> None:
    """Raises FileNotFoundError with the number and the first three of those images that are not there."""
    missing = [i.impath for i in items if not osp.exists(i.impath)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(items):,} images that {source} names are not there, first "
            f"{', '.join(missing[:3])}: {advice}"
        )
