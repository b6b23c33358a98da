"""The list of images that a model was trained or selected on. Its accuracy on them says nothing about new images."""

import os.path as osp

from dassl.data.datasets import Datum
from dassl.infrastructure.files import explain_read_error, file_hash, read_json, write_json

SEEN = "seen.json"  # {"train": [[path, bytes, SHA-256], ...], "val": ...}


def write_seen_images(folder: str, train: list[Datum], val: list[Datum]) -> None:
    """Write the list of a model's images into its folder.

    Args:
        folder: output directory of the training.
        train: training images.
        val: val images that the model was selected on.
    """
    rows = {}
    for part, items in (("train", train), ("val", val)):
        paths = dict.fromkeys(item.impath for item in items)
        rows[part] = [[path, osp.getsize(path), file_hash(path)] for path in paths]
    write_json(rows, osp.join(folder, SEEN))


class SeenImages:
    """The images that a model was trained or selected on. They are recognized by their content, not by their path.

    Args:
        folder: output directory of the training.

    Raises:
        ValueError: the list is damaged.
    """

    def __init__(self, folder: str):
        path = osp.join(folder, SEEN)
        self.parts, self.sizes = {}, set()
        try:
            images = read_json(path) if osp.exists(path) else {}
            for part in ("val", "train"):  # for an image in both parts, train counts
                for _, size, digest in images.get(part, []):
                    self.parts[digest] = part
                    self.sizes.add(size)
        except (ValueError, TypeError, AttributeError) as error:
            problem = f"{path}, the list of the images that the model was trained on, is damaged"
            reason = explain_read_error(error)
            raise ValueError(f"{problem} ({reason}): put the original back, or remove the file") from error

    def part_of(self, path: str) -> str:
        """Return "train" for a training image, "val" for one that the model was selected on, and "" for a new image."""
        if not osp.isfile(path) or osp.getsize(path) not in self.sizes:  # saves the checksum of most new images
            return ""
        return self.parts.get(file_hash(path), "")
