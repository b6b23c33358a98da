"""Class names as CLIP reads them: comparison, and matching of the classes of a training and an evaluation."""

import hashlib
import os.path as osp

import torch
from clip import clip

from dassl.utils import read_json

from .prompts import replace_underscores

CLASSES = "classes.json"  # the class names in the order of their labels, in the directory of a training


def same_to_clip(classnames: list[str]) -> list[list[str]]:
    """Return the groups of class names with the same tokens, for example "hot dog" and "Hot_ dog"."""
    groups = {}
    for classname, words in zip(classnames, replace_underscores(classnames), strict=True):
        groups.setdefault(tuple(clip._tokenizer.encode(words)), []).append(classname)
    return [names for names in groups.values() if len(names) > 1]


def check_different(classnames: list[str]) -> None:
    """Raise ValueError unless there are two or more class names, and all have different tokens."""
    if len(classnames) < 2:
        raise ValueError(f"give two or more different classes, not {', '.join(classnames) or 'none'}")
    for names in same_to_clip(classnames):
        names = " and ".join(f'"{name}"' for name in names)
        raise ValueError(f"give two or more different classes, not {names}, which are the same to CLIP: leave one")


def class_ids(classnames: list[str]) -> torch.Tensor:
    """Return a hash of each class name as CLIP reads it, int64 [n_cls], to store in a checkpoint as a tensor."""
    digests = (hashlib.sha256(name.lower().encode()).digest()[:8] for name in replace_underscores(classnames))
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])


def positions_of(ids: torch.Tensor, trained_ids: torch.Tensor) -> torch.Tensor:
    """Return the position of each class of `ids` [n] among `trained_ids` [m], int64 [n]; -1: it was not trained on."""
    is_same = ids.unsqueeze(1) == trained_ids.to(ids.device).unsqueeze(0)
    return torch.where(is_same.any(dim=1), is_same.int().argmax(dim=1), -1)


def read_classes(path: str) -> list[str]:
    """Return the class names of a run.

    Raises:
        ValueError: the file has no list of class names.
    """
    return check_names(read_json(path), path)


def classes_of_training(checkpoint: dict, path: str) -> list[str] | None:
    """Return the class names that a checkpoint was trained on; None: they are unknown.

    The checkpoint stores them. Earlier versions stored them in the directory of the training.

    Args:
        checkpoint: its content.
        path: its file, DIRECTORY/NAME/FILE.

    Raises:
        ValueError: the stored names are no list of strings.
    """
    extra_state = checkpoint.get("extra_state")
    if isinstance(extra_state, dict) and "classes" in extra_state:
        return check_names(extra_state["classes"], path)
    file = osp.join(osp.dirname(osp.dirname(osp.abspath(path))), CLASSES)
    return read_classes(file) if osp.exists(file) else None


def check_names(names: object, path: str) -> list[str]:
    """Return `names` if it is a list of class names, else raise ValueError with the path of its file."""
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is no list of class names: put the original back")
    return names


def rows_by_name(rows: torch.Tensor, trained_rows: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Replace the rows of classes that were trained on by their rows in `trained_rows`; return the result.

    Args:
        rows: initial rows of the classes here, [n, ...].
        trained_rows: rows of the classes of the training, [m, ...].
        positions: result of `positions_of`, int64 [n].

    Raises:
        ValueError: a row of `trained_rows` is missing or of another size.
    """
    if trained_rows.shape[1:] != rows.shape[1:] or len(trained_rows) <= positions.max():
        shape = ["classes of its training", *rows.shape[1:]]
        raise ValueError(f"a tensor of classes has shape {list(trained_rows.shape)}, but must have {shape}")
    positions = positions.to(rows.device)
    result, has_row = rows.clone(), positions >= 0
    result[has_row] = trained_rows.to(rows)[positions[has_row]]
    return result
