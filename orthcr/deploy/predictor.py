"""A classifier of images from the output directory of a training. It needs no data set."""

import csv
import io
import os
import os.path as osp
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from threading import Lock

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from dassl.data.transforms import build_transform
from dassl.data.workers import read_in_order
from dassl.infrastructure.console import silence
from dassl.infrastructure.images import image_problem, images_in, open_image
from dassl.utils import as_photo, check_availability, progress, read_photo
from orthcr.deploy.exported import is_exported, open_exported
from orthcr.run.seen import SeenImages
from orthcr.run.spec import RunSpec
from orthcr.run.temperature import temperature_of
from orthcr.run.trained import check_is_training, load_trained, read_model_classes
from trainers.base import ClipTrainer
from trainers.shared.classes import check_different

IN_MEMORY = "uint8 arrays [H, W], [H, W, 3] or [H, W, 4], uint8 tensors [3, H, W], PIL images, bytes and open files"


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image."""

    image: str  # path; for an image from memory "image <number>", counted from 1
    classname: str  # the likeliest class; "" if the image cannot be read
    probability: float  # softmax probability of that class, calibrated if the model is: see `calibrate`
    top: list[tuple[str, float]]  # the likeliest classes with their probabilities, in order
    error: str = ""  # the reason if the image cannot be read
    seen: str = ""  # "train" or "val": the model was trained on this image, or chosen by it; see `SeenImages`
    unsure: bool = False  # the probability is below the threshold
    every: tuple[float, ...] = ()  # probabilities of all classes, in the order of `Predictor.classnames`, on request


class Predictor:
    """A trained model, ready to classify, from any number of threads.

    Attributes:
        classnames: in the order of their labels.
        temperature: T of the probabilities softmax(logits / T), fitted on val by `calibrate`. None without
            calibration, and for an exported model, whose logits are divided by T already.

    Args:
        model_dir: output directory of a training, or of a zero-shot run; or a folder that export.py made.
        classes: names to choose between; None: the classes of the training.
        epoch: epoch of the checkpoint; None: the best on val if kept, else the last.
        template: prompt with {} for the class name; "": the template of the training.
        device: "cpu" or "cuda"; None: a GPU if there is one.
        strength: fraction of the update, from 0 to 1, or "auto"; None: the strength of the training.

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
        self._lock = Lock()  # a model caches features: threads must not compute at the same time
        if device:
            check_availability(device, ["cpu", "cuda"])
        if isinstance(classes, str):
            raise ValueError(f'classes is one text, "{classes}": give a list of names, as ["cat", "dog"]')
        if classes is not None:
            check_different(classes)
        if is_exported(model_dir):
            if strength is not None or epoch is not None:
                raise ValueError(f"{model_dir} is exported, at one strength and epoch: export again for another")
            with silence():
                vars(self).update(open_exported(model_dir, classes, template, device))
            return
        spec = RunSpec(
            eval_only=True,
            model_dir=model_dir,
            load_epoch=epoch,
            template=template or None,
            strength=None if strength is None else str(strength),
            opts=("USE_CUDA", str(device == "cuda")) if device else (),
        )
        check_is_training(model_dir)
        with silence():  # hides the log of a training
            self.classnames = read_model_classes(model_dir) if classes is None else list(classes)
            self.trainer = load_trained(spec, self.classnames)
            self.temperature = temperature_of(self.trainer, model_dir, epoch)
            cfg = self.trainer.cfg
            self.transform = transform_of(self.trainer)
        self.seen = SeenImages(model_dir)
        adaptation = getattr(self.trainer, "adaptation", "")
        if adaptation:
            print(f"{cfg.TRAINER.NAME} adapts to {adaptation}", file=sys.stderr)
        self.batch_size, self.workers = cfg.DATALOADER.TEST.BATCH_SIZE, cfg.DATALOADER.NUM_WORKERS

    def __call__(self, images, top: int = 5, threshold: float = 0.0, every: bool = False) -> Iterator[Prediction]:
        """Return an iterator over a `Prediction` for each image, in order.

        An image that cannot be read stops no other: its `Prediction` has an `error`.

        Args:
            images: one image, a list or an iterator. A list is read in batches. Of an iterator, each image is answered
                before the next one is read. An image is the path of a file, or of a folder with images below it; a PIL
                image; a NumPy array, uint8 [H, W, 3], [H, W, 4] or [H, W]; a tensor, uint8 [3, H, W]; the bytes of a
                file; or an open binary file. Every image is turned upright by its EXIF, with white for transparency.
            top: number of classes to name.
            threshold: a prediction with a lower probability is marked as unsure.
            every: add the probabilities of all classes.

        Raises:
            ValueError: `top` or `threshold` is out of range.
            FloatingPointError: the model gives scores that are infinite or NaN.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1 (got {top})")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be a probability, from 0 to 1 (got {threshold:g})")
        if is_one_image(images):
            images = [images]
        return self.answers(images, top, threshold, every)

    def answers(self, images: Iterable, top: int, threshold: float, every: bool) -> Iterator[Prediction]:
        """Yield the predictions of `__call__`."""
        if isinstance(images, Iterator):
            batches = ([reader[k]] for reader in self.readers(images) for k in range(len(reader)))
            total = None
        else:
            reader = Reader([image for item in images for image in expand(item)], self.transform)
            batches = read_in_order(reader, self.batch_size, self.workers, collate_fn=list)
            total = len(reader)
        with progress(total=total, desc="predicting", unit="image", leave=False) as bar:
            for batch in batches:
                yield from self.predict(batch, top, threshold, every)
                bar.update(len(batch))

    def readers(self, images: Iterator) -> Iterator["Reader"]:
        """Yield a reader for each item of an iterator, which is an image or a folder of images."""
        number = 1
        for item in images:
            reader = Reader(expand(item), self.transform, number)
            number += len(reader)
            yield reader

    @torch.no_grad()
    def predict(
        self, batch: list[tuple[str, torch.Tensor | None, str]], top: int, threshold: float, every: bool
    ) -> Iterator[Prediction]:
        """Yield the predictions for a batch of `Reader`."""
        tensors = [tensor for _, tensor, _ in batch if tensor is not None]
        if tensors:
            with self._lock, silence():
                logits = self.trainer.model_inference(torch.stack(tensors).to(self.trainer.device))
            if not logits.amax(1).isfinite().all():
                raise FloatingPointError("the model gives infinite or NaN scores: it is no use, train it again")
            probabilities = (logits.float() / (self.temperature or 1.0)).softmax(dim=-1)
            best = probabilities.topk(min(top, len(self.classnames)))
            all_classes = probabilities.tolist() if every else [()] * len(tensors)
            rows = iter(zip(best.indices.tolist(), best.values.tolist(), all_classes, strict=True))
        for name, tensor, error in batch:
            if tensor is None:
                yield Prediction(name, "", 0.0, [], error)
            else:
                classes, values, row = next(rows)
                ranked = [(self.classnames[k], p) for k, p in zip(classes, values, strict=True)]
                seen, unsure = self.seen.part_of(name), values[0] < threshold
                yield Prediction(name, *ranked[0], ranked, "", seen, unsure, tuple(row))


class Reader(Dataset):
    """A data set of images: (name, float [3, H, W] or None, the reason if it cannot be read).

    Args:
        images: paths and images from memory.
        transform: from a PIL image to a tensor.
        first: number of the first image.
    """

    def __init__(self, images: list, transform, first: int = 1):
        self.images, self.transform, self.first = images, transform, first

    def __len__(self):
        return len(self.images)

    def __getitem__(self, k):
        image = self.images[k]
        if isinstance(image, str):
            name, problem = image, image_problem(image, decode=False)
        else:
            name, problem = f"image {self.first + k}", ""
        if problem:
            return name, None, problem
        try:
            photo = read_photo(image) if isinstance(image, str) else from_memory(image)
            return name, self.transform(photo), ""
        except OSError as error:
            return name, None, str(error)


def transform_of(trainer):
    """Return the transform of a test image; that of the config for a trainer written for Dassl."""
    if isinstance(trainer, ClipTrainer):
        return trainer.test_transform()
    return build_transform(trainer.cfg, is_train=False)


def is_one_image(images) -> bool:
    """Return whether this is a single image. It may be iterable, too, as an array is."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.ndim < 4
    return isinstance(images, (str, os.PathLike, bytes, bytearray, Image.Image)) or hasattr(images, "read")


