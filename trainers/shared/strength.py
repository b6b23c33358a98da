"""How much of what was trained is used: s in [0, 1], from the pretrained CLIP (0) to the tuned one (1).

"auto" is chosen on val images of the data that was trained on, by the one-standard-error rule (Breiman et al. 1984,
"Classification and Regression Trees", section 3.4.3): of the strengths tried the smallest whose accuracy is within one
standard error, sqrt(p (1 - p) / n), of the best accuracy p of n images.
"""

import os.path as osp

from .files import read_json, write_json

AUTO = "auto"
TRIED = (0.0, 0.25, 0.5, 0.75, 1.0)
WITHOUT_VAL = 1.0  # "auto" for data without val images, as ImageNet's
KEPT = "strength.json"  # beside the checkpoints


def standard_error(right: int, n: int) -> float:
    """Of the share of n images that are right."""
    p = right / n
    return (p * (1 - p) / n) ** 0.5


def one_standard_error(right: dict[float, int], n: int) -> float:
    """The smallest strength within one standard error of the best.

    Args:
        right: by strength, how many of the n images are classified rightly.
    """
    best = max(right.values())
    least = best / n - standard_error(best, n)
    return min(s for s, count in right.items() if count / n >= least)


def choice(right: dict[float, int], n: int, epoch: int | None) -> dict:
    """The chosen strength with all that it rests on, as `strength.json` holds it.

    Args:
        epoch: of the checkpoint; None: the best on val.
    """
    best = max(right.values())
    return {
        "strength": one_standard_error(right, n),
        "epoch": epoch,
        "val_images": n,
        "val_accuracy": {f"{s:g}": 100 * count / n for s, count in sorted(right.items())},
        "standard_error": 100 * standard_error(best, n),
    }


def without_val(epoch: int | None) -> dict:
    return {"strength": WITHOUT_VAL, "epoch": epoch, "val_images": 0}


def told(chosen: dict) -> str:
    """A small table and a line: what was tried on val, and what is taken."""
    s, tried = chosen["strength"], chosen.get("val_accuracy")
    if not tried:
        return f"Strength {s:g}: there are no val images to choose it by"
    rows = [["strength", *tried], ["val", *(f"{accuracy:.1f}%" for accuracy in tried.values())]]
    lines = ["  ".join(word.rjust(8) for word in row) for row in rows]
    rule = (
        f"within one standard error ({chosen['standard_error']:.1f}) of the best of {chosen['val_images']:,} val images"
    )
    return "\n".join([*lines, f"Strength {s:g}: the smallest {rule}"])


def keep(chosen: dict, directory: str) -> None:
    write_json(chosen, osp.join(directory, KEPT), seal=True)


def kept(directory: str, epoch: int | None = None) -> dict | None:
    """What was chosen for the model of a directory, or for its checkpoint of `epoch`; None: nothing.

    Raises:
        ValueError: the file is damaged.
    """
    path = osp.join(directory, KEPT)
    if not osp.isfile(path):
        return None
    chosen = read_json(path)
    if not isinstance(chosen, dict) or not is_strength(chosen.get("strength")):
        raise ValueError(f"{path} holds no strength between 0 and 1: put the original back, or remove it")
    return chosen if epoch in (None, chosen.get("epoch")) else None


def is_strength(value) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1
