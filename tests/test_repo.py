"""The repository itself: links, licence, linter, and no file that does not belong here."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import trainers
from dassl.engine import TRAINER_REGISTRY
from orthcr.run.declarations import discover

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(str(page.relative_to(ROOT)) for page in sorted(ROOT.glob("docs/**/*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_links_to_is_there(page):
    path = ROOT / page
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", path.read_text())
    assert not [link for link in links if not (path.parent / link).exists()]


def test_the_readme_is_finished():
    text = (ROOT / "README.md").read_text()
    assert not re.findall(r"\b[A-Z]+_(?:TABLE|COMMENT|STEP|TEXT)\b", text)


def test_the_path_of_one_step_names_what_is_in_its_files():
    steps = re.findall(r"^\d+\. \[(\S+)\]\(\S+\) (.*)$", (ROOT / "docs" / "design.md").read_text(), re.MULTILINE)
    assert len(steps) == 10
    for file, sentence in steps:
        for name in re.findall(r"`(\w+)`", sentence):
            assert re.search(rf"\b{name}\b", (ROOT / file).read_text()), (file, name)


WITH_CODE = (ROOT / "README.md").read_text() + (ROOT / "docs" / "design.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", WITH_CODE, re.DOTALL)
TRAINERS = {name: code for code in CODE for name in re.findall(r"register\(\)\nclass (\w+)", code)}


@pytest.mark.parametrize("name", ["ClassScale", "MyOrthCR"])
def test_the_trainers_of_the_pages_run(name, tmp_path, monkeypatch, make_trainer):
    assert sum(bool(line.strip()) for line in TRAINERS[name].splitlines()) < 25
    discover(trainers)  # else they would be registered for this test only
    (tmp_path / f"readme_{name.lower()}.py").write_text(TRAINERS[name])
    monkeypatch.setattr(trainers, "__path__", [*trainers.__path__, str(tmp_path)])
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", dict(TRAINER_REGISTRY._obj_map))

    trainer = make_trainer("MODEL.BACKBONE.NAME", "tiny", "INPUT.SIZE", (32, 32), "OPTIM.MAX_EPOCH", 1, trainer=name)
    before = {key: value.clone() for key, value in trainer.model.get_submodule(trainer.learner).state_dict().items()}
    trainer.train()
    after = trainer.model.get_submodule(trainer.learner).state_dict()
    assert all(after[key].isfinite().all() and not after[key].equal(value) for key, value in before.items())
    assert 0 <= trainer.results["accuracy"] <= 100
    assert (tmp_path / "out" / trainer.learner / "model.pth.tar-1").exists()


def test_the_trainer_of_the_readme_is_zero_shot_on_new_classes(tmp_path, monkeypatch, make_trainer):
    discover(trainers)
    (tmp_path / "readme_scale.py").write_text(TRAINERS["ClassScale"])
    monkeypatch.setattr(trainers, "__path__", [*trainers.__path__, str(tmp_path)])
    monkeypatch.setattr(TRAINER_REGISTRY, "_obj_map", dict(TRAINER_REGISTRY._obj_map))
    opts = ["MODEL.BACKBONE.NAME", "tiny", "INPUT.SIZE", (32, 32), "OPTIM.MAX_EPOCH", 1, "OPTIM.LR", 3.0]
    trained = make_trainer(*opts, "DATASET.SUBSAMPLE_CLASSES", "base", trainer="ClassScale")
    trained.train()
    assert trained.model.learner["scale"].std() > 0.1

    new = make_trainer(*opts, "DATASET.SUBSAMPLE_CLASSES", "new", trainer="ClassScale", out="new")
    zero_shot = new.test()
    new.load_model(trained.output_dir)
    assert new.test() == zero_shot
    with torch.no_grad():  # by position it would have been something else
        new.model.learner["scale"].copy_(trained.model.learner["scale"])
    assert new.test() != zero_shot


def test_the_four_commands_of_the_readme(tmp_path):
    """From images to a deployed file, as they stand there, in a folder with the tracked files alone."""
    deploy = (ROOT / "README.md").read_text().split("\n## Deploy\n")[1]
    block = re.search(r"```bash\n(.*?)```", deploy, re.DOTALL)[1].splitlines()
    commands = [words for line in block if (words := shlex.split(line, comments=True)) and words[0] == "python"]
    assert [words[1] for words in commands] == ["train.py", "train.py", "export.py", "predict.py"]
    for name in subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tmp_path / name)
    assert not (tmp_path / "data").exists() and not (tmp_path / "output").exists()

    commands[0] += ["OPTIM.MAX_EPOCH", "10"]  # it has 40, which take half a minute
    env, said = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, []
    for words in commands:
        done = subprocess.run([sys.executable, *words[1:]], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
        said.append(done.stdout)

    rows = dict(re.findall(r"^(data/digits/images/\w+/test_\d+\.png) +(\w+) ", said[3], re.MULTILINE))
    right = sum(name == path.split("/")[3] for path, name in rows.items())
    assert {f"* total: {len(rows)}", f"* correct: {right}"} <= set(said[1].splitlines())
    assert f"* accuracy: {100 * right / len(rows):.1f}%" in said[1].splitlines() and right > len(rows) / 5

    session = onnxruntime.InferenceSession(str(tmp_path / "output" / "digits-onnx" / "model.onnx"))
    meta = session.get_modelmeta().custom_metadata_map
    mean, std = (np.float32(json.loads(meta["input"])[f"PIXEL_{key}"]) for key in ("MEAN", "STD"))
    images = np.stack([Image.open(tmp_path / path) for path in rows]) / np.float32(255)  # of the size it wants
    (logits,) = session.run(None, {"image": ((images - mean) / std).transpose(0, 3, 1, 2)})
    assert [json.loads(meta["classes"])[k] for k in logits.argmax(1)] == list(rows.values())


def test_the_tiny_clip_is_small():
    assert (ROOT / "assets" / "tiny_clip.safetensors").stat().st_size <= 8 * 2**20


ARROWS = {  # what may be imported, besides itself
    "dassl": set(),
    "datasets": {"dassl"},
    "trainers": {"dassl"},
    "orthcr": {"trainers", "datasets", "dassl"},
}
ROOMS = {  # of orthcr: the others that it may import
    "reports": set(),
    "run": {"reports"},
    "compare": {"run", "reports"},
    "deploy": {"run", "reports"},
}
ENTRIES = [path for path in ROOT.glob("*.py") if path.name != "setup.py"]


def imported(path):
    """First words of all that it imports, in functions too."""
    yield from (name.split(".")[0] for name in imported_names(path))


def imported_names(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", ARROWS)
def test_imports_run_one_way(package):
    """Entry points -> orthcr -> trainers, datasets -> dassl, which never imports clip either."""
    entries = {path.stem for path in ENTRIES}
    unwanted = ({*ARROWS, "clip"} if package == "dassl" else {*ARROWS}) - {package} - ARROWS[package]
    for path in (ROOT / package).rglob("*.py"):
        assert not {*imported(path)} & (unwanted | entries), path


@pytest.mark.parametrize("room", ROOMS)
def test_the_rooms_of_the_application(room):
    """Its packages import one way, too."""
    for path in (ROOT / "orthcr" / room).rglob("*.py"):
        others = {name.split(".")[1] for name in imported_names(path) if name.startswith("orthcr.")} & ROOMS.keys()
        assert others <= {room} | ROOMS[room], path


def test_no_entry_point_imports_another():
    entries = {path.stem for path in ENTRIES}
    for path in ENTRIES:
        assert not {*imported(path)} & entries, path
    for path in ROOT.glob("tests/*.py"):
        assert "train" not in imported(path), path


@pytest.mark.parametrize("command", ["check", "format --check"])
def test_ruff_has_nothing_to_say(command):
    ruff = [sys.executable, "-m", "ruff", *command.split(), str(ROOT)]
    done = subprocess.run(ruff, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_docstrings_and_names_are_plain():
    done = subprocess.run([sys.executable, "-m", "scripts.lint"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "code, kind",
    [
        ('def f():\n    """What it holds."""', "docstring"),
        ("found = 1", "name"),
        ("def f(given): ...", "name"),
        ("x = [y] * bool(y)", "boolean"),
        ("x = 's' * (n > 1)", "boolean"),
        ("x = f'{y}' * (y and z)", "boolean"),
        ("x = [y] * n", ""),
        ("results = 's' * len(y)", ""),
    ],
)
def test_what_is_not_plain(code, kind):
    from scripts.lint import problems

    assert [found for _, found, _ in problems(ast.parse(code))] == ([kind] if kind else [])


def test_the_table_of_data_sets_is_the_one_in_the_code():
    from datasets.catalogue import downloads

    known = {b.name: b for b in downloads(["all"])}
    lines = (ROOT / "docs" / "datasets.md").read_text().splitlines()
    cells = [line.split("|")[1:-1] for line in lines if line.startswith("| ")]
    rows = [[cell.strip(" `") for cell in row] for row in cells if row[0].strip() in known]
    assert sorted(row[:7] for row in rows) == sorted(
        [name, b.stem, b.folder + "/", *("" if n is None else f"{n:,}" for n in vars(b.size).values())]
        for name, b in known.items()
    )
