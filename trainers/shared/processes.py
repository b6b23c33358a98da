"""The functions of `dassl.distributed`, with substitutes for the original Dassl, which has one process only."""

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


# token ids of all classes -> those of this process, so that each step has the same tensor
_local_tokens = WeakTensorKeyDictionary()
SPLIT_FROM = 32  # minimum number of classes; with fewer, sending the features costs as much as encoding all of them


def each_its_part(encode, prompts: torch.Tensor | None, tokens: torch.Tensor, deep: dict) -> torch.Tensor:
    """Return encode(prompts, tokens, deep), where in a training step each process encodes some of the classes.

    An evaluation is not divided, because it encodes the classes only once. Prompts [B, n_cls, ...] that belong to the
    images are not divided either.

    Args:
        encode: function that returns features float [..., n_cls, d].
        prompts: embeddings, or None.
        tokens: ids int64 [n_cls, L].
        deep: block -> deep prompts float [n, width], or [n_cls, n, width].
    """
    n = len(tokens)
    if size() == 1 or n < SPLIT_FROM or not torch.is_grad_enabled() or (prompts is not None and prompts.dim() > 3):
        return encode(prompts, tokens, deep)
    start, end = bounds(n)
    if tokens not in _local_tokens:
        _local_tokens[tokens] = tokens[start:end].clone()  # a view would keep all tokens in memory
    local_prompts = None if prompts is None else prompts[start:end]
    local_deep = {i: t if t.dim() == 2 else t[start:end] for i, t in deep.items()}
    return gather_with_gradient(encode(local_prompts, _local_tokens[tokens], local_deep), n)


__all__ = ["add_up", "each_its_part", "gather", "is_first", "own_draws", "parts"]
