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

    image: str  # path, or "image <number>" for an image from memory; numbers start at 1
    classname: str  # the likeliest class; "" if the image cannot be read
    probability: float  # softmax probability of this class; calibrated if the model is calibrated
    top: list[tuple[str, float]]  # the likeliest classes with their probabilities, the likeliest first
    error: str = ""  # the reason, if the image cannot be read
    seen: str = ""  # "train" if the model was trained on this image, "val" if it was selected on it; see `SeenImages`
    unsure: bool = False  # whether the probability is below the threshold
    every: tuple[float, ...] = ()  # on request: probabilities of all classes, in the order of `Predictor.classnames`


class Predictor:
    """A classifier with a trained model. It may be used by several threads at once.

    Attributes:
        classnames: names of the classes, in the order of their labels.
        temperature: T in the probabilities softmax(logits / T), fitted on val by `calibrate`. None without calibration,
            and for an exported model, which has already divided its logits by T.

    Args:
        model_dir: output directory of a training or of a zero-shot run, or a folder written by export.py.
        classes: names of the classes; None: the classes of the training.
        epoch: epoch of the checkpoint; None: the best on val if there is one, else the last.
        template: prompt with {} for the class name; "": the template of the training.
        device: "cpu" or "cuda"; None: a GPU if there is one.
        strength: fraction of the update, from 0 to 1, or "auto"; None: the strength of the training.

    Raises:
        FileNotFoundError: there is no run or no checkpoint in `model_dir`.
        ValueError: the classes, the strength or the checkpoint do not fit the model.
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
        self._lock = Lock()  # a model caches features, so that only one thread may use it at a time
        if device:
            check_availability(device, ["cpu", "cuda"])
        if isinstance(classes, str):
            raise ValueError(f'classes must be a list of names, as ["cat", "dog"] (got the text "{classes}")')
        if classes is not None:
            check_different(classes)
        if is_exported(model_dir):
            if strength is not None or epoch is not None:
                problem = f"{model_dir} is an export, which has one strength and one epoch"
                raise ValueError(f"{problem}: leave out strength and epoch, or export again")
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
        with silence():  # hides the lines about the config and the checkpoint
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
        """Return an iterator over the predictions, one `Prediction` for each image, in order.

        If an image cannot be read, its `Prediction` has an `error`, and the other images are predicted.

        An image is one of these:

        - the path of a file, or of a folder with images at any depth;
        - a PIL image;
        - a NumPy array, uint8 [H, W, 3], [H, W, 4] or [H, W];
        - a tensor, uint8 [3, H, W];
        - the bytes of a file, or an open binary file.

        Images are turned upright by their EXIF, and transparent areas become white.

        Args:
            images: one image, a list or an iterator. A list is read in batches. An iterator is read one image at a
                time: each prediction is returned before the next image is read.
            top: number of classes in `Prediction.top`.
            threshold: a prediction with a lower probability is marked as unsure.
            every: whether to return the probabilities of all classes.

        Raises:
            ValueError: `top` or `threshold` is out of range.
            FloatingPointError: the scores of the model are infinite or NaN.
        """
        if top < 1:
            raise ValueError(f"top must be at least 1 (got {top})")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be a probability, from 0 to 1 (got {threshold:g})")
        if is_one_image(images):
            images = [images]
        return self.predict_all(images, top, threshold, every)

    def predict_all(self, images: Iterable, top: int, threshold: float, every: bool) -> Iterator[Prediction]:
        """Yield the predictions for `__call__`."""
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
        """Yield a reader for each item of an iterator. An item is an image or a folder of images."""
        number = 1
        for item in images:
            reader = Reader(expand(item), self.transform, number)
            number += len(reader)
            yield reader

    @torch.no_grad()
    def predict(
        self, batch: list[tuple[str, torch.Tensor | None, str]], top: int, threshold: float, every: bool
    ) -> Iterator[Prediction]:
        """Yield the predictions for a batch of items from a `Reader`."""
        tensors = [tensor for _, tensor, _ in batch if tensor is not None]
        if tensors:
            with self._lock, silence():
                logits = self.trainer.model_inference(torch.stack(tensors).to(self.trainer.device))
            if not logits.amax(1).isfinite().all():
                raise FloatingPointError("the scores of the model are infinite or NaN: train it again")
            probabilities = (logits.float() / (self.temperature or 1.0)).softmax(dim=-1)
            likeliest = probabilities.topk(min(top, len(self.classnames)))
            all_classes = probabilities.tolist() if every else [()] * len(tensors)
            rows = iter(zip(likeliest.indices.tolist(), likeliest.values.tolist(), all_classes, strict=True))
        for name, tensor, error in batch:
            if tensor is None:
                yield Prediction(name, "", 0.0, [], error)
            else:
                classes, values, row = next(rows)
                ranking = [(self.classnames[k], p) for k, p in zip(classes, values, strict=True)]
                seen, unsure = self.seen.part_of(name), values[0] < threshold
                yield Prediction(name, *ranking[0], ranking, "", seen, unsure, tuple(row))


class Reader(Dataset):
    """A data set with the items (name, image, error): image is float [3, H, W], or None if it cannot be read.

    Args:
        images: paths and images from memory.
        transform: function from a PIL image to a tensor.
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
            photo = read_photo(image) if isinstance(image, str) else convert_image(image)
            return name, self.transform(photo), ""
        except OSError as error:
            return name, None, str(error)


def transform_of(trainer):
    """Return the test transform of a trainer; for a trainer written for Dassl, the one of the config."""
    if isinstance(trainer, ClipTrainer):
        return trainer.test_transform()
    return build_transform(trainer.cfg, is_train=False)


def is_one_image(images) -> bool:
    """Return whether this is a single image. An array is one image, although it is iterable."""
    if isinstance(images, (np.ndarray, torch.Tensor)):
        return images.ndim < 4
    return isinstance(images, (str, os.PathLike, bytes, bytearray, Image.Image)) or hasattr(images, "read")


def expand(image) -> list:
    """Return the sorted paths of the images below a folder; for any other image, a list with this image."""
    if not isinstance(image, (str, os.PathLike)):
        return [image]
    path = osp.expanduser(os.fspath(image))
    if not osp.isdir(path):
        return [path]
    listing = images_in(path)
    for line in listing.omissions(path):
        print(line, file=sys.stderr)
    return listing.images or [path]  # the path of an empty folder gives a prediction with an error


def convert_image(image) -> Image.Image:
    """Return an image from memory as a PIL image, after `as_photo`.

    Raises:
        OSError: it is not an image; the message is one line.
    """
    try:
        if isinstance(image, Image.Image):
            return as_photo(image)
        if isinstance(image, (bytes, bytearray)):
            image = io.BytesIO(image)
        if hasattr(image, "read"):
            with open_image(image) as file:
                return as_photo(file)
        return as_photo(convert_pixels(image))
    except Exception as error:  # Pillow raises a dozen types
        raise OSError(" ".join(str(error).split()) or type(error).__name__) from error


def convert_pixels(pixels) -> Image.Image:
    """Return an array or a tensor as a PIL image.

    Raises:
        OSError: the type, dtype or shape is not one of `IN_MEMORY`.
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
    raise OSError(f"it is {description}: give paths, {IN_MEMORY}")


def parse_names(text: str) -> list[str]:
    """Return the class names in a text, separated by commas; a name that contains a comma is in double quotes."""
    return [name.strip() for row in csv.reader([text]) for name in row if name.strip()]
