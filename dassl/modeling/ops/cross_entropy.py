"""Cross-entropy with Dassl's arguments."""

from torch.nn import functional as F


def cross_entropy(input, target, label_smooth=0, reduction="mean"):
    """Return the cross-entropy.

    Args:
        input: logits float [B, n_cls].
        target: labels int [B].
        label_smooth: mass that is spread evenly over all classes.
        reduction: "mean", "sum" or "none".
    """
    return F.cross_entropy(input, target, reduction=reduction, label_smoothing=float(label_smooth))
