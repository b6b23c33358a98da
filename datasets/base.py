"""The base class of the data sets: split files, few-shot selection, base and new classes."""

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
from dassl.infrastructure.files import SCRATCH, file_hash, scratch_folder, sweep
from dassl.utils import check_availability, mkdir_if_missing, progress, read_json, write_json

from .catalogue import Size, get
from .shared import few_shot_file

PARTS = ("train", "val", "test")
Splits = tuple[list[Datum], list[Datum], list[Datum]]  # of PARTS


class SplitDataset(DatasetBase):
    """A data set read from CoOp's split file: {"train": [[path, label, class name], ...], "val": ..., "test": ...}.

    A data set sets three names, relative to `DATASET.ROOT`. If there is no split file, `raw_splits` may make the splits
    from the annotations. The steps are CoOp's, in its order: split, then `DATASET.NUM_SHOTS` of every class, then the
    base or new half of the classes. `DATASET.FEW_SHOT_SPLIT` is a file that replaces the second step.

    Raises:
        FileNotFoundError: a folder, split file, annotation or image is missing; the message has its path.
        ValueError: a split file or an annotation cannot be read.
    """

    dataset_dir = ""  # in DATASET.ROOT
    image_dir = ""  # in dataset_dir
    split_file = ""  # in dataset_dir; "": no split file, read the annotations or folders each time
    test_only = False  # the classes come from the test split, and nothing is trained on it
    advice = "unpack the images there, or take the split file of your copy"  # for missing images
    listed = False  # True: the paths come from listing folders, so that no image can be missing
    takes_few_shot_file = True  # False: DATASET.FEW_SHOT_SPLIT is refused
    sampling = "dassl"  # DATASET.SAMPLING

    def __init__(self, cfg):
        self.set_paths(cfg.DATASET.ROOT)
        self.sampling = cfg.DATASET.SAMPLING
        train, val, test = self.read_splits()
        if self.test_only:
            train = test  # as in CoOp
        elif cfg.DATASET.FEW_SHOT_SPLIT:
            train, val = self.read_few_shot((train, val, test), cfg)
        elif cfg.DATASET.NUM_SHOTS >= 1:
            train, val = self.few_shot(train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        check_labels(train, val, test, source=self.source())
        train, val, test = subsample_classes(train, val, test, subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        if not self.test_only:
            self.print_small_classes(train, cfg.DATASET.NUM_SHOTS)
        if not self.listed:
            check_images(train + val + test, self.source(), self.advice)
        super().__init__(train_x=train, val=val, test=test)

    def set_paths(self, root: str) -> None:
        self.root = osp.abspath(osp.expanduser(root))
        self.dataset_dir = osp.join(self.root, self.dataset_dir)
        self.image_dir = osp.normpath(osp.join(self.dataset_dir, self.image_dir))
        self.split_path = osp.join(self.dataset_dir, self.split_file)

    def source(self) -> str:
        """Return the origin of the splits, for messages."""
        return self.split_path if osp.isfile(self.split_path) else f"the annotations in {self.dataset_dir}"

    # -------------------------------------------------------------- splits

    def read_splits(self, keep: bool = True) -> Splits:
        """Return the splits of the split file or, if there is none, of the annotations.

        Args:
            keep: write the splits of the annotations as split file.

        Raises:
            FileNotFoundError: there is neither a split file nor the annotations.
        """
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
        """Return train, val and test, read from the data set's own annotations and folders."""
        raise FileNotFoundError("annotations")

    def keep(self, splits: Splits) -> None:
        """Write the split file, unless images are missing: the split would lack them for ever."""
        name, size = type(self).__name__, Size.of(*splits)
        benchmark = get(name)
        if benchmark and size != benchmark.size:
            print(f"{name} is split anew each time until it is whole: it has {size}, but should have {benchmark.size}")
            return
        try:
            save_split(*splits, self.split_path, self.image_dir)
            print(f"{name} was split by CoOp's rule. The split is saved as {self.split_path}")
        except OSError as error:  # a read-only data folder; the next run makes the same split
            print(f"The split is not saved: {error}")

    # -------------------------------------------------------------- few shots

    def few_shot(self, train: list[Datum], val: list[Datum], shots: int, seed: int) -> tuple[list[Datum], list[Datum]]:
        """Return `shots` images of every class for training and at most 4 for validation: the same images as CoOp's.

        The selection is saved in `split_fewshot/` as JSON with relative paths. A selection from another split file is
        made again.

        Args:
            train: training images.
            val: validation images.
            shots: number of training images of a class.
            seed: seed of the selection; below 0: not seeded, and not saved.
        """
        if seed < 0:
            return self.sample(train, val, shots, random.Random())
        name = f"shot_{shots}-seed_{seed}"
        if self.sampling != "dassl":
            name += f"-{self.sampling}"
        path = osp.join(self.dataset_dir, "split_fewshot", f"{name}.json")
        digest = file_hash(self.split_path) if osp.isfile(self.split_path) else self.rows_hash(train + val)
        try:
            selection = read_json(path)
            sweep(osp.dirname(path))
            if selection["split_sha256"] == digest:
                return tuple(from_rows(selection[part], self.image_dir) for part in ("train", "val"))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # missing, or written by other code: select below
        train, val = self.sample(train, val, shots, random.Random(seed))
        rows = {"split_sha256": digest, "train": self.to_rows(train), "val": self.to_rows(val)}
        try:
            write_json(rows, path)
        except OSError as error:  # a read-only data folder; the next run selects the same images
            print(f"The few-shot selection is not saved: {error}")
        return train, val

    def sample(self, train: list[Datum], val: list[Datum], shots: int, rng: random.Random) -> tuple[list, list]:
        """Select from train, then at most 4 of each class from val, in CoOp's order, from one random stream.

        With DATASET.SAMPLING val_first, as CLIP-LoRA's code: from val, then from train. A class with fewer images is
        drawn with replacement.
        """
        if self.sampling == "val_first":
            val = self.generate_fewshot_dataset(val, num_shots=min(shots, 4), repeat=True, rng=rng)
            return self.generate_fewshot_dataset(train, num_shots=shots, repeat=True, rng=rng), val
        train = self.generate_fewshot_dataset(train, num_shots=shots, rng=rng)
        return train, self.generate_fewshot_dataset(val, num_shots=min(shots, 4), rng=rng)

    def read_few_shot(self, splits: Splits, cfg) -> tuple[list[Datum], list[Datum]]:
        """Return the training and val images of the file DATASET.FEW_SHOT_SPLIT; without a val file, val is drawn.

        Args:
            splits: splits of the data set.
            cfg: config of the run.

        Raises:
            ValueError: the file is not of this data set, lacks a class, or has another number of images of a class.
        """
        file, shots = cfg.DATASET.FEW_SHOT_SPLIT, cfg.DATASET.NUM_SHOTS
        folders = (self.root, self.dataset_dir, self.image_dir)
        train, *val = (
            few_shot_file.find_items(few_shot_file.read_lines(path), splits, folders)
            for path in few_shot_file.files_of(file)
        )
        count = Counter(item.label for item in train)
        absent = {item.label: item.classname for item in splits[0] if item.label not in count}
        if absent:
            names = f'{len(absent)} classes of {type(self).__name__}, first "{absent[min(absent)]}"'
            raise ValueError(f"{file} has no image of {names}: give a split of all its classes")
        max_shots = max(count.values())
        if max_shots != shots:
            problem = f"{file} has {max_shots} images of a class, DATASET.NUM_SHOTS is {shots}"
            raise ValueError(f"{problem}: set it to {max_shots}")
        training_paths = {item.impath for item in train}
        if not val:
            rng = random.Random(cfg.SEED if cfg.SEED >= 0 else None)
            candidates = [item for item in splits[1] if item.impath not in training_paths]
            return train, self.sample(splits[0], candidates, shots, rng)[1]
        shared_paths = [item.impath for item in val[0] if item.impath in training_paths]
        if shared_paths:
            problem = f"{file} and its val file have {len(shared_paths)} images in common, first {shared_paths[0]}"
            raise ValueError(f"{problem}: remove them")
        return train, val[0]

    def print_small_classes(self, train: list[Datum], shots: int) -> None:
        """Print the classes that have fewer different training images than `shots`."""
        count = Counter(name for _, name in {(item.impath, item.classname) for item in train})
        small_classes = sorted((n, name) for name, n in count.items() if n < shots)
        if small_classes:
            names = [f"{name} ({n})" for n, name in small_classes]
            if len(names) > 20:
                names = [*names[:20], "..."]
            limit = f"than DATASET.NUM_SHOTS asks for, {shots}"
            number = f"{len(small_classes)} of {len(count)} classes"
            print(f"{number} have fewer training images {limit}: {', '.join(names)}")

    def to_rows(self, items: list[Datum]) -> list[list]:
        return to_rows(items, self.image_dir)

    def rows_hash(self, items: list[Datum]) -> str:
        """Return the SHA-256 of the rows in hexadecimal, which replaces that of a split file if there is none."""
        digest = hashlib.sha256()
        for row in self.to_rows(items):
            digest.update(f"{row}\n".encode())
        return digest.hexdigest()


class DrawnDataset(SplitDataset):
    """An embedded data set, drawn into `DATASET.ROOT` at its first use."""

    image_dir = "images"
    split_file = "split.json"
    is_drawn = True

    def pictures(self) -> Iterator[tuple[str, int, str, Image.Image]]:
        """Yield (split, label, class name, image)."""
        raise NotImplementedError

    def read_splits(self, keep: bool = True) -> Splits:
        sweep(self.root, SCRATCH.format(type(self).__name__))  # left by a process that was killed while drawing
        if not osp.exists(self.split_path):
            self.draw()
        return super().read_splits(keep)

    def draw(self) -> None:
        name, split = type(self).__name__, {"train": [], "val": [], "test": []}
        mkdir_if_missing(self.root)
        # another run may be drawing at the same time: draw into a scratch folder, then move it in one step
        with scratch_folder(self.root, name) as scratch:
            with own_generators():  # a run that draws must have the same random numbers as one that does not
                for part, label, classname, image in progress(self.pictures(), desc=f"drawing {name}", unit="image"):
                    path = osp.join(classname.replace(" ", "_"), f"{part}_{len(split[part]):05d}.png")
                    os.makedirs(osp.join(scratch, type(self).image_dir, osp.dirname(path)), exist_ok=True)
                    image.save(osp.join(scratch, type(self).image_dir, path))
                    split[part].append([path, label, classname])
            write_json(split, osp.join(scratch, self.split_file))
            try:
                os.rename(scratch, self.dataset_dir)
            except OSError as error:
                if not osp.exists(self.split_path):  # if it exists, another run was faster
                    raise FileNotFoundError(
                        f"{self.dataset_dir} is there but lacks {self.split_file}: remove that folder, "
                        f"and {name} is drawn again"
                    ) from error


# ------------------------------------------------------------------ the steps


def read_split(path: str, image_dir: str) -> Splits:
    """Return train, val and test of a split file; image paths in it are relative to `image_dir`.

    Raises:
        ValueError: the file has another form.
    """
    try:
        split = read_json(path)
        return tuple(from_rows(split[part], image_dir) for part in PARTS)
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"{path} is no split file ({error.__cause__ or error}): it should read "
            f'{{"train": [[path, label, class name], ...], "val": ..., "test": ...}}'
        ) from error


def save_split(train: list[Datum], val: list[Datum], test: list[Datum], path: str, image_dir: str) -> None:
    """Write a split file that `read_split` reads."""
    write_json({part: to_rows(items, image_dir) for part, items in zip(PARTS, (train, val, test), strict=True)}, path)


def to_rows(items: list[Datum], image_dir: str) -> list[list]:
    """Return [path, label, class name] of each item, with "/" in paths on every system."""
    paths = [item.impath.removeprefix(image_dir + os.sep).replace(os.sep, "/") for item in items]
    return [[path, item.label, item.classname] for path, item in zip(paths, items, strict=True)]


def from_rows(rows: list[list], image_dir: str) -> list[Datum]:
    """Return the items of [path, label, class name] rows.

    Raises:
        ValueError: a row has another form.
    """
    items = []
    for row in rows:
        path, label, name = row
        if not (isinstance(path, str) and type(label) is int and isinstance(name, str) and path and name):
            raise ValueError(f"{str(row)[:100]} should be a path, a whole number and a class name")
        items.append(Datum(impath=locate(path, image_dir), label=label, classname=name))
    return items


def locate(path: str, folder: str) -> str:
    """Return the path of a file in `folder`.

    Args:
        path: relative to `folder`. A backslash separates folders, as on Windows, unless a file has it in its name.
        folder: any folder.
    """
    full_path = osp.join(folder, path)
    if "\\" in path and not osp.exists(full_path):
        return osp.join(folder, path.replace("\\", "/"))
    return full_path


def subsample_classes(*splits: list[Datum], subsample: str = "all") -> list[list[Datum]]:
    """Return the items of all classes, of the first ceil(n / 2) ("base"), or of the others ("new").

    Base and new classes are relabelled from 0, in the order of their labels.

    Args:
        *splits: lists of items; the first list has every class.
        subsample: all, base or new.

    Raises:
        ValueError: fewer than two classes are left.
    """
    check_availability(subsample, ["all", "base", "new"])
    if subsample == "all":
        return list(splits)
    labels = sorted({item.label for item in splits[0]})
    middle = math.ceil(len(labels) / 2)
    chosen_labels = labels[:middle] if subsample == "base" else labels[middle:]
    relabel = {label: k for k, label in enumerate(chosen_labels)}
    return [
        [Datum(impath=i.impath, label=relabel[i.label], classname=i.classname) for i in items if i.label in relabel]
        for items in splits
    ]


def check_labels(*splits: list[Datum], source: str) -> None:
    """Check that the first split has the labels 0 to n - 1, the others no more, and each label one class name.

    Args:
        *splits: lists of items.
        source: file or folder of the splits, for the message.

    Raises:
        ValueError: the labels or the names are wrong.
    """
    names = {item.label: item.classname for item in splits[0]}
    if sorted(names) != list(range(len(names))):
        raise ValueError(
            f"{source} has the labels {', '.join(map(str, sorted(names)[:5]))} ... for {len(names)} classes to train: "
            f"number them from 0, without a gap"
        )
    for item in (item for items in splits for item in items):
        if names.get(item.label) != item.classname:
            conflict = f'"{names[item.label]}" too' if item.label in names else "no training image"
            raise ValueError(
                f'{source}: the class {item.label} is "{item.classname}" in {item.impath}, but has {conflict}'
            )


def check_images(items: list[Datum], source: str, advice: str) -> None:
    """Check that the images exist.

    Args:
        items: the images.
        source: file or folder that names them, for the message.
        advice: end of the message.

    Raises:
        FileNotFoundError: images are missing; the message has their number and the first three.
    """
    missing = [i.impath for i in items if not osp.exists(i.impath)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(items):,} images in {source} are not there, first "
            f"{', '.join(missing[:3])}: {advice}"
        )
