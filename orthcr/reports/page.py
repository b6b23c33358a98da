"""An HTML page with tables and pictures in one file. Its styles and its script are in page.html."""

import base64
import html
from pathlib import Path
from string import Template
from typing import NamedTuple

from PIL import Image

from dassl.infrastructure.files import read_json
from orthcr.reports.pictures import plt

PAGE = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))


class Entry(NamedTuple):
    """A cell of a table."""

    text: str
    value: float | None = None  # sort key of the column; None: sort by the text
    is_best: bool = False


def page(title: str, text: str, sections: list[str]) -> str:
    """Return a page as HTML.

    Args:
        title: plain text.
        text: plain text below the title.
        sections: HTML of `section`.
    """
    return PAGE.substitute(title=html.escape(title), text=html.escape(text), body="\n".join(sections))


def section(title: str, parts: list[str], notes: list[str] = ()) -> str:
    """Return a section of a page as HTML.

    Args:
        title: plain text.
        parts: HTML of `grid` and `figure`.
        notes: lines of plain text below the parts.
    """
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    note_list = f"<ul>{items}</ul>" if notes else ""
    return f"<section><h2>{html.escape(title)}</h2>\n" + "\n".join(parts) + f"{note_list}</section>"


def grid(heads: list[str], rows: list[list[Entry]], caption: str = "", is_folded: bool = False) -> str:
    """Return a table as HTML with sortable columns.

    Args:
        heads: headings of the columns.
        rows: entries of each row; the first one is its name.
        caption: plain text above the table.
        is_folded: show the table only after a click on its caption.
    """
    buttons = [f'<th scope="col"><button type="button">{html.escape(head)}</button></th>' for head in heads]
    lines = []
    for first, *other_entries in rows:
        cells = [f'<th scope="row">{html.escape(first.text)}</th>']
        for entry in other_entries:
            mean, has_std, std = html.escape(entry.text).partition(" ± ")
            content = f"{mean} <small>± {std}</small>" if has_std else mean
            value = "" if entry.value is None else f' data-value="{entry.value:.6g}"'
            cells.append(f"<td{value}>{f'<b>{content}</b>' if entry.is_best else content}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head, body = f"<thead><tr>{''.join(buttons)}</tr></thead>", "<tbody>" + "\n".join(lines) + "</tbody>"
    table = f'<div class="wide" tabindex="0" role="region" aria-label="{html.escape(caption or "table")}">'
    table += f"<table>{head}\n{body}</table></div>"
    if is_folded:
        return f"<details><summary>{html.escape(caption)}</summary>{table}</details>"
    return (f"<h3>{html.escape(caption)}</h3>" if caption else "") + table


def figure(path: Path, caption: str) -> str:
    """Return a PNG file as an inline image in HTML."""
    data, caption = base64.b64encode(path.read_bytes()).decode(), html.escape(caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def draw_examples(folder: Path):
    """Draw images of base and new classes as the methods read them.

    Args:
        folder: folder of an embedded data set with 28 classes or more.
    """
    split = read_json(folder / "split.json")["test"]
    names = list(dict.fromkeys(name for _, _, name in split))
    fig, axes = plt.subplots(4, 7, figsize=(11, 7.4))
    for row, line in enumerate(axes):
        for k, ax in enumerate(line):
            name = names[(0 if row < 2 else len(names) // 2) + (row % 2) * 7 + k]
            path = next(path for path, _, classname in split if classname == name)
            ax.imshow(Image.open(folder / "images" / path), interpolation="nearest")
            ax.set_title(name.replace(" ", "\n", 1), fontsize=9)
            ax.axis("off")
    for row, classes in ((0, "base"), (2, "new")):
        ax = axes[row, 0]
        ax.text(-0.3, 0.5, classes, rotation=90, weight="bold", transform=ax.transAxes, va="center")
    return fig
