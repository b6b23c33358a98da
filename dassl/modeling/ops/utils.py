"""Small helpers of trainers: sharpening, one-hot labels, ramps, moving averages of models."""

import math

import torch
from torch.nn import functional as F


def sharpen_prob(p, temperature=2):
    """Return p ** temperature, normalised to sum to 1: class probabilities float [B, n_cls]."""
    powers = p.pow(temperature)
    return powers / powers.sum(1, keepdim=True)


def reverse_index(data, label):
    """Return a batch in reverse order: (data, labels)."""
    return data.flip(0), label.flip(0)


def shuffle_index(data, label):
    """Return a batch in random order: (data, labels)."""
    order = torch.randperm(len(data))
    return data[order], label[order]


def create_onehot(label, num_classes):
    """Return labels int [B] as float [B, num_classes] of zeros and ones, on the CPU."""
    return F.one_hot(label.cpu(), num_classes).float()


def sigmoid_rampup(current, rampup_length):
    """Return exp(-5 (1 - t)^2), with t = current / rampup_length within 0..1."""
    phase = 1.0 - linear_rampup(current, rampup_length)
    return math.exp(-5.0 * phase * phase)


def linear_rampup(current, rampup_length):
    """Return current / rampup_length within 0..1."""
    if rampup_length <= 0:
        raise ValueError(f"rampup_length is {rampup_length}, but must be above 0")
    return float(min(max(current / rampup_length, 0.0), 1.0))


@torch.no_grad()
def ema_model_update(model, ema_model, alpha):
    """Move the parameters of `ema_model`: alpha * its own + (1 - alpha) * those of `model`."""
    for average, param in zip(ema_model.parameters(), model.parameters(), strict=True):
        average.mul_(alpha).add_(param, alpha=1 - alpha)
