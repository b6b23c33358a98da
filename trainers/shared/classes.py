"""Classes by their names as CLIP reads them: which are the same, and which of those trained on are evaluated."""

import hashlib
import os.path as osp

import torch
from clip import clip

from dassl.utils import read_json

from .prompts import spoken

CLASSES = "classes.json"  # in the directory of a training: its class names, in the order of their labels


def same_to_clip(classnames: list[str]) -> list[list[str]]:
    """Return the groups of class names that CLIP's tokenizer does not tell apart, as "hot dog" and "Hot_ dog"."""
    groups = {}
    for classname, words in zip(classnames, spoken(classnames), strict=True):
        groups.setdefault(tuple(clip._tokenizer.encode(words)), []).append(classname)
    return [names for names in groups.values() if len(names) > 1]


def check_different(classnames: list[str]) -> None:
    """Raise ValueError unless there are two or more class names, all of which CLIP tells apart."""
    if len(classnames) < 2:
        raise ValueError(f"give two or more different classes, not {', '.join(classnames) or 'none'}")
    for names in same_to_clip(classnames):
        told = " and ".join(f'"{name}"' for name in names)
        raise ValueError(f"give two or more different classes, not {told}, which are the same to CLIP: leave one")


def class_ids(classnames: list[str]) -> torch.Tensor:
    """A number for each class name as CLIP reads it, int64 [n_cls]: fits a checkpoint, which keeps no strings."""
    digests = (hashlib.sha256(name.lower().encode()).digest()[:8] for name in spoken(classnames))
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])


def places_of(ids: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
    """Where each of the classes `ids` [n] stands among `trained` [m], int64 [n]; -1: it was not trained on."""
    same = ids.unsqueeze(1) == trained.to(ids.device).unsqueeze(0)
    return torch.where(same.any(dim=1), same.int().argmax(dim=1), -1)


def read_classes(path: str) -> list[str]:
    """Return the class names of a run. Raises ValueError if the file holds something else."""
    return checked(read_json(path), path)


def classes_of_training(checkpoint: dict, path: str) -> list[str] | None:
    """Return the class names that a checkpoint was trained on; None if nothing says them.

    The checkpoint has them. Those of earlier versions have them in the directory of the training.

    Args:
        path: file of the checkpoint, DIRECTORY/NAME/FILE.

    Raises:
        ValueError: there is something else in their place.
    """
    extra = checkpoint.get("extra_state")
    if isinstance(extra, dict) and "classes" in extra:
        return checked(extra["classes"], path)
    listed = osp.join(osp.dirname(osp.dirname(osp.abspath(path))), CLASSES)
    return read_classes(listed) if osp.exists(listed) else None


def checked(names: object, path: str) -> list[str]:
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} is no list of class names: put the original back")
    return names


def rows_by_name(rows: torch.Tensor, trained: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Return `rows` [n, ...] with those of `trained` [m, ...] for the classes that were trained on.

    Args:
        place: of `places_of`, int64 [n].

    Raises:
        ValueError: a row of `trained` is missing or of another size.
    """
    if trained.shape[1:] != rows.shape[1:] or len(trained) <= place.max():
        wanted = ["classes of its training", *rows.shape[1:]]
        raise ValueError(f"a tensor of classes has shape {list(trained.shape)}, but must have {wanted}")
    merged, known = rows.clone(), (place >= 0).to(rows.device)
    merged[known] = trained.to(rows)[place.to(rows.device)[known]]
    return merged
