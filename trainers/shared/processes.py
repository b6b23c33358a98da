"""`dassl.distributed`, where a method finds it beside the original Dassl too, which knows one process only."""

import contextlib

import torch
from torch.utils.weak import WeakTensorKeyDictionary

try:
    from dassl.distributed import add_up, bounds, gather, gather_with_gradient, is_first, own_draws, parts, size
except ImportError:

    def size():
        return 1

    def is_first():
        return True

    def add_up(tensors):
        return tensors

    def gather(part, *tensors):
        return tensors

    def own_draws(*numbers):
        return contextlib.nullcontext()

    def parts(loader):
        return ((batch, None) for batch in loader)


_own = WeakTensorKeyDictionary()  # token ids of this process's classes: the same tensor in each step
SPLIT_FROM = 32  # classes; of fewer, encoding a part of them saves about as little as sending features costs


def each_its_part(encode, prompts: torch.Tensor | None, tokens: torch.Tensor) -> torch.Tensor:
    """encode(prompts, tokens), features float [..., n_cls, d]: in a training step each process encodes its classes.

    Not in an evaluation, which encodes them once, and not where each image has its own prompts float [B, n_cls, ...].
    """
    n = len(tokens)
    if size() == 1 or n < SPLIT_FROM or not torch.is_grad_enabled() or (prompts is not None and prompts.dim() > 3):
        return encode(prompts, tokens)
    start, end = bounds(n)
    if tokens not in _own:
        _own[tokens] = tokens[start:end].clone()  # no view, which would keep all of them
    return gather_with_gradient(encode(None if prompts is None else prompts[start:end], _own[tokens]), n)


__all__ = ["add_up", "each_its_part", "gather", "is_first", "own_draws", "parts"]
