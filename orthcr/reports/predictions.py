"""The outputs of predict.py (table, JSON, CSV, contact sheet), and the pictures of train.py for own images."""

import csv
import io
import json
import sys
import warnings
from dataclasses import asdict

import numpy as np
from tabulate import tabulate

from dassl.infrastructure.files import spreadsheet_cell, visible

SEEN = {"train": "trained on", "val": "selected on"}  # {value of Prediction.seen: words}


def format_table(predictions: list) -> str:
    """Return a table for the terminal.

    Args:
        predictions: `orthcr.deploy.predictor.Prediction`s of readable images.
    """
    rows = []
    for p in predictions:
        other_classes = visible(", ".join(f"{name} {100 * q:.1f}" for name, q in p.top[1:]))
        label = visible(format_class(p))
        rows.append([visible(p.image), label, f"{100 * p.probability:.1f} %", other_classes, SEEN.get(p.seen, "")])
    heads = {"image": "left", "class": "left", "probability": "right", "then": "left", "": "left"}
    if not any(p.seen for p in predictions):
        rows, heads = [row[:-1] for row in rows], dict(list(heads.items())[:-1])
    return escape_unprintable(tabulate(rows, list(heads), disable_numparse=True, colalign=tuple(heads.values())))


def format_json(predictions: list) -> str:
    rows = [{key: value for key, value in asdict(p).items() if key != "every"} for p in predictions]
    text = json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False)
    is_printable = text == escape_unprintable(text) == visible(text, keep="\n")
    return text if is_printable else json.dumps(rows, indent=2, allow_nan=False)


def csv_head(classnames: list[str]) -> str:
    """Return the heading of the CSV: columns about the image, then one for each class in the order of the labels."""
    return csv_line(["image", "class", "probability", "unsure", "seen", "error", *map(spreadsheet_cell, classnames)])


def csv_row(p) -> str:
    """Return the CSV line of a prediction: all probabilities, or the error of an unreadable image."""
    image = visible(p.image)
    image = f"./{image}" if spreadsheet_cell(image) != image else image  # the same file
    if p.error:
        return csv_line([image, "", "", "", "", visible(p.error)])
    mark = "unsure" if p.unsure else ""
    probabilities = [f"{q:.6g}" for q in p.every]
    return csv_line([image, spreadsheet_cell(p.classname), f"{p.probability:.6g}", mark, p.seen, "", *probabilities])


def csv_line(cells: list[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def format_class(p) -> str:
    return f"unsure: {p.classname}" if p.unsure else p.classname


def escape_unprintable(text: str) -> str:
    """Escape the characters that the encoding of the standard output does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def titles_of(predictions: list) -> list[tuple[str, str]]:
    """Return the path and the title of each image for `draw_contact_sheet`.

    A title is the class, its probability and, for an image of the training, "(trained on)" or "(selected on)".
    """
    marks = {part: f"\n({words})" for part, words in SEEN.items()}
    return [(p.image, f"{format_class(p)}\n{100 * p.probability:.0f} %{marks.get(p.seen, '')}") for p in predictions]


def draw_confusion_matrix(matrix: np.ndarray, classnames: list[str], path: str, max_classes: int = 40) -> None:
    """Draw a confusion matrix into a PNG file, with at most `max_classes` classes: those with the most errors.

    Args:
        matrix: float [n, n], the fraction of each true class (rows) that is predicted as each class (columns).
        classnames: names of the n classes, in the order of their labels.
        path: path of the PNG file.
        max_classes: largest number of classes in the picture.
    """
    from orthcr.reports.pictures import escape_dollars, plt, save  # imports matplotlib, which takes a second

    n = len(classnames)
    errors = matrix - np.diag(np.diag(matrix))
    most_confused = np.argsort(-(errors.sum(0) + errors.sum(1)), kind="stable")[:max_classes]
    labels = np.sort(most_confused)
    percentages, names = 100 * matrix[np.ix_(labels, labels)], escape_dollars(visible(classnames[k]) for k in labels)
    size = 10 if len(labels) <= 20 else 7
    side = max(3.4, min(0.5, 0.16 + 6 / len(labels)) * len(labels))  # inches for the matrix
    room = 0.8 + 0.009 * size * max(map(len, names))  # inches for the names
    fig, ax = plt.subplots(figsize=(side + room + 1.2, side + room))
    image = ax.imshow(percentages, cmap="Blues", vmin=0, vmax=100)
    fig.colorbar(image, ax=ax, label="% of the images of a class", shrink=0.8)
    if len(labels) <= 15:
        for (k, j), value in np.ndenumerate(percentages):
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


def draw_contact_sheet(images: list[tuple[str, str]], path: str) -> None:
    """Draw up to 24 images, evenly spaced in the list, each below its title.

    Args:
        images: (path, title) of each image.
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
