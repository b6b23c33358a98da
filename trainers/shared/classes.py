"""Classes by their names as CLIP reads them: which are the same, and which of those trained on are evaluated."""

import hashlib

import torch
from clip import clip

from .prompts import spoken


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
