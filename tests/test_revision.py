"""The commit in results.json: marked where the code of the run is not that commit's."""

import json
import os
import subprocess
import sys

import pytest

TRAINER = """from dassl.engine import TRAINER_REGISTRY
from .zsclip import ZeroshotCLIP


@TRAINER_REGISTRY.register()
class Mine(ZeroshotCLIP):
    pass
"""


@pytest.fixture
def clone(tmp_path, root):
    """A repository of its own with the files of this one."""
    names = subprocess.check_output(["git", "ls-files", "-z"], cwd=root, text=True).split("\0")[:-1]
    wanted = [name for name in names if name.split("/")[0] in ("dassl", "trainers", "datasets", "orthcr")]
    wanted += [name for name in names if name.startswith(("configs/", "assets/tiny"))]
    for name in wanted:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((root / name).read_bytes())
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all")
    return tmp_path


def git(folder, *words):
    return subprocess.check_output(["git", *words], cwd=folder, text=True).strip()


SCRIPT = """
import json, os, subprocess, sys
from orthcr.run.runner import main

root, out = sys.argv[1:]

def revision(trainer):
    folder = os.path.join(out, str(len(os.listdir(out))))
    flags = ["--trainer", trainer, "--root", root, "--dataset-config-file", "configs/datasets/digits.yaml"]
    assert main([*flags, "--output-dir", folder, "VERBOSE", "False", "USE_CUDA", "False"]) == 0
    with open(os.path.join(folder, "results.json")) as f:
        return json.load(f)["git_revision"]

def commit(name):
    subprocess.check_call(["git", "add", name])
    subprocess.check_call(["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", name])
    return subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip()

seen = [revision("ZeroshotCLIP"), revision("Mine"), commit("trainers/mine.py"), revision("Mine")]
with open("trainers/mine.py", "a") as f:
    f.write("#")
print(json.dumps([*seen, revision("Mine")]))
"""


def test_untracked_files_count_if_the_run_uses_them(clone, data_root, tmp_path_factory):
    first = git(clone, "rev-parse", "HEAD")
    (clone / "trainers" / "mine.py").write_text(TRAINER)
    words = [sys.executable, "-c", SCRIPT, str(data_root), str(tmp_path_factory.mktemp("out"))]
    env = {**os.environ, "PYTHONPATH": str(clone)}
    done = subprocess.run(words, cwd=clone, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    zero, mine, second, clean, changed = json.loads(done.stdout.splitlines()[-1])
    assert zero == first and mine == f"{first}+", "of the trainers that are there, only the one that is used"
    assert clean == second and changed == f"{second}+"
