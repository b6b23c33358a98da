"""The division of the classes among several processes."""

import torch

from .beside_dassl import bounds, gather_with_gradient, size

SPLIT_FROM = 32  # minimum number of classes; with fewer, sending the features costs as much as encoding all of them


def encode_in_parts(encode, prompts: torch.Tensor | None, tokens: torch.Tensor, deep: dict) -> torch.Tensor:
    """Return encode(prompts, tokens, deep, part), where in a training step each process encodes some of the classes.

    An evaluation is not divided, because it encodes the classes only once. Prompts [B, n_cls, ...] that belong to the
    images are not divided either.

    Args:
        encode: function that returns features float [..., n_cls, d]. `part` has the start and the end of the classes
            to which `prompts` and `deep` belong; None: all of `tokens`.
        prompts: embeddings, or None.
        tokens: ids int64 [n_cls, L].
        deep: block -> deep prompts float [n, width], or [n_cls, n, width].
    """
    n = len(tokens)
    if size() == 1 or n < SPLIT_FROM or not torch.is_grad_enabled() or (prompts is not None and prompts.dim() > 3):
        return encode(prompts, tokens, deep, None)
    start, end = bounds(n)
    local_prompts = None if prompts is None else prompts[start:end]
    local_deep = {i: t if t.dim() == 2 else t[start:end] for i, t in deep.items()}
    return gather_with_gradient(encode(local_prompts, tokens, local_deep, (start, end)), n)
