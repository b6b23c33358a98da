"""Own photographs are read as a viewer shows them, no larger than needed; benchmarks exactly as Dassl reads them."""

import os
import pickle
import random
import sys

import numpy as np
import own_photos
import pytest
import torch
from own_photos import said
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper, data_manager
from dassl.data.data_manager import needed_side
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.infrastructure import images
from dassl.utils import as_photo, read_image, read_photo
from datasets.shared.image_files import image_problem
from orthcr.reports.predictions import draw_contact_sheet
from predict import Predictor

trained = own_photos.trained  # the fixture


def cfg_of(photographs=True, size=32, **keys):
    cfg = get_cfg_default()
    cfg.INPUT.SIZE, cfg.INPUT.EXIF_TRANSPOSE = (size, size), photographs
    for key, value in keys.items():
        cfg.INPUT[key] = value
    return cfg


def smooth(width, height):
    """A picture without fine detail, as photographs are when looked at closely."""
    small = np.random.default_rng().integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


# ------------------------------------------------------------------ transparency


def transparent(kind, rng):
    """An image of that kind, and the pixels float64 [9, 7, 3] that it has on white."""
    colour, alpha = rng.integers(0, 256, (9, 7, 3), dtype=np.uint8), rng.integers(0, 256, (9, 7, 1), dtype=np.uint8)
    if kind in ("LA", "L key"):
        colour[:] = colour[..., :1]
    if kind in ("RGBA", "LA"):
        image = Image.fromarray(np.concatenate([colour, alpha], 2)).convert(kind)
    else:  # one colour, or one entry of the palette, stands for transparent
        colour[:4], alpha[:] = colour[0, 0], 255
        alpha[(colour == colour[0, 0]).all(2)] = 0
        image = Image.fromarray(colour)
        image = image.convert("L") if kind == "L key" else image.quantize(256) if kind == "P" else image
        image.info["transparency"] = {"RGB key": tuple(map(int, colour[0, 0]))}.get(kind, image.getpixel((0, 0)))
        colour = np.asarray(image.convert("RGB")) if kind == "P" else colour
        if kind == "P":  # of which two entries may be alike
            alpha = np.where(np.asarray(image)[..., None] == image.getpixel((0, 0)), 0, 255)
    share = alpha / 255
    return image, share * colour + (1 - share) * 255


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "RGB key", "L key"])
def test_what_is_transparent_is_on_white(kind, tmp_path):
    image, wanted = transparent(kind, np.random.default_rng())
    image.save(tmp_path / "a.png", transparency=image.info.get("transparency"))
    got = read_photo(tmp_path / "a.png")
    assert got.mode == "RGB" and np.abs(np.asarray(got, float) - wanted).max() <= 1
    (item,) = DatasetWrapper(cfg_of(), [Datum(str(tmp_path / "a.png"))], np.asarray, is_train=True)
    assert np.array_equal(item["img"], got), "in training"


@pytest.mark.parametrize("kind", ["RGB", "L", "CMYK", "RGBA", "LA", "P", "RGB key", "L key"])
def test_large_images_are_converted_in_parts_to_the_same_pixels(kind, monkeypatch):
    rng = np.random.default_rng()
    if kind in ("RGB", "L", "CMYK"):
        image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).convert(kind)
    else:
        image, _ = transparent(kind, rng)
    for orientation in range(9):
        image.getexif()[0x0112] = orientation
        whole = as_photo(image)
        for rows in (1, 2, 4):
            monkeypatch.setattr(images, "LARGE", 7 * rows)
            parts = as_photo(image)
            assert parts.mode == "RGB" and np.array_equal(parts, whole), (orientation, rows)
            monkeypatch.undo()


def promise(kind, side, path, **how):
    """Write a JPEG whose head says that it is `side` pixels wide and high, with the data of a small one."""
    Image.new(kind, (64, 64)).save(path, "JPEG", **how)
    data = bytearray(path.read_bytes())
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    data[at + 5 : at + 9] = 2 * side.to_bytes(2, "big")
    path.write_bytes(data)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("read", [read_photo, read_image])
def test_cmyk_has_the_limit_of_four_bands(read, progressive, tmp_path, one_line):
    side = random.randint(8193, 13_000)
    promise("CMYK", side, tmp_path / "a.jpg", progressive=progressive)
    with pytest.raises(OSError) as caught:
        read(tmp_path / "a.jpg")
    assert f"it is {side} x {side} pixels, more than 67 million" in one_line(caught)


@pytest.mark.parametrize("read", [read_photo, read_image])
def test_pipes_and_devices_are_not_read(read, tmp_path, one_line):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "zero.png"):
        with pytest.raises(OSError) as caught:
            read(tmp_path / name)
        assert "is a device, a pipe or a socket" in one_line(caught)


