"""Folders of photos as a user has them, and what train.py makes of them; shared by several test files."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.images import Images
from orthcr.run.config import setup_cfg
from orthcr.run.flags import parse
from orthcr.run.runner import main

COLOURS = {
    "café crème": (205, 160, 110),
    "red bus": (210, 30, 30),
    "green_tree": (30, 150, 40),
    "猫": (90, 60, 110),
    "blue boat": (30, 60, 210),
}
KINDS = ("jpeg", "png", "webp", "grey", "cmyk", "exif")
SMALL = ["VERBOSE", "False", "TRAINER.ORTHCR.LAYERS", "[-1]", "TRAINER.ORTHCR.BLOCK_SIZE", "16"]


def draw(path, colour, kind, rng, size=(40, 56)):
    """A noisy picture of one colour, darker at the top, in the format `kind`."""
    pixels = np.array(colour) * np.linspace(0.7, 1.1, size[0])[:, None, None] + rng.normal(0, 12, (*size, 3))
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "exif":  # lies on its side, and says so
        exif = Image.Exif()
        exif[0x0112] = 6
        image.rotate(90, expand=True).save(path.with_suffix(".JPG"), exif=exif, quality=98)
    elif kind in ("grey", "cmyk"):
        image.convert({"grey": "L", "cmyk": "CMYK"}[kind]).save(path.with_suffix(".jpg"))
    else:
        image.save(path.with_suffix(f".{kind}"))


def make_photos(folder, n=12, classes=COLOURS):
    rng = np.random.default_rng(5)
    for name, colour in classes.items():
        for k in range(n):
            draw(folder / name / f"img {k:02}", colour, KINDS[k % len(KINDS)], rng)
    return folder


@pytest.fixture
def photos(tmp_path):
    return make_photos(tmp_path / "my photos")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An output directory whose images are gone; not to be changed."""
    home = tmp_path_factory.mktemp("own")
    folder = make_photos(home / "photos")
    torch.set_num_threads(1)
    opts = [*SMALL, "OPTIM.MAX_EPOCH", "30", "OPTIM.LR", "0.003"]
    assert main(["--images", str(folder), "--output-dir", str(home / "OUT"), *opts]) == 0
    shutil.rmtree(folder)
    return home / "OUT"


def build(source, out, *flags):
    """The data set that train.py would build."""
    cfg = setup_cfg(parse(["--images", str(source), "--output-dir", str(out), *map(str, flags)]))
    return Images(cfg)


def said(capsys, *argv):
    """The one line that train.py says of a bad input."""
    assert main([*map(str, argv)]) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    return lines[0]


def names_of(items):
    return sorted((item.classname, item.impath) for item in items)
