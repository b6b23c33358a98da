"""Which tokens of a set of prompts are encoded, and in which order.

Attention is causal and the feature is read at the end of text. So what all prompts begin with is the same in every
block, and what lies behind the end of text has no influence:

    prompts of n classes, n x 77 tokens   ->   p shared tokens, then each class's own up to its end of text

A `Packing` is one sequence of these: the p shared ones, then the suffixes, sorted into groups of one length.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

Groups = Sequence[tuple[int, int]]  # (suffixes, their length)

# A further group costs about as much as this many tokens of padding: some 35 kernels to start in each block, forward
# and backward, in which one CPU core passes 4 tokens through ViT-B/16's text block. For a GPU estimated, not measured
CPU_GROUP, GPU_GROUP = 4, 2048


class Packing(NamedTuple):
    """One sequence of the tokens of some classes.

    Attributes:
        tokens: int64 [T]; the token t of class c, of prompts with L tokens, is c L + t.
        ends: int64 [classes], where in the sequence the end of each text is.
        groups: of the suffixes, behind the T - sum(n s) shared tokens.
    """

    tokens: torch.Tensor
    ends: torch.Tensor
    groups: Groups


class Plan(NamedTuple):
    """How the prompts of a class set are encoded.

    Attributes:
        packings: of all classes, one or more.
        place: int64 [n], where each class is among the ends of the packings.
        images: that are encoded at once, if each has prompts of its own.
    """

    packings: list[Packing]
    place: torch.Tensor
    images: int


def common_start(ids: torch.Tensor) -> int:
    """At how many of the first positions all rows of ids int64 [n, L] are equal."""
    return int((ids == ids[0]).all(dim=0).cumprod(dim=0).sum())


def group(lengths: list[int], cost: int) -> list[tuple[int, int]]:
    """(suffixes, their padded length) of suffixes in ascending order of length, with the fewest tokens in all.

    Args:
        cost: of a group, in tokens.
    """
    steps = [k for k in range(1, len(lengths) + 1) if k == len(lengths) or lengths[k - 1] < lengths[k]]
    best = {0: (0, [])}  # tokens and groups of the first k
    for k in steps:
        best[k] = min(
            (tokens + (k - j) * lengths[k - 1] + cost, groups + [(k - j, lengths[k - 1])])
            for j, (tokens, groups) in best.items()
        )
    return best[len(lengths)][1]


def pack(ids: torch.Tensor, shared: int | None, parts: int, device: torch.device) -> tuple[list[Packing], torch.Tensor]:
    """The prompts of a class set in one or more sequences, each with classes of all lengths.

    Args:
        ids: int64 [n, L], on the CPU.
        shared: positions at which all prompts are equal, None: as the ids say. The end of text never counts as such.
        parts: number of sequences.
        device: of the result.

    Returns:
        The packings, and int64 [n], where each class is in the sequence of their ends.
    """
    length = ids.shape[1]
    ends = ids.argmax(dim=-1)  # the end of text has the highest id
    shared = min(common_start(ids) if shared is None else shared, int(ends.min()))
    order, packings = ends.argsort(stable=True), []
    classes = [order[part::parts] for part in range(parts)]
    for part in classes:
        groups = group((ends[part] - shared + 1).tolist(), CPU_GROUP if device.type == "cpu" else GPU_GROUP)
        tokens, starts = [part[0] * length + torch.arange(shared)], []
        for mine, (n, size) in zip(part.split([n for n, _ in groups]), groups, strict=True):
            starts.append(sum(map(len, tokens)) + size * torch.arange(n))
            tokens.append((mine[:, None] * length + shared + torch.arange(size)).flatten())
        packings.append(Packing(torch.cat(tokens), torch.cat(starts) + ends[part] - shared, groups))
    place = torch.cat(classes).argsort()
    return [Packing(p.tokens.to(device), p.ends.to(device), p.groups) for p in packings], place.to(device)