def test_what_is_not_there_is_said_without_numbers_of_the_system(trained, tmp_path):
    (tmp_path / "circle.png").symlink_to("circle.png")
    predictions = list(Predictor(trained)([str(tmp_path / "none.png"), str(tmp_path / "circle.png")]))
    assert predictions[0].error == "there is no such file"
    assert all(p.error and "Errno" not in p.error for p in predictions)


def test_two_drawings_on_transparent_ground_are_told_apart(trained, tmp_path):
    """A circle and a cross, both black, differ in their alpha alone."""
    at = np.indices((40, 40)) - 20
    for name, shape in (("circle", (at**2).sum(0) < 200), ("cross", np.abs(at).min(0) < 5)):
        pixels = np.zeros((40, 40, 4), np.uint8)
        pixels[..., 3] = 255 * shape
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    circle, cross = Predictor(trained)([tmp_path / "circle.png", tmp_path / "cross.png"])
    assert circle.top != cross.top
    (in_memory,) = Predictor(trained)(Image.open(tmp_path / "circle.png"))
    assert in_memory.probability == pytest.approx(circle.probability, abs=1e-5)

    draw_contact_sheet([(str(tmp_path / "cross.png"), "a cross")], str(tmp_path / "sheet.png"))
    with Image.open(tmp_path / "sheet.png") as sheet:
        light = (np.asarray(sheet.convert("L")) > 250).mean()
    assert light > 0.6, "the ground of the picture is white"


# ------------------------------------------------------------------ benchmarks stay exact


def test_benchmarks_are_read_as_dassl_reads_them(tmp_path, monkeypatch):
    """Large, lying on its side, transparent: the pixels are those of `Image.open(path).convert("RGB")`."""
    rng, exif = np.random.default_rng(), Image.Exif()
    exif[0x0112] = 6
    smooth(900, 700).save(tmp_path / "a.jpg", exif=exif)
    smooth(900, 700).convert("CMYK").save(tmp_path / "b.jpg")
    Image.fromarray(rng.integers(0, 256, (300, 200, 4), dtype=np.uint8)).save(tmp_path / "c.png")
    transparent("P", rng)[0].save(tmp_path / "d.png")
    items = [Datum(str(path)) for path in sorted(tmp_path.iterdir())]
    cfg = cfg_of(photographs=False, TRANSFORMS=("random_resized_crop", "normalize"))
    wanted = [Image.open(item.impath).convert("RGB") for item in items]

    def draft(self, *args):
        raise AssertionError("decoded at a reduced scale")

    monkeypatch.setattr(JpegImageFile, "draft", draft)
    for is_train in (True, False):
        transform = build_transform(cfg, is_train=is_train)
        data = DatasetWrapper(cfg, items, transform, is_train=is_train)
        assert not data.copies
        for k, image in enumerate(wanted):
            assert np.array_equal(read_image(items[k].impath), image)
            torch.manual_seed(k)
            tensor = transform(image)
            torch.manual_seed(k)
            assert data[k]["img"].equal(tensor)


# ------------------------------------------------------------------ no larger than needed


@pytest.mark.parametrize(
    ("names", "scale", "side"),
    [
        ((), (0.08, 1.0), 448),
        (("random_resized_crop",), (0.25, 1.0), 448),
        (("random_resized_crop",), (0.04, 1.0), 1120),  # a fifth of the side is 224
        (("random_crop",), (0.08, 1.0), 0),
    ],
)
def test_the_side_that_training_needs(names, scale, side):
    cfg = cfg_of(size=224, TRANSFORMS=names, RRCROP_SCALE=scale)
    assert needed_side(cfg) == side
    assert DatasetWrapper(cfg, [], is_train=True).side == side and DatasetWrapper(cfg, []).side == 0


@pytest.mark.parametrize("rule", ["last_step", "best_val"])
def test_evaluation_sees_all_pixels(rule, tmp_path, monkeypatch):
    """The tensors are those of the full picture to the bit, from small copies where every epoch asks for them."""
    items = [Datum(str(tmp_path / f"{k}.jpg")) for k in range(4)]
    for item in items:
        smooth(*map(int, np.random.default_rng().integers(200, 700, 2))).save(item.impath)
    cfg = cfg_of(INTERPOLATION="bicubic", TRANSFORMS=("normalize",))
    cfg.TEST.FINAL_MODEL = rule
    transform = build_transform(cfg, is_train=False)
    data = DatasetWrapper(cfg, items, transform)
    data.keep_copies()
    assert [min(copy.size) for copy in data.copies.values()] == ([32] * 4 if rule == "best_val" else [])
    for k, item in enumerate(items):
        assert data[k]["img"].equal(transform(read_image(item.impath)))

    def refuse(*args):
        raise AssertionError("decoded at a reduced scale")

    monkeypatch.setattr(JpegImageFile, "draft", refuse)
    assert DatasetWrapper(cfg, items, transform)[0]["img"].equal(data[0]["img"])


