"""What predict.py shows: a table, JSON, a contact sheet."""

import json
import sys
import warnings
from dataclasses import asdict

from tabulate import tabulate

from dassl.files import visible


def as_table(predictions: list) -> str:
    """Args: predictions: `experiments.predictor.Prediction`s of images that could be read."""
    rows = []
    for p in predictions:
        then = visible(", ".join(f"{name} {100 * q:.1f}" for name, q in p.top[1:]))
        rows.append([visible(p.image), visible(p.classname), f"{100 * p.probability:.1f} %", then])
    heads = {"image": "left", "class": "left", "probability": "right", "then": "left"}
    return printable(tabulate(rows, list(heads), disable_numparse=True, colalign=tuple(heads.values())))


def as_json(predictions: list) -> str:
    rows = [asdict(p) for p in predictions]
    text = json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)
    plain = text == printable(text) == visible(text, keep="\n")
    return text if plain else json.dumps(rows, indent=2, allow_nan=False)


def printable(text: str) -> str:
    """With escapes in place of what the standard output cannot take, as file names that are not in its encoding."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def contact_sheet(predictions: list, path: str) -> None:
    """A PNG of at most 24 of the images, taken at equal distances, each with its class and probability."""
    from dassl.utils import read_image  # with torch, which takes seconds, as matplotlib takes one
    from reports.pictures import plt, save

    if len(predictions) > 24:
        predictions = [predictions[k * len(predictions) // 24] for k in range(24)]
    columns = min(6, len(predictions))
    rows = -(-len(predictions) // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, 2.25 * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, p in zip(axes.flat, predictions, strict=False):
        image = read_image(p.image, upright=True)
        image.thumbnail((256, 256))
        ax.imshow(image)
        ax.set_title(f"{p.classname}\n{100 * p.probability:.0f} %", fontsize=9, parse_math=False)  # "$" is no formula
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # matplotlib's font lacks Chinese, Japanese, ...
        save(fig, path)
