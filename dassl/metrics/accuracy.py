"""Top-k accuracy."""


def compute_accuracy(output, target, topk=(1,)):
    """Return the percentage of rows whose label is among the k highest scores, for every k in `topk`.

    Args:
        output (Tensor): scores [batch, classes]; or a tuple or list with them first.
        target (Tensor): labels, int64 [batch].
        topk (tuple of int): values of k, at most the number of classes.

    Returns:
        list of Tensor: float32 [1] each, in percent, on the device of `output`.
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices
    is_correct = ranked.eq(target.view(-1, 1)).float()
    return [is_correct[:, :k].sum().reshape(1) * (100.0 / target.size(0)) for k in topk]
