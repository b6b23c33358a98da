"""One picture, one answer: predict.py, the Predictor from memory, and the code of each exported folder's card."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import FORMATS, make_run, small  # noqa: F401

from dassl.infrastructure.files import read_json, write_json
from dassl.utils import as_photo
from orthcr.deploy.exporter import export, load_on_cpu
from orthcr.deploy.predictor import Predictor
from orthcr.run.temperature import TEMPERATURE, identity

CLASSES = ["hand_signs", "café crème", "Über_house's 7th"]
ORIENTATIONS = range(1, 9)
T = 2.38


def photograph(width, height, mode="RGB"):
    """A picture in which every direction and every edge differs."""
    pixels = np.random.default_rng().integers(0, 256, (height // 9 + 2, width // 9 + 2, 4), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def files(tmp_path):
    """Pictures of odd sizes, of all orientations, and of all the modes that people have."""
    home, rng = tmp_path / "pictures", np.random.default_rng()
    home.mkdir()
    for k, suffix in [(k, suffix) for k in ORIENTATIONS for suffix in ("jpg", "tif", "png")]:
        exif = Image.Exif()
        exif[0x0112] = k
        photograph(*map(int, rng.integers(60, 300, 2))).save(home / f"turned{k}.{suffix}", exif=exif)
    for k in range(12):  # of which some have a longer side that is rounded, and an odd margin around the centre
        photograph(*map(int, rng.integers(33, 400, 2))).save(home / f"odd{k}.png")
    for mode in ("RGBA", "LA", "L", "P", "1"):
        photograph(97, 61, mode).save(home / f"{mode}.png")
    photograph(97, 61, "RGBA").quantize(64).save(home / "P with alpha.png")
    photograph(97, 61, "CMYK").save(home / "cmyk.jpg")
    photograph(1900, 1301).save(home / "large.jpg", quality=95)
    return sorted(home.iterdir())


@pytest.fixture
def calibrated(make_run):  # noqa: F811
    """calibrated(trainer, KEY, VALUE...): a run with a temperature beside it."""

    def make(name, *opts):
        run = make_run(name, *opts, classes=CLASSES)
        write_json({"temperature": T, "of": identity(load_on_cpu(run, None, None), run)}, f"{run}/{TEMPERATURE}")
        return run

    return make


def run_card(folder, picture):
    """Run the first program of the card on a picture; returns what it defines."""
    (folder / "image.jpg").write_bytes(picture.read_bytes())
    program = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
    scope = {}
    exec(program, scope)
    return scope


def probabilities(predictor, image):
    (answer,) = predictor(image, every=True)
    assert not answer.error
    return list(answer.every)


@pytest.mark.parametrize("to", FORMATS)
def test_the_card_answers_as_predict_does(calibrated, files, tmp_path, monkeypatch, capsys, to):
    """Every class, with the temperature, whatever the picture."""
    pytest.importorskip(FORMATS[to])
    run, folder = calibrated("OrthCR"), tmp_path / "exported"
    capsys.readouterr()
    export(run, to, str(folder))
    assert "temperature 2.38" in capsys.readouterr().out and "temperature 2.38" in (folder / "README.md").read_text()
    monkeypatch.chdir(folder)
    trained, exported = Predictor(run, device="cpu"), Predictor(folder, device="cpu")
    assert trained.temperature == T
    rng = np.random.default_rng()
    for picture in rng.choice(files, 4, replace=False):
        scope, wanted = run_card(folder, picture), probabilities(trained, picture)
        assert len(set(np.round(wanted, 4))) == 3, "the classes differ"
        assert scope["probabilities"][0].tolist() == pytest.approx(wanted, abs=2e-5), picture.name
        assert probabilities(exported, picture) == pytest.approx(wanted, abs=2e-5)
        said = capsys.readouterr().out.splitlines()
        assert f"{CLASSES[int(np.argmax(wanted))]} {max(wanted):.1%}" in said
    for picture in files:
        with Image.open(picture) as opened:
            pixels = trained.transform(as_photo(opened))
        card = torch.from_numpy(np.asarray(scope["open_image"](picture))).permute(2, 0, 1) / 255
        mean, std = (torch.tensor(scope["facts"]["input"][key])[:, None, None] for key in ("PIXEL_MEAN", "PIXEL_STD"))
        torch.testing.assert_close((card - mean) / std, pixels, msg=picture.name)
    if to != "onnx":
        card = (folder / "README.md").read_text()
        assert "`hand_signs` | a photo of a digit hand signs. |" in card, "the card has the prompt, not the name alone"


@pytest.mark.parametrize("to", ["openai", "open_clip", "transformers"])
def test_several_prompts_are_averaged(calibrated, files, tmp_path, monkeypatch, to):
    pytest.importorskip(FORMATS[to])
    run, folder = (
        calibrated("ZeroshotCLIP2", "INPUT.PIXEL_STD", [0.1, 0.2, 0.3], "INPUT.INTERPOLATION", "bilinear"),
        (tmp_path / "exported"),
    )
    export(run, to, str(folder))
    assert len(read_json(folder / "export.json")["prompts"][0]) == 8
    monkeypatch.chdir(folder)
    picture = files[int(np.random.default_rng().integers(len(files)))]
    wanted = probabilities(Predictor(run, device="cpu"), picture)
    assert run_card(folder, picture)["probabilities"][0].tolist() == pytest.approx(wanted, abs=2e-5)


def test_every_door_gives_the_same_pixels(calibrated, files):
    """A path, an opened image, bytes and an open file; an array and a tensor of the pixels as they are shown."""
    predictor = Predictor(calibrated("OrthCR"), device="cpu")
    for picture in files:
        wanted = probabilities(predictor, picture)
        content = picture.read_bytes()
        with Image.open(picture) as opened:
            shown = as_photo(opened)
        doors = [str(picture), Image.open(picture), content, bytearray(content), io.BytesIO(content)]
        doors += [shown, np.asarray(shown), torch.from_numpy(np.array(shown)).permute(2, 0, 1)]
        for door in doors:
            assert probabilities(predictor, door) == wanted, (picture.name, type(door))
        with open(picture, "rb") as f:
            assert probabilities(predictor, f) == wanted


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientations_are_turned_once(tmp_path, suffix):
    """All eight, of every kind of file that has them, show the same picture, top left red."""
    upright = Image.new("RGB", (48, 32), "blue")
    upright.paste("red", (0, 0, 16, 16))
    turns = [None, 0, 3, 1, 5, 2, 6, 4]  # Image.Transpose that undoes what each orientation says
    for k, turn in zip(ORIENTATIONS, turns, strict=True):
        exif = Image.Exif()
        exif[0x0112] = k
        path = tmp_path / f"{k}.{suffix}"
        (upright if turn is None else upright.transpose(turn)).save(path, exif=exif, quality=98)
        with Image.open(path) as opened:
            shown = np.asarray(as_photo(opened), float)
        assert np.abs(shown - np.asarray(upright, float)).mean() < 4, k


# ------------------------------------------------------------------ what memory may hold


@pytest.fixture(scope="module")
def any_predictor(tmp_path_factory):
    from own_photos import COLOURS  # noqa: F401

    folder = tmp_path_factory.mktemp("zero")
    from orthcr.run.runner import main

    words = ["--trainer", "ZeroshotCLIP", "--output-dir", str(folder / "OUT"), "--root", str(folder / "data")]
    assert main([*words, "--dataset-config-file", "configs/datasets/digits.yaml", "VERBOSE", "False"]) == 0
    return Predictor(folder / "OUT", device="cpu")


REFUSED = [
    (Image.new("I;16", (40, 40), 300), "mode I;16, not 8 bits"),
    (Image.new("F", (40, 40)), "mode F, not 8 bits"),
    (Image.new("RGB", (900, 4)), "100 times as long as wide"),
    (np.zeros((40, 40, 3), np.float32), "an array, float32 [40, 40, 3]"),
    (np.zeros((3, 40, 40), np.uint8), "an array, uint8 [3, 40, 40]"),
    (np.zeros((0, 40, 3), np.uint8), "an array, uint8 [0, 40, 3]"),
    (torch.zeros(3, 40, 40), "a tensor, float32 [3, 40, 40]"),
    (torch.zeros(40, 40, 3, dtype=torch.uint8), "a tensor, uint8 [40, 40, 3]"),
    (b"no picture", "cannot identify"),
    (io.BytesIO(b""), "cannot identify"),
    (io.StringIO("text"), ""),
    (None, "of type NoneType"),
    (7, "of type int"),
]


@pytest.mark.parametrize("image, reason", REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_what_cannot_be_shown_costs_no_other_image_its_answer(any_predictor, image, reason, tmp_path):
    good = photograph(50, 40)
    for images in ([good, image, good], iter([good, image, good])):
        first, bad, last = any_predictor(images)
        assert (first.image, bad.image, last.image) == ("image 1", "image 2", "image 3")
        assert first.top == last.top and not first.error and reason in bad.error and bad.error and not bad.top
        assert "\n" not in bad.error


def test_a_torn_picture_in_memory(any_predictor):
    stream = io.BytesIO()
    photograph(200, 150).save(stream, "JPEG")
    torn = stream.getvalue()[: len(stream.getvalue()) // 2]
    answers = list(any_predictor([photograph(50, 40), torn, Image.open(io.BytesIO(torn)), photograph(50, 40)]))
    assert [bool(p.error) for p in answers] == [False, True, True, False] and "truncated" in answers[1].error


def test_sixteen_bits_are_refused_from_a_file_too(any_predictor, tmp_path):
    Image.fromarray(np.full((40, 40), 30000, np.uint16)).save(tmp_path / "a.png")
    (answer,) = any_predictor(tmp_path / "a.png")
    (in_memory,) = any_predictor(Image.open(tmp_path / "a.png"))
    assert answer.error == in_memory.error and "convert it" in answer.error


def test_a_batch_of_pixels_is_many_images(any_predictor):
    pixels = np.random.default_rng().integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    wanted = [p.probability for p in any_predictor([Image.fromarray(image) for image in pixels])]
    assert [p.probability for p in any_predictor(pixels)] == wanted
    assert [p.probability for p in any_predictor(torch.from_numpy(pixels).permute(0, 3, 1, 2))] == wanted
    (single,) = any_predictor(pixels[0])
    assert single.probability == pytest.approx(wanted[0], abs=1e-6)


def test_an_iterator_is_answered_one_by_one(any_predictor):
    asked = []

    def camera():
        for k in range(1000):
            asked.append(k)
            yield photograph(50, 40)

    answers = any_predictor(camera())
    for k in range(3):
        assert next(answers).image == f"image {k + 1}" and len(asked) == k + 1


@pytest.mark.parametrize("options, words", [({"top": 0}, "top must be at least 1"), ({"threshold": 2}, "threshold")])
def test_wrong_options_are_said_at_once(any_predictor, options, words):
    with pytest.raises(ValueError, match=words):
        any_predictor([photograph(50, 40)], **options)


def test_class_names_in_one_text_are_refused(calibrated, one_line):
    with pytest.raises(ValueError, match="cat,dog") as error:
        Predictor(calibrated("OrthCR"), classes="cat,dog")
    assert "list" in one_line(error)