@pytest.mark.parametrize(("width", "height", "side"), [(1600, 1200, 64), (1200, 1600, 200), (1000, 100, 64)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_large_photographs_are_reduced(width, height, side, suffix, tmp_path):
    """To the side asked for, in proportion; what the test transform makes of it is nearly the same."""
    smooth(width, height).save(tmp_path / f"a.{suffix}")
    full, small = read_image(tmp_path / f"a.{suffix}"), read_photo(tmp_path / f"a.{suffix}", side)
    scale = side / min(width, height)
    assert min(small.size) == side and small.size == (int(width * scale), int(height * scale))
    transform = build_transform(cfg_of(size=side // 2, INTERPOLATION="bicubic"), is_train=False)
    assert (transform(full) - transform(small)).abs().mean() < 0.01  # of 1
    assert read_photo(tmp_path / f"a.{suffix}", 5000).size == (width, height), "never enlarged"


def test_a_photograph_is_decoded_once(tmp_path, monkeypatch):
    """Copies are kept as far as they fit; what does not is read again, to the same bits."""
    for k in range(5):
        smooth(400, 300).save(tmp_path / f"{k}.jpg")
    items = [Datum(str(tmp_path / f"{k}.jpg")) for k in range(5)]
    monkeypatch.setattr(data_manager, "COPIES", 3 * 3 * 64 * 85 + 100)  # three, of 64 x 85 pixels
    cfg = cfg_of()
    data = DatasetWrapper(cfg, items, np.asarray, is_train=True)
    data.keep_copies()
    assert list(data.copies) == [item.impath for item in items[:3]]
    wanted, opened, image_open = [read_photo(item.impath, 64) for item in items], [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, formats: opened.append(path) or image_open(path, formats=formats))
    for _ in range(2):
        for item, photo in zip(list(data), wanted, strict=True):
            assert np.array_equal(item["img"], photo)
    assert opened == [item.impath for item in items[3:]] * 2
    data.read(items[0].impath).paste("red", (0, 0, 64, 64))
    assert np.array_equal(data[0]["img"], wanted[0]), "no transform can spoil a copy"
    sent = pickle.loads(pickle.dumps(data))
    assert not sent.copies and np.array_equal(sent[0]["img"], wanted[0]), "a worker that is spawned"


# ------------------------------------------------------------------ HEIF

HEIC = b"\0\0\0\x18ftypheic"


class PillowHeif:
    """Stands for the package: its images are one red pixel."""

    @staticmethod
    def register_heif_opener():
        Image.register_open(
            "HEIF", lambda fp, name: Image.new("RGB", (1, 1), "red"), lambda head: head[:12] == HEIC[:12]
        )


@pytest.fixture
def no_heif(monkeypatch):
    ids, openers = list(Image.ID), dict(Image.OPEN)
    monkeypatch.setattr(Image, "ID", [name for name in ids if name != "HEIF"])
    monkeypatch.setattr(Image, "OPEN", {name: opener for name, opener in openers.items() if name != "HEIF"})
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


@pytest.mark.parametrize("name", ["IMG_1.HEIC", "renamed.jpg"])
def test_heif_asks_for_its_decoder(name, no_heif, tmp_path, monkeypatch, capsys):
    path = tmp_path / "photos" / "cat" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(HEIC + bytes(100))
    (tmp_path / "photos" / "dog").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "photos" / "dog" / "a.png")
    assert image_problem(str(path)).endswith("pip install pillow-heif")
    with pytest.raises(OSError, match=f'"{path}".*: pip install pillow-heif$'):
        read_photo(path)
    told = said(capsys, "--images", tmp_path / "photos", "--output-dir", tmp_path / "OUT", "VERBOSE", "False")
    assert "1 of 2 images cannot be read" in told and "pip install pillow-heif, or leave them out" in told

    monkeypatch.setitem(sys.modules, "pillow_heif", PillowHeif)
    assert image_problem(str(path)) == "" and read_photo(path).getpixel((0, 0)) == (255, 0, 0)


def test_a_damaged_file_is_not_taken_for_heif(no_heif, tmp_path):
    (tmp_path / "a.heic").write_bytes(b"no image at all")
    assert "cannot identify" in image_problem(str(tmp_path / "a.heic"))
