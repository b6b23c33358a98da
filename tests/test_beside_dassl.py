"""The folder trainers/ in a CoOp clone, beside the original Dassl: run there, on a stand-in with its public names."""

import json
import math
import os.path as osp
import shutil
import subprocess
import sys

import pytest

SAVED = [("OrthCR", {"rotations": 42}), ("CoOp", {"prompt_learner": 1}), ("ProGrad", {"prompt_learner": 1})]
SAVED += [("LinearProbe", {"adapter": 3}), ("TipAdapterF", {"cache": 7})]


@pytest.fixture(scope="module")
def reports(root, tmp_path_factory):
    """{trainer: what its run told}, all in one process."""
    names = [name for name, _ in SAVED] + ["ZeroshotCLIP2"]
    return dict(zip(names, run_beside_stub(root, tmp_path_factory.mktemp("clone"), *names), strict=True))


@pytest.mark.parametrize("name, saved", SAVED)
def test_a_step_beside_the_original_dassl(reports, name, saved):
    report = reports[name]
    assert len(report["losses"]) == 2 and all(map(math.isfinite, report["losses"]))
    assert report["accuracy"] == report["again"] and report["saved"] == saved
    assert report["features"] == [8, 64, 8] and report["skipped"] == []


def test_zero_shot_beside_the_original_dassl(reports):
    report = reports["ZeroshotCLIP2"]
    assert report["losses"] == [] and report["saved"] == {} and report["accuracy"] == report["again"]


def test_in_a_clone_that_keeps_its_own_trainers(root, tmp_path):
    (tmp_path / "trainers").mkdir()
    for file, name in {"__init__": "", "coop": "CoOp", "zsclip": "ZeroshotCLIP"}.items():
        own = f"from dassl.engine import *\n@TRAINER_REGISTRY.register()\nclass {name}(TrainerX):\n    pass\n"
        (tmp_path / "trainers" / f"{file}.py").write_text(own if name else "")
    (report,) = run_beside_stub(root, tmp_path, "OrthCR")
    assert report["accuracy"] == report["again"] and report["saved"] == {"rotations": 42}
    assert report["skipped"] == ["dept", "kgcoop", "prograd", "tcp"], "what extends our CoOp"
    assert "(TrainerX)" in (tmp_path / "trainers" / "coop.py").read_text()


def run_beside_stub(root, folder, *names):
    """trainers/ and assets/ copied by `cp -rn` into a folder, in a process that does not see this repository."""
    for part in ("trainers", "assets"):
        shutil.copytree(root / part, folder / part, ignore=never_over(folder / part), dirs_exist_ok=True)
    stub = shutil.copy(root / "tests" / "stub_dassl.py", folder)
    done = subprocess.run([sys.executable, stub, str(folder), *names], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def never_over(folder):
    return lambda source, names: [
        n for n in names if n == "__pycache__" or (folder.name == osp.basename(source) and (folder / n).is_file())
    ]
