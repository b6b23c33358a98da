"""The difference between confidence and accuracy, and the temperature that minimises it.

C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, On Calibration of Modern Neural Networks, ICML 2017: sections 2 and 4.2.
"""

import torch

BINS = 15  # the number in that paper
STEPS = 200  # maximum number of steps of the search, which needs far fewer


def confidence(scores, temperature=1.0):
    """Return max_k softmax(scores / T)_k of each row: float32 [batch], float64 of float64 scores."""
    wide_scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return (wide_scores / temperature).softmax(1).amax(1)


def expected_calibration_error(confidence, correct, bins=BINS):
    """Return sum_b n_b / n |accuracy_b - mean confidence_b| in percent, over bins ((b - 1) / B, b / B] of confidence.

    Args:
        confidence (Tensor): in [0, 1], float [n].
        correct (Tensor): whether the most likely class is the true one, bool [n].
        bins (int): number B of bins of equal width.
    """
    confidence, correct = confidence.double(), correct.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=confidence.device)
    index = torch.bucketize(confidence, edges[1:-1])
    gaps = torch.zeros(bins, dtype=torch.float64, device=confidence.device).index_add_(0, index, correct - confidence)
    return 100.0 * gaps.abs().sum().item() / len(confidence)


def cross_entropy(scores, labels, temperature=1.0):
    """Return the mean of -log softmax(scores / T)_label, a float computed in fp64."""
    return torch.nn.functional.cross_entropy(scores.double() / temperature, labels).item()


def fit_temperature(scores, labels):
    """Return the T > 0 that minimises `cross_entropy(scores, labels, T)`, by Newton's method on b = 1 / T in fp64.

    The loss is convex in b. With p = softmax(b z) its slope is mean(E_p[z] - z_label) and its curvature mean(Var_p[z]).
    A step that leaves the bracket of the root is replaced by bisection.

    Args:
        scores (Tensor): z, finite [n, classes].
        labels (Tensor): int64 [n].

    Raises:
        ValueError: there is no minimum. Either all labels have the highest score (T would be 0), or the scores predict
            the labels no better than chance (T would be infinite).
    """
    z = scores.double()
    if not z.isfinite().all():
        raise ValueError("no temperature can be found: some scores are infinite or NaN")
    z = z - z.amax(1, keepdim=True)
    label_scores = z.gather(1, labels.view(-1, 1)).squeeze(1)
    if (label_scores == 0).all():
        raise ValueError("no temperature can be found: every image is right, so the surer the better")
    if (z.mean(1) - label_scores).mean() >= 0:
        raise ValueError("no temperature can be found: the scores are no better than chance")

    low, high, b = 0.0, float("inf"), 1.0
    for _ in range(STEPS):
        p = (b * z).softmax(1)
        mean = (p * z).sum(1)
        slope = (mean - label_scores).mean().item()
        curvature = (p * (z - mean.unsqueeze(1)).square()).sum(1).mean().item()
        if slope < 0:
            low = b
        else:
            high = b
        new_temperature = b - slope / curvature if curvature > 0 else high
        if not low < new_temperature < high:
            new_temperature = 2 * b if high == float("inf") else (low + high) / 2
        if abs(new_temperature - b) <= 1e-14 * b:
            break
        b = new_temperature
    return 1 / b
