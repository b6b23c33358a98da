"""What an installation brings: a command that answers at once, and a Predictor for other programs, from any folder."""

import json
import os
import re
import runpy
import subprocess
import sys
from types import ModuleType

import pytest
import setuptools

import orthcr
from orthcr import Prediction, Predictor
from orthcr.run.runner import main as train

SLOW = {"torch", "numpy", "matplotlib", "PIL"}
THEIRS = "def load_dataset(name):\n    return 'theirs: ' + name\n"  # as Hugging Face's
PROGRAM = """
import importlib.util, json, sys
import orthcr
assert "torch" not in sys.modules
from orthcr import Prediction, Predictor
if __name__ == "__main__":
    said = list(Predictor(sys.argv[1], device="cpu")(sys.argv[2:]))
    assert all(isinstance(p, Prediction) for p in said)
    print(json.dumps([[p.image, p.top] for p in said]))
    assert "datasets" not in sys.modules
    import datasets
    print(datasets.load_dataset("mnist"))
    sys.path.remove(sys.modules.pop("datasets").__file__.removesuffix("/datasets/__init__.py"))
    print(importlib.util.find_spec("datasets"))  # as programs ask that can do without
"""
FINDER = """  # as setuptools' for an editable installation: asked after all folders of sys.path
import sys
from importlib.machinery import PathFinder
from importlib.util import spec_from_file_location

class Installed:
    def find_spec(name, path=None, target=None):
        if name in {names}:
            return spec_from_file_location(name, "{root}/" + name + "/__init__.py")

sys.meta_path.insert(sys.meta_path.index(PathFinder) + 1, Installed)
"""


@pytest.fixture(scope="module")
def setup_words(root):
    """What setup.py says."""
    words = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(setuptools, "setup", words.update)
        runpy.run_path("setup.py")
    return words


@pytest.fixture(scope="module")
def anywhere(setup_words, root, tmp_path_factory):
    """anywhere(*argv): Python in a folder elsewhere, with what setup.py installs and, before it, another `datasets`.

    That folder has a `trainers` of its own, without __init__.py.
    """
    base = tmp_path_factory.mktemp("anywhere")
    for folder in ("here/trainers", "theirs/datasets", "site"):
        (base / folder).mkdir(parents=True)
    (base / "theirs" / "datasets" / "__init__.py").write_text(THEIRS)
    names = {name.split(".")[0] for name in setup_words["packages"]}
    (base / "site" / "sitecustomize.py").write_text(FINDER.format(names=names, root=root))
    (base / "here" / "program.py").write_text(PROGRAM)
    module, function = re.fullmatch(
        r"orthcr = ([\w.]+):(\w+)", *setup_words["entry_points"]["console_scripts"]
    ).groups()
    (base / "orthcr").write_text(f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n")

    def run(*argv, folder="here"):
        path = os.pathsep.join([str(base / "theirs"), str(base / "site")])
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, *map(str, argv)]
        return subprocess.run(argv, cwd=base / folder, env=env, capture_output=True, text=True, timeout=300)

    run.folder, run.command = base / "here", base / "orthcr"
    return run


@pytest.fixture(scope="module")
def model(pictures, tmp_path_factory):
    """(output directory of a short training, eight of its images); predictions come in batches of 2, by 2 workers."""
    out = tmp_path_factory.mktemp("model")
    argv = ["--root", pictures, "--output-dir", out, "--trainer", "CoOp", "DATASET.NUM_SHOTS", 1, "OPTIM.MAX_EPOCH", 1]
    argv += ["DATALOADER.TEST.BATCH_SIZE", 2, "DATALOADER.NUM_WORKERS", 2, "TEST.NO_TEST", True, "USE_CUDA", False]
    assert train(list(map(str, argv))) == 0
    return out, sorted(map(str, pictures.rglob("*.png")))[:8]


# ------------------------------------------------------------------ before PyTorch is imported


def imported(done):
    """Names of all modules that a process with -X importtime has imported, also in functions."""
    names = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert "argparse" in names
    return names


@pytest.mark.parametrize("name", ["train", "predict", "export", "report", "benchmark"])
def test_help_imports_no_pytorch(name, root, anywhere):
    for script in ([root / f"{name}.py"], [anywhere.command, name]):
        done = anywhere("-X", "importtime", *script, "--help")
        assert (
            done.returncode == 0
            and f"usage: {script[0].name if len(script) == 1 else f'orthcr {name}'} " in done.stdout
        )
        assert not imported(done) & SLOW


def test_commands_of_the_package_run_from_any_folder(anywhere):
    """They import this clone's `datasets`, which is not installed, although another one stands before it."""
    done = anywhere("-m", "orthcr", "calibrate", "--model-dir", "nowhere")
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr


