"""The strength s in [0, 1], the fraction of the update that is used: 0 is the pretrained CLIP, 1 the tuned one.

"auto" selects it on val images of the training data set, by the one-standard-error rule (Breiman et al. 1984,
"Classification and Regression Trees", section 3.4.3). p is the best accuracy of the strengths in TRIED on n images, and
sqrt(p (1 - p) / n) its standard error. The rule takes the smallest strength within one standard error of p.
"""

import os.path as osp

from .beside_dassl import read_json, write_json

AUTO = "auto"
TRIED = (0.0, 0.25, 0.5, 0.75, 1.0)
WITHOUT_VAL = 1.0  # "auto" for data sets without val images, for example ImageNet
FILE = "strength.json"  # in the directory of the training


def standard_error(n_correct: int, n: int) -> float:
    """Return the standard error of an accuracy, as a fraction, with `n_correct` of n images classified correctly."""
    p = n_correct / n
    return (p * (1 - p) / n) ** 0.5


def one_standard_error(n_correct: dict[float, int], n: int) -> float:
    """Return the smallest strength within one standard error of the best.

    Args:
        n_correct: number of correctly classified images, by strength.
        n: number of images.
    """
    best_strength = max(n_correct.values())
    threshold = best_strength / n - standard_error(best_strength, n)
    return min(s for s, count in n_correct.items() if count / n >= threshold)


def select(n_correct: dict[float, int], n: int, epoch: int | None) -> dict:
    """Return the content of `strength.json`: the selected strength and the figures behind it.

    Args:
        n_correct: number of correctly classified images, by strength.
        n: number of images.
        epoch: epoch of the checkpoint; None: the best one on val.
    """
    best_strength = max(n_correct.values())
    return {
        "strength": one_standard_error(n_correct, n),
        "epoch": epoch,
        "val_images": n,
        "val_accuracy": {f"{s:g}": 100 * count / n for s, count in sorted(n_correct.items())},
        "standard_error": 100 * standard_error(best_strength, n),
    }


def without_val(epoch: int | None) -> dict:
    """Return the content of `strength.json` for a data set without val images."""
    return {"strength": WITHOUT_VAL, "epoch": epoch, "val_images": 0}


def format_selection(selection: dict) -> str:
    """Return a table of the accuracy on val by strength, and a line with the selected one."""
    s, accuracies = selection["strength"], selection.get("val_accuracy")
    if not accuracies:
        return f"Strength {s:g}: there are no val images to select it by"
    rows = [["strength", *accuracies], ["val", *(f"{accuracy:.1f}%" for accuracy in accuracies.values())]]
    lines = ["  ".join(word.rjust(8) for word in row) for row in rows]
    error, n = selection["standard_error"], selection["val_images"]
    rule = f"within one standard error ({error:.1f}) of the best of {n:,} val images"
    return "\n".join([*lines, f"Strength {s:g}: the smallest {rule}"])


def write_selection(selection: dict, directory: str) -> None:
    write_json(selection, osp.join(directory, FILE), seal=True)


def read_selection(directory: str, epoch: int | None = None) -> dict | None:
    """Return the selection for the model of a directory, or for its checkpoint of `epoch`; None: there is none.

    Raises:
        ValueError: the file is damaged.
    """
    path = osp.join(directory, FILE)
    if not osp.isfile(path):
        return None
    selection = read_json(path)
    if not isinstance(selection, dict) or not is_strength(selection.get("strength")):
        raise ValueError(f"{path} holds no strength between 0 and 1: put the original back, or remove it")
    return selection if epoch in (None, selection.get("epoch")) else None


def is_strength(value) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1
