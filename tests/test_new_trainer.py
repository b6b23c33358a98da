"""`orthcr new-trainer NAME`: what it writes works at once; names that cannot be are refused."""

import os
import shutil
import subprocess
import sys

import pytest

from orthcr import new_trainer

FOLDERS = ("dassl", "trainers", "datasets", "orthcr", "configs", "assets")


@pytest.fixture(scope="module")
def clone(root, tmp_path_factory):
    """clone(*argv): Python in a copy of the repository; `clone.path` is the copy."""
    path = tmp_path_factory.mktemp("clone")
    for folder in FOLDERS:
        shutil.copytree(root / folder, path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (path / "tests").mkdir()
    for file in ("train.py", "pyproject.toml", "tests/conftest.py"):
        shutil.copy(root / file, path / file)

    def run(*argv):
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        argv = [sys.executable, *map(str, argv)]
        return subprocess.run(argv, cwd=path, env=env, capture_output=True, text=True, timeout=240)

    run.path = path
    return run


def test_a_new_trainer_works_at_once(clone, pictures, tmp_path):
    done = clone("-m", "orthcr", "new-trainer", "Unheard7")
    assert done.returncode == 0, done.stderr
    files = [line for line in done.stdout.splitlines() if (clone.path / line).is_file()]
    configs = [f"configs/trainers/Unheard7/{name}.yaml" for name in ("base", "tiny", "vit_b16")]
    assert files == ["trainers/unheard7.py", *configs, "tests/test_unheard7.py"]

    tested = clone("-m", "pytest", "-q", "tests/test_unheard7.py")
    assert tested.returncode == 0 and tested.stdout.startswith("... "), tested.stdout
    for command in (["check"], ["format", "--check"]):
        linted = clone("-m", "ruff", *command, "trainers/unheard7.py", "tests/test_unheard7.py")
        assert linted.returncode == 0, linted.stdout

    flags = ["--trainer", "Unheard7", "--root", pictures, "--output-dir", tmp_path / "out"]
    trained = clone("train.py", *flags, "OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 1)
    assert trained.returncode == 0 and "* accuracy: " in trained.stdout, trained.stderr
    assert (tmp_path / "out" / "learner" / "model.pth.tar-1").exists()

    again = clone("-m", "orthcr", "new-trainer", "Unheard7")
    assert again.returncode == 1 and "Unheard7" in again.stderr and again.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name, words",
    [
        ("My-Method", "no name of a trainer"),
        ("2SFS", "no name of a trainer"),
        ("", "no name of a trainer"),
        ("class", "no name of a trainer"),
        ("../../x", "no name of a trainer"),
        ("Class", "cannot import"),
        ("CoOp", "taken by the trainer CoOp"),
        ("COOP", "taken by the trainer CoOp"),
        ("Base", "base.py is there already"),
        ("Shared", "shared is there already"),
    ],
)
def test_names_that_cannot_be_are_refused(name, words, root, tmp_path, one_line):
    def files():
        return [sorted(root.glob(pattern)) for pattern in ("trainers/*", "configs/trainers/*", "tests/*")]

    before = files()
    with pytest.raises(ValueError, match=words) as error:
        new_trainer.create(name)
    assert one_line(error) and files() == before


def test_nothing_is_left_of_files_that_cannot_all_be_written(tmp_path, monkeypatch):
    def fail(path):
        if path.name == "tiny.yaml":
            raise OSError("disk full")
        return write(path)

    write = new_trainer.atomic_write
    monkeypatch.setattr(new_trainer, "atomic_write", fail)
    with pytest.raises(OSError, match="disk full"):
        new_trainer.create("Unheard8", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
