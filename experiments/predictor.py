"""A trained model as a classifier of images, from its output directory alone: no data set is needed."""

import csv
import io
import os
import os.path as osp
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from dassl.data.data_manager import needed_side
from dassl.data.datasets import DatasetBase, Datum
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability, end_with_parent, on_white, progress, read_photo, reduced
from dassl.utils.images import image_problem, images_in
from trainers.shared.classes import check_different

from .calibrate import temperature_of
from .config import CLASSES, read_classes, setup_cfg
from .exported import is_exported, open_exported
from .flags import parse
from .seen import Seen


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image."""

    image: str  # path; of an image given as such "image <number>"
    classname: str  # the likeliest; "" if the image could not be read
    probability: float  # its softmax probability among the classes, calibrated where the model is: see `calibrate`
    top: list[tuple[str, float]]  # the likeliest classes with their probabilities, in order
    error: str = ""  # why the image could not be read
    seen: str = ""  # "train", "val": the model was trained on this image, or chosen by it; see `Seen`
    unsure: bool = False  # the probability is below the threshold that was asked for
    every: tuple[float, ...] = ()  # probabilities of all classes, in the order of `Predictor.classnames`, on request


class Predictor:
    """A trained model, ready to classify.

    Attributes:
        classnames: in the order of their labels.
        temperature: T of the probabilities softmax(logits / T), found on val by `calibrate`; None: none was.

    Args:
        model_dir: output directory of a training, or of a zero-shot run; or a folder that export.py made.
        classes: names to choose between; None: those of the training.
        epoch: of the checkpoint; None: the best on val if kept, else the last.
        template: prompt with {} for the class name; "": that of the training.
        device: "cpu" or "cuda"; None: a GPU if there is one.
        strength: of the change of weights, from 0 to 1, or "auto"; None: that of the training.

    Raises:
        FileNotFoundError: no run or no checkpoint in `model_dir`.
        ValueError: the model cannot take these classes or this strength, or the checkpoint does not fit.
    """

    temperature: float | None = None

    def __init__(
        self,
        model_dir,
        classes: list[str] | None = None,
        epoch: int | None = None,
        template: str = "",
        device: str | None = None,
        strength: float | str | None = None,
    ):
        model_dir = osp.expanduser(str(model_dir))
        if device:
            check_availability(device, ["cpu", "cuda"])
        if classes is not None:
            check_different(classes)
        if is_exported(model_dir):
            if strength is not None or epoch is not None:
                raise ValueError(f"{model_dir} is exported, at one strength and epoch: export again for another")
            vars(self).update(open_exported(model_dir, classes, template, device))
            return
        if not osp.exists(osp.join(model_dir, "config.yaml")):
            raise FileNotFoundError(f"{model_dir} has no config.yaml: give the --output-dir of a training")
        with redirect_stdout(io.StringIO()):  # what a training would log
            argv = ["--eval-only", "--model-dir", model_dir]
            argv += ["--template", template] if template else []
            argv += [] if strength is None else ["--strength", str(strength)]
            argv += ["USE_CUDA", str(device == "cuda")] if device else []
            cfg = setup_cfg(parse(argv), with_data=False)
            self.classnames = known_classes(model_dir) if classes is None else list(classes)
            self.trainer = without_data(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), self.classnames)(cfg)
            self.trainer.load_model(model_dir, epoch=epoch)
            self.temperature = temperature_of(self.trainer, model_dir, epoch)
            self.transform, self.side = build_transform(cfg, is_train=False), needed_side(cfg, is_train=False)
        self.seen = Seen(model_dir)
        self.trainer.set_model_mode("eval")
        self.batch_size, self.workers = cfg.DATALOADER.TEST.BATCH_SIZE, cfg.DATALOADER.NUM_WORKERS

    def __call__(
        self, images: Iterable[str | Image.Image], top: int = 5, threshold: float = 0.0, every: bool = False
    ) -> Iterator[Prediction]:
        """Yields a `Prediction` an image, in order, as the batches are done.

        Args:
            images: paths of images or of folders with images, which are turned upright as their EXIF says, or PIL
                images of any size and mode, which are not turned. Where they are transparent, white is behind them.
            top: how many classes to name.
            threshold: probability below which a prediction is marked as unsure.
            every: whether the probabilities of all classes are told.
        """
        if isinstance(images, (str, os.PathLike, Image.Image)):
            images = [images]
        images = [image for given in images for image in expand(given)]
        workers = self.workers if len(images) > self.batch_size else 0
        loader = DataLoader(
            Reader(images, self.transform, self.side),
            self.batch_size,
            num_workers=workers,
            collate_fn=list,
            worker_init_fn=end_with_parent,
        )
        with progress(total=len(images), desc="predicting", unit="image", leave=False) as bar:
            for batch in loader:
                yield from self.predict(batch, top, threshold, every)
                bar.update(len(batch))

    @torch.no_grad()
    def predict(
        self, batch: list[tuple[str, torch.Tensor | None, str]], top: int, threshold: float, every: bool
    ) -> Iterator[Prediction]:
        read = [tensor for _, tensor, _ in batch if tensor is not None]
        if read:
            logits = self.trainer.model_inference(torch.stack(read).to(self.trainer.device))
            if not logits.amax(1).isfinite().all():
                raise FloatingPointError("the model gives infinite or NaN scores: it is no use, train it again")
            shares = (logits.float() / (self.temperature or 1.0)).softmax(dim=-1)
            best = shares.topk(min(top, len(self.classnames)))
            all_of = shares.tolist() if every else [()] * len(read)
            rows = iter(zip(best.indices.tolist(), best.values.tolist(), all_of, strict=True))
        for name, tensor, error in batch:
            if tensor is None:
                yield Prediction(name, "", 0.0, [], error)
            else:
                classes, values, row = next(rows)
                ranked = [(self.classnames[k], p) for k, p in zip(classes, values, strict=True)]
                seen, unsure = self.seen.part_of(name), values[0] < threshold
                yield Prediction(name, *ranked[0], ranked, "", seen, unsure, tuple(row))


class Reader(Dataset):
    """(name, float [3, H, W] or None, why it could not be read)."""

    def __init__(self, images: list[str | Image.Image], transform, side: int):
        self.images, self.transform, self.side = images, transform, side

    def __len__(self):
        return len(self.images)

    def __getitem__(self, k):
        image = self.images[k]
        if isinstance(image, Image.Image):
            return f"image {k + 1}", self.transform(reduced(on_white(image), self.side)), ""
        problem = image_problem(image, decode=False)
        if problem:
            return image, None, problem
        try:
            return image, self.transform(read_photo(image, self.side)), ""
        except OSError as error:
            return image, None, str(error)


def expand(given: str | Image.Image) -> list[str | Image.Image]:
    """The images below a folder, sorted; anything else as it is."""
    if isinstance(given, Image.Image):
        return [given]
    given = osp.expanduser(os.fspath(given))
    if not osp.isdir(given):
        return [given]
    listing = images_in(given)
    for line in listing.omissions(given):
        print(line, file=sys.stderr)
    return listing.images or [given]  # an empty one is told among the results


def names_in(text: str) -> list[str]:
    """Class names with commas between them; one with a comma stands in double quotes."""
    return [name.strip() for row in csv.reader([text]) for name in row if name.strip()]


def known_classes(model_dir: str) -> list[str]:
    path = osp.join(model_dir, CLASSES)
    if not osp.exists(path):
        raise FileNotFoundError(f'{model_dir} has no {CLASSES}: give the classes with --classes "a,b,c"')
    return read_classes(path)


def without_data(trainer: type, classnames: list[str]) -> type:
    """The trainer with class names in place of a data set."""

    def build_data_loader(self):
        dataset = DatasetBase(train_x=[Datum(label=k, classname=name) for k, name in enumerate(classnames)])
        self.dm = SimpleNamespace(dataset=dataset, num_classes=len(classnames), lab2cname=dataset.lab2cname)
        self.num_classes, self.lab2cname = len(classnames), dataset.lab2cname
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None

    return type(trainer.__name__, (trainer,), {"build_data_loader": build_data_loader})
