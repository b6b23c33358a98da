"""How many tokens an encoder takes at once, by the free memory of its device.

What the backward pass needs is estimated as

    bytes = 4 tokens (KEPT width layers + PASSING width)

KEPT counts float32 numbers that a token leaves in a block, in widths: inputs of both LayerNorms, q, k, v, c_fc's
output, and up to 2 for the attention's weights; with changed linear maps also their inputs, once (18 in all) or, with
dropout, more often. Calibrated by counting the tensors that autograd saves: tests/test_memory.py holds it against them.
PASSING is what one block has at once: without gradients all there is; gradients of activations; the prompts.
"""

from math import ceil

import torch

from .console import say

try:
    from dassl.utils import free_memory
except ImportError:  # beside the original Dassl: all at once

    def free_memory(device: torch.device | None = None) -> float:
        return float("inf")


KEPT = {False: 12, True: 22}  # by whether linear maps are changed
PASSING = 32
SHARE = 0.75  # of the free memory, for these activations; the rest is for what comes after them


def needed(tokens: int, width: int, layers: int, changed: bool, device: torch.device) -> tuple[float, float]:
    """GiB of the equation above (without gradients, of one block), and those that may be used."""
    kept = KEPT[changed] * layers if torch.is_grad_enabled() else 0
    return 4 * tokens * width * (kept + PASSING) / 2**30, SHARE * free_memory(device)


def split(classes: int, images: int, tokens: int, width: int, layers: int, changed: bool, device) -> tuple[int, int]:
    """(parts of the classes, images at once) in which prompts are encoded; what does not fit is said.

    Args:
        tokens: of all classes, for each of the images that have prompts of their own.
    """
    need, free = needed(images * tokens, width, layers, changed, device)
    if need <= free:
        return 1, images
    room = max(1, int(images * tokens * free / need))  # tokens
    parts, at_once = min(classes, ceil(tokens / room)), max(1, room // tokens)
    what = f"Classes in {parts} chunks of {ceil(classes / parts)}"
    if parts == 1:
        what = f"Prompts of {images} images in chunks of {at_once}"
    say_recomputed(what + " with recomputation" * torch.is_grad_enabled(), need, free)
    return parts, at_once


def blocks_to_recompute(x: torch.Tensor, layers: int, changed: bool) -> int:
    """Of how many blocks nothing but the input x float [N, L, width] is kept for the backward pass."""
    tokens, width = x.shape[:-1].numel(), x.shape[-1]
    need, free = needed(tokens, width, layers, changed, x.device)
    if need <= free or not torch.is_grad_enabled():
        return 0
    again = min(layers, ceil((need - free) * 2**30 / (4 * tokens * width * (KEPT[changed] - 1))))
    say_recomputed(f"{again} of {layers} blocks of the image encoder with recomputation", need, free)
    return again


def say_recomputed(what: str, need: float, free: float) -> None:
    say(f"{what}: {need:.1f} GiB of activations would not fit into {free:.1f} GiB")
