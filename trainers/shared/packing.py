"""The order in which the tokens of a set of prompts are encoded, without repeated and useless ones.

Attention is causal, and the feature is read at the end of text. So leading tokens that all prompts share have the same
output in every block, and tokens behind the end of text have no influence:

    prompts of n classes, n x 77 tokens   ->   p shared tokens, then a suffix per class up to its end of text

A `Packing` is one sequence of these: the p shared tokens, then the suffixes, sorted into groups of one length.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

Groups = Sequence[tuple[int, int]]  # (suffixes, their length)

# The cost of a group, in tokens of padding that cost as much. A group starts about 35 kernels in each block, forward
# and backward. In that time one CPU core runs 4 tokens through a text block of ViT-B/16. The GPU's is an estimate.
CPU_GROUP, GPU_GROUP = 4, 2048


class Packing(NamedTuple):
    """One sequence of the tokens of some classes.

    Attributes:
        tokens: int64 [T]; c L + t stands for token t of class c, L being the length of the prompts.
        ends: int64 [classes], position of each end of text in the sequence.
        groups: the groups of suffixes, behind the T - sum(n s) shared tokens.
    """

    tokens: torch.Tensor
    ends: torch.Tensor
    groups: Groups


class EncodingPlan(NamedTuple):
    """A plan for encoding the prompts of a class set.

    Attributes:
        packings: one or more sequences, which together have all classes.
        place: int64 [n], position of each class among the ends of the packings.
        images: number of images whose prompts are encoded at once, if each image has prompts of its own.
    """

    packings: list[Packing]
    place: torch.Tensor
    images: int


def common_start(ids: torch.Tensor) -> int:
    """Return the number of leading positions at which all rows of ids int64 [n, L] are equal."""
    return int((ids == ids[0]).all(dim=0).cumprod(dim=0).sum())


def group(lengths: list[int], cost: int) -> list[tuple[int, int]]:
    """Return the groups (number of suffixes, padded length) with the lowest total cost.

    Args:
        lengths: lengths of the suffixes, in ascending order.
        cost: cost of a group, in tokens.
    """
    steps = [k for k in range(1, len(lengths) + 1) if k == len(lengths) or lengths[k - 1] < lengths[k]]
    best = {0: (0, [])}  # total cost and groups of the first k suffixes
    for k in steps:
        best[k] = min(
            (tokens + (k - j) * lengths[k - 1] + cost, groups + [(k - j, lengths[k - 1])])
            for j, (tokens, groups) in best.items()
        )
    return best[len(lengths)][1]


def pack(ids: torch.Tensor, shared: int | None, parts: int, device: torch.device) -> tuple[list[Packing], torch.Tensor]:
    """Pack the prompts of a class set into sequences. Each sequence has classes of all lengths.

    Args:
        ids: int64 [n, L], on the CPU.
        shared: number of leading positions at which all prompts are equal; None: found from the ids. The end of text
            never counts as shared.
        parts: number of sequences.
        device: device of the result.

    Returns:
        The packings, and the position of each class among all their ends, int64 [n].
    """
    length = ids.shape[1]
    ends = ids.argmax(dim=-1)  # the end of text has the highest id
    shared = min(common_start(ids) if shared is None else shared, int(ends.min()))
    order, packings = ends.argsort(stable=True), []
    classes = [order[part::parts] for part in range(parts)]
    for part in classes:
        groups = group((ends[part] - shared + 1).tolist(), CPU_GROUP if device.type == "cpu" else GPU_GROUP)
        tokens, starts = [part[0] * length + torch.arange(shared)], []
        for members, (n, size) in zip(part.split([n for n, _ in groups]), groups, strict=True):
            starts.append(sum(map(len, tokens)) + size * torch.arange(n))
            tokens.append((members[:, None] * length + shared + torch.arange(size)).flatten())
        packings.append(Packing(torch.cat(tokens), torch.cat(starts) + ends[part] - shared, groups))
    place = torch.cat(classes).argsort()
    return [Packing(p.tokens.to(device), p.ends.to(device), p.groups) for p in packings], place.to(device)