@pytest.mark.parametrize(
    "argv, status, words",
    [
        ("train.py --sed", 2, "unrecognized arguments: --sed"),
        ("train.py --seed one", 2, "invalid int value: 'one'"),
        ("train.py --model-dir OUT", 1, "--model-dir needs --eval-only"),
        ("train.py OPTIM.LR 1 --seed 1", 1, "--seed comes after a KEY VALUE pair"),
        ("predict.py image.jpg", 2, "--model-dir"),
        ("predict.py --model-dir OUT image.jpg --top 0", 1, "--top is 0"),
        ("benchmark.py --protocol zero_shot", 2, "zero_shot"),
        ("benchmark.py OPTIM.LR", 2, "KEY VALUE pairs"),
        ("report.py --seeds one OUT", 2, "invalid int value: 'one'"),
    ],
)
def test_wrong_flags_are_told_before_pytorch_is_imported(argv, status, words, root, anywhere):
    script, *flags = argv.split()
    done = anywhere("-X", "importtime", root / script, *flags)
    assert done.returncode == status and words in done.stderr and "Traceback" not in done.stderr
    assert not imported(done) & SLOW


# ------------------------------------------------------------------ the package


def test_what_is_installed(setup_words, root):
    packages = setup_words["packages"]
    assert {"orthcr", "dassl.engine", "trainers.shared", "orthcr.run"} < set(packages)
    assert not [name for name in packages if name.split(".")[0] in ("datasets", "tests", "scripts")]
    assert all((root / name.replace(".", "/") / "__init__.py").exists() for name in packages)


def test_a_predictor_beside_another_datasets(anywhere, model, root):
    """Its predictions are those made here, and the program's `datasets` stays the program's."""
    out, images = model
    done = anywhere("program.py", out, *images)
    assert done.returncode == 0 and "pkg_resources" not in done.stderr, done.stderr
    said, theirs, without = done.stdout.splitlines()
    assert theirs == "theirs: mnist" and str(root / "datasets") not in without
    assert without == "None" or "site-packages" in without  # there, Hugging Face's
    predictions = list(Predictor(out, device="cpu")(images))
    assert len({p.top[0] for p in predictions}) > 1
    for (image, top), p in zip(json.loads(said), predictions, strict=True):
        assert image == p.image and [name for name, _ in top] == [name for name, _ in p.top]
        assert [q for _, q in top] == pytest.approx([q for _, q in p.top], rel=1e-5)


@pytest.mark.parametrize("file", ["/home/me/trainers/__init__.py", None], ids=["package", "folder"])
def test_a_program_that_has_imported_a_trainers_of_its_own(file, monkeypatch):
    own = ModuleType("trainers")
    own.__file__ = file
    monkeypatch.setitem(sys.modules, "trainers", own)
    with pytest.raises(ImportError, match="a package trainers.*a process of its own") as error:
        orthcr.__getattr__("Predictor")
    assert (file or "<module 'trainers'") in str(error.value)


def test_its_names():
    assert (Prediction.__name__, Predictor.__name__) == ("Prediction", "Predictor")
    with pytest.raises(AttributeError, match="no attribute 'Predicter'"):
        orthcr.__getattr__("Predicter")
    import predict

    assert predict.Predictor is Predictor, "as it was before there was orthcr"


# ------------------------------------------------------------------ the command


def test_the_command_is_train_py_from_anywhere(anywhere, pictures, tmp_path):
    """Our own `datasets` is meant in it; what is relative is so to the folder where it is called."""
    argv = ["--trainer", "ZeroshotCLIP", "--root", pictures, "--dataset-config-file", "configs/datasets/shapes.yaml"]
    argv += ["USE_CUDA", False]
    done = anywhere(anywhere.command, "train", "--output-dir", "out", *argv)
    assert done.returncode == 0, done.stderr
    assert train(["--output-dir", str(tmp_path), *map(str, argv)]) == 0
    here, there = (json.loads((f / "results.json").read_text()) for f in (tmp_path, anywhere.folder / "out"))
    assert here["accuracy"] == there["accuracy"] and here["config"].keys() == there["config"].keys()
    changed = {key for key, value in here["config"].items() if there["config"][key] != value}
    assert changed == {"OUTPUT_DIR"}


def test_a_command_that_is_not_there(anywhere):
    for words in ([], ["tain"], ["--trainer", "CoOp"]):
        done = anywhere(anywhere.command, *words)
        assert done.returncode == 2 and "usage: orthcr " in done.stderr and "Traceback" not in done.stderr
