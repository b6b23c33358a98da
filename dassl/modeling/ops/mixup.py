"""mixup (Zhang et al., 2018) of two batches."""

import torch


def mixup(x1, x2, y1, y2, beta, preserve_order=False):
    """Mix two batches: l * first + (1 - l) * second, where each pair draws its own l from Beta(beta, beta).

    Args:
        x1: first images float [B, C, H, W].
        x2: second images, of the same shape.
        y1: first class probabilities float [B, n_cls].
        y2: second class probabilities, of the same shape.
        beta: parameter of the distribution.
        preserve_order: replace l by max(l, 1 - l), so that the first of a pair weighs more.

    Returns:
        (images, class probabilities)
    """
    weight = torch.distributions.Beta(beta, beta).sample([len(x1), 1, 1, 1])
    if preserve_order:
        weight = torch.maximum(weight, 1 - weight)
    weight = weight.to(x1.device)
    images = x1 * weight + x2 * (1 - weight)
    weight = weight.view(-1, 1)
    return images, y1 * weight + y2 * (1 - weight)
