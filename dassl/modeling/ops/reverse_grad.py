"""Gradient reversal (Ganin & Lempitsky, 2015)."""

import torch
import torch.nn as nn


class _ReverseGrad(torch.autograd.Function):
    @staticmethod
    def forward(ctx, input, grad_scaling):
        ctx.scale = -grad_scaling
        return input.view_as(input)

    @staticmethod
    def backward(ctx, gradient):
        return ctx.scale * gradient, None


class ReverseGrad(nn.Module):
    """The identity with a reversed gradient, which is multiplied by -`grad_scaling`, with `grad_scaling` >= 0."""

    def forward(self, x, grad_scaling=1.0):
        if grad_scaling < 0:
            raise ValueError(f"grad_scaling of ReverseGrad is {grad_scaling}, but must be at least 0")
        return _ReverseGrad.apply(x, grad_scaling)
