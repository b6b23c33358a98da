"""The number of tokens that an encoder processes at once, computed from the free memory of its device.

The memory of a forward and a backward pass is estimated as

    bytes = 4 tokens (SAVED width layers + TEMPORARY width)

SAVED is the number of float32 values that autograd saves per token and block, in units of the width. These are the
inputs of both LayerNorms, q, k, v, the output of c_fc, and up to 2 for the attention weights. Changed linear maps save
their inputs too: once, which makes 18 in all, or more often with dropout. tests/test_memory.py compares SAVED with the
tensors that autograd saves.

TEMPORARY is the memory that one block needs at once: all of it without gradients, gradients of activations, prompts.
"""

from math import ceil

import torch

from .beside_dassl import free_memory, say

SAVED = {False: 12, True: 22}  # the key: whether linear maps are changed
TEMPORARY = 32
SHARE = 0.75  # fraction of the free memory for these activations; later layers and the optimizer need the rest


def estimate(tokens: int, width: int, layers: int, changed: bool, device: torch.device) -> tuple[float, float]:
    """Return the needed memory by the equation above, and the memory that may be used, both in GiB."""
    saved_values = SAVED[changed] * layers if torch.is_grad_enabled() else 0
    return 4 * tokens * width * (saved_values + TEMPORARY) / 2**30, SHARE * free_memory(device)


def split(classes: int, images: int, tokens: int, width: int, layers: int, changed: bool, device) -> tuple[int, int]:
    """Return the number of parts of the classes, and the number of images at once, in which prompts are encoded.

    Prints a line if the prompts do not fit into memory at once.

    Args:
        classes: number of classes.
        images: number of images that have prompts of their own; 1 if all share the prompts.
        tokens: number of tokens of all classes, for one image.
        width: width of the encoder.
        layers: number of its blocks.
        changed: whether its linear maps are changed.
        device: its device.
    """
    needed_gib, free_gib = estimate(images * tokens, width, layers, changed, device)
    if needed_gib <= free_gib:
        return 1, images
    room = max(1, int(images * tokens * free_gib / needed_gib))  # tokens
    parts, images_at_once = min(classes, ceil(tokens / room)), max(1, room // tokens)
    action = f"Classes in {parts} chunks of {ceil(classes / parts)}"
    if parts == 1:
        action = f"Prompts of {images} images in chunks of {images_at_once}"
    if torch.is_grad_enabled():
        action += " with recomputation"
    say_too_large(action, needed_gib, free_gib)
    return parts, images_at_once


def blocks_to_recompute(x: torch.Tensor, layers: int, changed: bool) -> int:
    """Return the number of blocks that save only their input x float [N, L, width] for the backward pass."""
    tokens, width = x.shape[:-1].numel(), x.shape[-1]
    needed_gib, free_gib = estimate(tokens, width, layers, changed, x.device)
    if needed_gib <= free_gib or not torch.is_grad_enabled():
        return 0
    blocks = min(layers, ceil((needed_gib - free_gib) * 2**30 / (4 * tokens * width * (SAVED[changed] - 1))))
    say_too_large(f"{blocks} of {layers} blocks of the image encoder with recomputation", needed_gib, free_gib)
    return blocks


def say_too_large(action: str, needed_gib: float, free_gib: float) -> None:
    say(f"{action}: {needed_gib:.1f} GiB of activations would not fit into {free_gib:.1f} GiB")
