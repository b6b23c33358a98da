"""Which images a model has seen: kept beside it, so that predictions of them are not taken for those of new images."""

import os.path as osp

from dassl.data.datasets import Datum
from dassl.files import file_hash, read_json, write_json

SEEN = "seen.json"  # {"train": [[path, bytes, SHA-256], ...], "val": ...}


def keep_seen(folder: str, train: list[Datum], val: list[Datum]) -> None:
    """Writes the images into `folder`; `val`: by which the model is chosen."""
    paths = {part: dict.fromkeys(item.impath for item in items) for part, items in (("train", train), ("val", val))}
    rows = {part: [[path, osp.getsize(path), file_hash(path)] for path in some] for part, some in paths.items()}
    write_json(rows, osp.join(folder, SEEN))


class Seen:
    """The images that the model of an output directory has seen: recognized by their content, wherever they are now.

    Raises:
        ValueError: the list of them is damaged.
    """

    def __init__(self, folder: str):
        path = osp.join(folder, SEEN)
        self.parts, self.sizes = {}, set()
        try:
            kept = read_json(path) if osp.exists(path) else {}
            for part in ("val", "train"):  # if it is in both, train counts
                for _, size, digest in kept.get(part, []):
                    self.parts[digest] = part
                    self.sizes.add(size)
        except (ValueError, TypeError, AttributeError) as error:
            wrong = f"{path}, the list of the images that the model was trained on, is damaged ({error})"
            raise ValueError(f"{wrong}: put it back, or remove it to do without") from error

    def part_of(self, path: str) -> str:
        """ "train", "val" if the model was chosen by it, or "" for an image that it has not seen."""
        if not osp.isfile(path) or osp.getsize(path) not in self.sizes:  # few files need reading
            return ""
        return self.parts.get(file_hash(path), "")