def expand(image) -> list:
    """Return the sorted paths of the images below a folder. Any other image is returned in a list of one."""
    if not isinstance(image, (str, os.PathLike)):
        return [image]
    path = osp.expanduser(os.fspath(image))
    if not osp.isdir(path):
        return [path]
    listing = images_in(path)
    for line in listing.omissions(path):
        print(line, file=sys.stderr)
    return listing.images or [path]  # an empty folder gets an answer, too: an error


def from_memory(image) -> Image.Image:
    """Return an image from memory as a PIL image, after `as_photo`.

    Raises:
        OSError: it is no image; the message is one line.
    """
    try:
        if isinstance(image, Image.Image):
            return as_photo(image)
        if isinstance(image, (bytes, bytearray)):
            image = io.BytesIO(image)
        if hasattr(image, "read"):
            with open_image(image) as opened:
                return as_photo(opened)
        return as_photo(from_pixels(image))
    except Exception as error:  # Pillow raises a dozen types
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def from_pixels(pixels) -> Image.Image:
    """Return an array or a tensor as a PIL image.

    Raises:
        OSError: type, dtype or shape is not in `IN_MEMORY`.
    """
    if isinstance(pixels, torch.Tensor):
        description = f"a tensor, {str(pixels.dtype).removeprefix('torch.')} {list(pixels.shape)}"
        if pixels.dtype == torch.uint8 and pixels.ndim == 3 and len(pixels) == 3 and pixels.numel():
            return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    elif isinstance(pixels, np.ndarray):
        description = f"an array, {pixels.dtype} {list(pixels.shape)}"
        fits = pixels.ndim == 2 or pixels.ndim == 3 and pixels.shape[2] in (3, 4)
        if pixels.dtype == np.uint8 and fits and pixels.size:
            return Image.fromarray(np.ascontiguousarray(pixels))
    else:
        description = f"of type {type(pixels).__name__}"
    raise OSError(f"it is {description}: images may be paths, {IN_MEMORY}")


def names_in(text: str) -> list[str]:
    """Return class names from a text with commas between them; a name with a comma stands in double quotes."""
    return [name.strip() for row in csv.reader([text]) for name in row if name.strip()]
