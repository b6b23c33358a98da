"""Distances between all rows of two matrices."""

from torch.nn import functional as F


def compute_distance_matrix(input1, input2, metric="euclidean"):
    """Return the distances between the rows of two matrices.

    Args:
        input1 (Tensor): [m, dim].
        input2 (Tensor): [n, dim].
        metric (str): "euclidean" (squared) or "cosine".

    Returns:
        Tensor: [m, n], dtype of the inputs.

    Raises:
        ValueError: another metric, or shapes that do not fit.
    """
    if input1.dim() != 2 or input2.dim() != 2 or input1.size(1) != input2.size(1):
        shapes = f"{[*input1.shape]} and {[*input2.shape]}"
        raise ValueError(f"Expected shapes [m, dim] and [n, dim], got {shapes}")
    if metric == "euclidean":
        return euclidean_squared_distance(input1, input2)
    if metric == "cosine":
        return cosine_distance(input1, input2)
    raise ValueError(f'Unknown distance "{metric}": choose euclidean or cosine')


def euclidean_squared_distance(input1, input2):
    """Return |a - b|^2, a Tensor [m, n], for the rows a of `input1` [m, dim] and b of `input2` [n, dim]."""
    squares = input1.pow(2).sum(1, keepdim=True) + input2.pow(2).sum(1)
    return (squares - 2 * input1 @ input2.t()).clamp(min=0)  # rounding may give tiny negative numbers


def cosine_distance(input1, input2):
    """Return 1 - cos(a, b), a Tensor [m, n], for the rows a of `input1` [m, dim] and b of `input2` [n, dim]."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).t()
