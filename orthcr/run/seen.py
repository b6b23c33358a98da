"""The list of images that a model has seen. Predictions of them say nothing about new images."""

import os.path as osp

from dassl.data.datasets import Datum
from dassl.infrastructure.files import explain_read_error, file_hash, read_json, write_json

SEEN = "seen.json"  # {"train": [[path, bytes, SHA-256], ...], "val": ...}


def keep_seen(folder: str, train: list[Datum], val: list[Datum]) -> None:
    """Write the list of images into the folder of a model.

    Args:
        folder: output directory of the training.
        train: training images.
        val: images on which the model is chosen.
    """
    rows = {}
    for part, items in (("train", train), ("val", val)):
        paths = dict.fromkeys(item.impath for item in items)
        rows[part] = [[path, osp.getsize(path), file_hash(path)] for path in paths]
    write_json(rows, osp.join(folder, SEEN))


class Seen:
    """The images that the model of an output directory has seen. They are recognized by their content, not their path.

    Args:
        folder: output directory of the training.

    Raises:
        ValueError: the list of them is damaged.
    """

    def __init__(self, folder: str):
        path = osp.join(folder, SEEN)
        self.parts, self.sizes = {}, set()
        try:
            images = read_json(path) if osp.exists(path) else {}
            for part in ("val", "train"):  # if it is in both, train counts
                for _, size, digest in images.get(part, []):
                    self.parts[digest] = part
                    self.sizes.add(size)
        except (ValueError, TypeError, AttributeError) as error:
            wrong = f"{path}, the list of the images that the model was trained on, is damaged"
            reason = explain_read_error(error)
            raise ValueError(f"{wrong} ({reason}): put it back, or remove it to do without") from error

    def part_of(self, path: str) -> str:
        """Return the part of an image: "train", "val" if the model was chosen on it, or "" for a new image."""
        if not osp.isfile(path) or osp.getsize(path) not in self.sizes:  # the size saves hashing most new images
            return ""
        return self.parts.get(file_hash(path), "")
