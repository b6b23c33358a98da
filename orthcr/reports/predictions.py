"""The outputs of predict.py: a table, JSON, CSV and a contact sheet; pictures that train.py shares."""

import csv
import io
import json
import sys
import warnings
from dataclasses import asdict

import numpy as np
from tabulate import tabulate

from dassl.infrastructure.files import spreadsheet_cell, visible

SEEN = {"train": "trained on", "val": "chosen by"}  # Prediction.seen in words


def as_table(predictions: list) -> str:
    """Return a table for the terminal.

    Args:
        predictions: `orthcr.deploy.predictor.Prediction`s of images that could be read.
    """
    rows = []
    for p in predictions:
        others = visible(", ".join(f"{name} {100 * q:.1f}" for name, q in p.top[1:]))
        label = visible(format_class(p))
        rows.append([visible(p.image), label, f"{100 * p.probability:.1f} %", others, SEEN.get(p.seen, "")])
    heads = {"image": "left", "class": "left", "probability": "right", "then": "left", "": "left"}
    if not any(p.seen for p in predictions):
        rows, heads = [row[:-1] for row in rows], dict(list(heads.items())[:-1])
    return escape_unprintable(tabulate(rows, list(heads), disable_numparse=True, colalign=tuple(heads.values())))


def as_json(predictions: list) -> str:
    rows = [{key: value for key, value in asdict(p).items() if key != "every"} for p in predictions]
    text = json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)
    plain = text == escape_unprintable(text) == visible(text, keep="\n")
    return text if plain else json.dumps(rows, indent=2, allow_nan=False)


def csv_head(classnames: list[str]) -> str:
    """Return the first line of the CSV: columns of the image, then one for each class, in the order of the labels."""
    return csv_line(["image", "class", "probability", "unsure", "seen", "error", *map(spreadsheet_cell, classnames)])


def csv_row(p) -> str:
    """Return the line of a prediction with the probability of every class, or of an unreadable image with its error."""
    image = visible(p.image)
    image = f"./{image}" if spreadsheet_cell(image) != image else image  # the same file
    if p.error:
        return csv_line([image, "", "", "", "", visible(p.error)])
    unsure = "unsure" if p.unsure else ""
    probabilities = [f"{q:.6g}" for q in p.every]
    return csv_line([image, spreadsheet_cell(p.classname), f"{p.probability:.6g}", unsure, p.seen, "", *probabilities])


def csv_line(cells: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def format_class(p) -> str:
    return f"unsure: {p.classname}" if p.unsure else p.classname


def escape_unprintable(text: str) -> str:
    """Return a text with escapes in place of the letters that the encoding of the standard output lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def titles_of(predictions: list) -> list[tuple[str, str]]:
    """Return the path and the title of each image for `contact_sheet`.

    A title is the class, its probability, and "(trained on)" or "(chosen by)" if the model has seen the image.
    """
    marks = {seen: f"\n({words})" for seen, words in SEEN.items()}
    return [(p.image, f"{format_class(p)}\n{100 * p.probability:.0f} %{marks.get(p.seen, '')}") for p in predictions]


def confusion_picture(matrix: np.ndarray, classnames: list[str], path: str, most: int = 40) -> None:
    """Draw a confusion matrix into a PNG file; of more than `most` classes those that are confused most.

    Args:
        matrix: float [n, n], the fraction of each true class (rows) that is predicted as each class (columns).
        classnames: n, in the order of their labels.
        path: path of the PNG file.
        most: largest number of classes in the picture.
    """
    from orthcr.reports.pictures import escape_dollars, plt, save  # imports matplotlib, which takes a second

    n = len(classnames)
    wrong = matrix - np.diag(np.diag(matrix))
    confused = np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:most]
    labels = np.sort(confused)
    shown, names = 100 * matrix[np.ix_(labels, labels)], escape_dollars(visible(classnames[k]) for k in labels)
    size = 10 if len(labels) <= 20 else 7
    side = max(3.4, min(0.5, 0.16 + 6 / len(labels)) * len(labels))  # inches, of the matrix
    room = 0.8 + 0.009 * size * max(map(len, names))  # inches, of the names
    fig, ax = plt.subplots(figsize=(side + room + 1.2, side + room))
    image = ax.imshow(shown, cmap="Blues", vmin=0, vmax=100)
    fig.colorbar(image, ax=ax, label="% of the images of a class", shrink=0.8)
    if len(labels) <= 15:
        for (k, j), value in np.ndenumerate(shown):
            if value >= 0.5:
                ax.text(j, k, f"{value:.0f}", ha="center", va="center", color="w" if value > 60 else "k", fontsize=9)
    ax.set_xticks(range(len(labels)), names, rotation=90, fontsize=size)
    ax.set_yticks(range(len(labels)), names, fontsize=size)
    ax.set(xlabel="predicted class", ylabel="true class")
    if n > len(labels):
        ax.set_title(f"the {len(labels)} of {n:,} classes that are confused most", fontsize=11)
    ax.grid(visible=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # matplotlib's font lacks Chinese, Japanese, ...
        save(fig, path)


def contact_sheet(images: list[tuple[str, str]], path: str) -> None:
    """Draw at most 24 of the images, at equal distances in the list, each below its title.

    Args:
        images: path and title of each.
        path: path of the PNG file.
    """
    from dassl.utils import read_photo  # imports torch, which takes seconds
    from orthcr.reports.pictures import plt, save

    if len(images) > 24:
        images = [images[k * len(images) // 24] for k in range(24)]
    columns = min(6, len(images))
    rows = -(-len(images) // columns)
    lines = max(title.count("\n") + 1 for _, title in images)
    fig, axes = plt.subplots(rows, columns, figsize=(1.9 * columns, (1.9 + 0.17 * lines) * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (image, title) in zip(axes.flat, images, strict=False):
        photo = read_photo(image, side=256)
        photo.thumbnail((256, 256))
        ax.imshow(photo)
        ax.set_title(title, fontsize=9, parse_math=False)  # "$" is no formula
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # matplotlib's font lacks Chinese, Japanese, ...
        save(fig, path)
