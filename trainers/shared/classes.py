"""Learners of which a part belongs to a class: which of the classes trained on are among those evaluated."""

import hashlib

import torch

from .prompts import spoken


def class_ids(classnames: list[str]) -> torch.Tensor:
    """A number for each class name as CLIP reads it, int64 [n_cls]: fits a checkpoint, which keeps no strings."""
    digests = (hashlib.sha256(name.lower().encode()).digest()[:8] for name in spoken(classnames))
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])


def places_of(ids: torch.Tensor, trained: torch.Tensor) -> torch.Tensor:
    """Where each of the classes `ids` [n] stands among `trained` [m], int64 [n]; -1: it was not trained on."""
    same = ids.unsqueeze(1) == trained.to(ids.device).unsqueeze(0)
    return torch.where(same.any(dim=1), same.int().argmax(dim=1), -1)
