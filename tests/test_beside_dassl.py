"""The folder trainers/ in a CoOp clone, beside the original Dassl: run there, on a stand-in with its public names."""

import json
import math
import shutil
import subprocess
import sys

import pytest

SAVED = [("OrthCR", {"rotations": 42}), ("CoOp", {"prompt_learner": 1}), ("CoCoOp", {"prompt_learner": 5})]
SAVED += [("KgCoOp", {"prompt_learner": 1}), ("ProGrad", {"prompt_learner": 1})]


@pytest.mark.parametrize("name, saved", SAVED)
def test_a_step_beside_the_original_dassl(root, tmp_path, name, saved):
    report = run_beside_stub(root, tmp_path, name)
    assert len(report["losses"]) == 2 and all(map(math.isfinite, report["losses"]))
    assert report["accuracy"] == report["again"] and report["saved"] == saved
    assert report["features"] == [8, 64, 8]


def test_zero_shot_beside_the_original_dassl(root, tmp_path):
    report = run_beside_stub(root, tmp_path, "ZeroshotCLIP2")
    assert report["losses"] == [] and report["saved"] == {} and report["accuracy"] == report["again"]


def run_beside_stub(root, folder, name):
    """trainers/ and assets/ copied into an empty folder, in a process that does not see this repository."""
    ignore = shutil.ignore_patterns("__pycache__")
    for part in ("trainers", "assets"):
        shutil.copytree(root / part, folder / part, ignore=ignore)
    stub = shutil.copy(root / "tests" / "stub_dassl.py", folder)
    done = subprocess.run([sys.executable, stub, str(folder), name], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
