"""Tables and pictures on one self-contained HTML page."""

import base64
import html
import json
from pathlib import Path

from PIL import Image

from .pictures import plt

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}}
img{{max-width:100%}} table{{border-collapse:collapse}} td,th{{padding:.3rem .9rem;border-bottom:1px solid #ddd}}
figure{{margin:2rem 0}} figcaption{{color:#555}}</style>
<h1>{title}</h1>
<p>{text}</p>{tables}{figures}</html>"""


def page(title: str, text: str, tables: list[str], pictures: dict[Path, str]) -> str:
    """Args: tables: HTML; pictures: PNG files with their captions."""
    figures = ""
    for path, caption in pictures.items():
        data, caption = base64.b64encode(path.read_bytes()).decode(), html.escape(caption)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        figures += f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n"
    return PAGE.format(title=html.escape(title), text=html.escape(text), tables="\n".join(tables), figures=figures)


def examples(folder: Path):
    """Some images of the base and of the new classes, as the methods get them.

    Args: folder: of an embedded data set with 28 classes or more.
    """
    split = json.loads((folder / "split.json").read_text())["test"]
    names = list(dict.fromkeys(name for _, _, name in split))
    fig, axes = plt.subplots(4, 7, figsize=(11, 7.4))
    for row, line in enumerate(axes):
        for k, ax in enumerate(line):
            name = names[(0 if row < 2 else len(names) // 2) + (row % 2) * 7 + k]
            path = next(path for path, _, of in split if of == name)
            ax.imshow(Image.open(folder / "images" / path), interpolation="nearest")
            ax.set_title(name.replace(" ", "\n", 1), fontsize=9)
            ax.axis("off")
    for row, half in ((0, "base"), (2, "new")):
        ax = axes[row, 0]
        ax.text(-0.3, 0.5, half, rotation=90, weight="bold", transform=ax.transAxes, va="center")
    return fig
