"""Every kind of model folder with all that is documented to take one: each pair works, or is refused in a line."""

import csv
import json
import shutil
from importlib.util import find_spec

import numpy as np
import own_photos
import pytest
from PIL import Image

import predict
from dassl.infrastructure.files import read_json, write_json
from orthcr.deploy.exporter import export
from orthcr.deploy.predictor import Predictor
from orthcr.deploy.web_page import PageModels

trained = own_photos.trained  # the fixture
FOLDERS = ["run", "openai", "open_clip", "transformers", "onnx"]
CLASSES = "a red bus,a blue boat"


@pytest.fixture(scope="module")
def folders(trained, tmp_path_factory):
    """{kind: a folder with the same model}."""
    if not find_spec("onnxscript"):
        pytest.skip("there is no onnxscript: pip install -e '.[export]'")
    home = tmp_path_factory.mktemp("folders")
    for to in FOLDERS[1:]:
        export(str(trained), to, str(home / to))
    return {"run": trained} | {to: home / to for to in FOLDERS[1:]}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new")
    for k, pixels in enumerate(np.random.default_rng().integers(0, 256, (3, 50, 70, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{k}.png")
    return folder


@pytest.fixture
def say(folders, capsys):
    """say(kind, words...): exit status, standard output and error of predict.py."""

    def run(kind, *words):
        capsys.readouterr()
        status = predict.main(["--model-dir", str(folders[kind]), *map(str, words)])
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_flag(say, folders, images, tmp_path, kind):
    answers = list(Predictor(folders["run"])(images, every=True))
    status, out, err = say(kind, images)
    assert status == 0 and all(p.classname in out for p in answers) and "images/s" in err
    status, out, _ = say(kind, images, "--json", "--threshold", "1", "--top", "2")
    rows = json.loads(out)
    assert status == 0 and [row["unsure"] for row in rows] == [p.probability < 1 for p in answers]
    assert [row["classname"] for row in rows] == [p.classname for p in answers]
    status, _, _ = say(kind, images, "--csv", tmp_path / "a.csv", "--picture", tmp_path / "a.png")
    rows = list(csv.reader((tmp_path / "a.csv").read_text().splitlines()))
    assert status == 0 and (tmp_path / "a.png").stat().st_size > 1000
    for row, p in zip(rows[1:], answers, strict=True):
        assert list(map(float, row[6:])) == pytest.approx(p.every, abs=1e-3)
    for flag, value in (("--classes", CLASSES), ("--template", "a drawing of a {}."), ("--strength", "0.5")):
        status, out, err = say(kind, images, flag, value)
        possible = kind == "run" or flag != "--strength" and kind != "onnx"
        assert status == (0 if possible else 1), (flag, err)
        assert possible or err.startswith("error: ") and err.count("\n") == 1 and "export again" in err


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_page(folders, images, kind):
    served = PageModels(str(folders[kind]), None, 0.5)
    for path in sorted(images.iterdir())[:2]:
        answer, (p,) = served.classify(str(path), "", None), Predictor(folders["run"])(path)
        assert answer.classname == p.classname and answer.probability == pytest.approx(p.probability, abs=1e-4)
    assert served.any_classes == (kind != "onnx") and (served.strength == 1.0) == (kind == "run")
    if served.any_classes:
        assert served.classify(str(path), CLASSES, None).classname in CLASSES.split(",")
    else:
        with pytest.raises(ValueError, match="export again"):
            served.classify(str(path), CLASSES, None)
    if find_spec("gradio"):
        from orthcr.deploy.web_page import UploadFolder, page

        assert page(served, UploadFolder(str(images)))


@pytest.mark.parametrize("kind", FOLDERS[1:])
def test_a_changed_file_is_noticed(folders, tmp_path, kind, one_line):
    """One flipped bit in any file of the folder, or one that is gone."""
    rng = np.random.default_rng()
    for name in read_json(folders[kind] / "export.json")["files"]:
        copy = tmp_path / kind
        shutil.copytree(folders[kind], copy)
        content = bytearray((copy / name).read_bytes())
        content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
        (copy / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is not as it was written") as error:
            Predictor(copy)
        assert one_line(error)
        (copy / name).unlink()
        with pytest.raises(ValueError, match=f"{name} is missing"):
            Predictor(copy)
        shutil.rmtree(copy)


WRONG = [
    ("classes", 5),
    ("classes", "abc"),
    ("classes", ["a"]),
    ("classes", ["a", "a"]),
    ("classes", ["a", {}]),
    ("classes", []),
    ("templates", None),
    ("templates", ["none"]),
    ("format", "exe"),
    ("format", {}),
    ("input", []),
    ("input", {}),
    ("files", ["a"]),
    ("files", {"../x": "0"}),
    ("files", {"model.pt": 7}),
]
WRONG_INPUT = [
    ("SIZE", 5),
    ("SIZE", [32]),
    ("SIZE", [-1, 32]),
    ("SIZE", [10**9, 10**9]),
    ("PIXEL_MEAN", [1]),
    ("PIXEL_MEAN", "abc"),
    ("PIXEL_MEAN", [1e999, 0, 0]),
    ("PIXEL_STD", [0, 0, 0]),
    ("INTERPOLATION", "box"),
    ("INTERPOLATION", None),
]


@pytest.mark.parametrize("key, value", WRONG)
def test_facts_that_are_none(folders, tmp_path, key, value, one_line):
    check_refused(folders["openai"], tmp_path, {key: value}, one_line)


@pytest.mark.parametrize("key, value", WRONG_INPUT)
def test_input_that_is_none(folders, tmp_path, key, value, one_line):
    given = read_json(folders["openai"] / "export.json")["input"]
    check_refused(folders["openai"], tmp_path, {"input": given | {key: value}}, one_line)


def check_refused(folder, tmp_path, changes, one_line):
    copy = shutil.copytree(folder, tmp_path / "copy")
    facts = read_json(copy / "export.json")
    facts.pop("sha256", None)
    (copy / "export.json").write_text(json.dumps(facts | changes).replace("Infinity", "1e999"))
    with pytest.raises(ValueError, match="export again|put the original back") as error:
        Predictor(copy)
    assert str(copy) in one_line(error)


@pytest.mark.parametrize("content", [b"", b"no model", None, "cut", "classes"])
def test_an_onnx_file_that_is_none(folders, tmp_path, content, one_line):
    """Empty, torn, gone, or with another number of classes; checksums left aside."""
    copy = shutil.copytree(folders["onnx"], tmp_path / "copy")
    facts, path = read_json(copy / "export.json"), copy / "model.onnx"
    facts.pop("sha256", None)
    facts["files"] = {}
    if content == "classes":
        facts["classes"] = facts["classes"][:-1]
    elif content == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    (copy / "export.json").unlink()
    write_json(facts, copy / "export.json")
    with pytest.raises(ValueError, match="model.onnx .*export again") as error:
        Predictor(copy)
    assert one_line(error)
