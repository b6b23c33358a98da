"""Running averages of losses and metrics."""

from collections import defaultdict

import torch


class AverageMeter:
    """The last value (`val`), the sum, the count and the average (`avg`) of a number.

    Args:
        ema (bool): `avg` is the exponential moving average, 0.9 old + 0.1 new, instead of the mean.
    """

    def __init__(self, ema=False):
        self.ema = ema
        self.reset()

    def reset(self):
        self.val = 0
        self.avg = 0
        self.sum = 0
        self.count = 0

    def update(self, val, n=1):
        """Add `val` (a number or a one-element tensor), the mean of `n` observations."""
        if isinstance(val, torch.Tensor):
            val = val.item()
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = 0.9 * self.avg + 0.1 * val if self.ema else self.sum / self.count


class MetricMeter:
    """An AverageMeter for every name; `str()` gives `loss 0.1234 (0.2345) acc 75.0000 (70.1234)`: last (average)."""

    def __init__(self, delimiter=" "):
        self.meters = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict):
        """Add the values of `input_dict`, a dict of name to number or one-element tensor; None adds nothing.

        Raises:
            TypeError: it is something else.
        """
        if input_dict is None:
            return
        if not isinstance(input_dict, dict):
            raise TypeError(f"MetricMeter.update() takes a dict, got {type(input_dict).__name__}")
        for name, value in input_dict.items():
            self.meters[name].update(value)

    def __str__(self):
        return self.delimiter.join(f"{name} {m.val:.4f} ({m.avg:.4f})" for name, m in self.meters.items())
