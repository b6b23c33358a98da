"""Other systems: what Windows and macOS lack is done without; what is missing there is told, and not hidden."""

import json
import os
import subprocess
import sys

import pytest

# Windows, as far as it can be had on Linux: modules that are not there, and names that modules do not have
WINDOWS = """
import os, signal, sys

class Missing:
    def find_spec(name, path=None, target=None):
        if name in ("fcntl", "resource", "pwd", "grp", "termios"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import multiprocessing.queues, clip.clip, matplotlib.pyplot, sklearn.datasets, torch.utils.tensorboard, torchvision
import yacs.config  # all of these are made for the system that they are installed on
sys.meta_path.insert(0, Missing)
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules.pop(name, None)
for name in ("fork", "forkpty", "register_at_fork", "O_NONBLOCK", "O_NOFOLLOW", "O_DIRECTORY", "getuid", "geteuid",
             "statvfs", "sched_getaffinity", "killpg", "setsid", "getloadavg", "mkfifo", "EX_OK"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGPIPE", "SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "pthread_sigmask", "SIG_BLOCK", "alarm"):
    if hasattr(signal, name):
        delattr(signal, name)
"""


@pytest.fixture
def on_windows(tmp_path, root):
    """on_windows(*argv): Python in the clone, without what Windows does not have."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WINDOWS)

    def run(*argv):
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), str(root)]), "OMP_NUM_THREADS": "1"}
        argv = [sys.executable, *map(str, argv)]
        return subprocess.run(argv, cwd=root, env=env, capture_output=True, text=True, timeout=240)

    return run


COMMANDS = """
import json, sys
import predict, report, train
training, prediction, reporting = map(json.loads, sys.argv[1:])
sys.exit(train.main(training) or predict.main(prediction) or report.main(reporting))
"""


def test_everything_imports_trains_and_predicts_without_what_windows_lacks(on_windows, pictures, root, tmp_path):
    packages = ("dassl", "trainers", "datasets", "orthcr")
    files = [path for package in packages for path in root.glob(f"{package}/**/*.py")]
    names = [".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files]
    names += ["train", "predict", "export", "report", "benchmark"]
    imports = f"import importlib\nfor name in {names}: importlib.import_module(name)\n"
    out, image = tmp_path / "out", min(pictures.rglob("*.png"))
    training = ["--root", pictures, "--output-dir", out, "--trainer", "CoOp", "DATASET.NUM_SHOTS", 1]
    training += ["OPTIM.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", 0, "USE_CUDA", False]
    words = [training, ["--model-dir", out, image, "--json"], [tmp_path]]
    done = on_windows("-c", imports + COMMANDS, *(json.dumps(list(map(str, argv))) for argv in words))
    assert done.returncode == 0, done.stderr
    assert json.loads((out / "results.json").read_text())["peak_memory_mib"] is None
    assert f'"image": "{image}"' in done.stdout


def test_an_error_inside_an_import_is_not_hidden(root):
    code = """
import os
from PIL import Image
del Image.Image  # whatever is missing in what is imported
from orthcr import Predictor
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "has no attribute 'Image'" in done.stderr.splitlines()[-1], done.stderr
    assert done.stderr.splitlines()[-1].startswith("ImportError: Predictor cannot be imported")


@pytest.mark.parametrize("argv", [["-c", "import benchmarks.measure"], ["-m", "scripts.pretrain_tiny", "--help"]])
def test_clips_warning_about_pkg_resources_is_not_on_the_console(argv, root):
    """Nor after `from orthcr import Predictor` (test_install.py), nor in export.py (test_privacy.py)."""
    done = subprocess.run([sys.executable, *argv], cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "pkg_resources" not in done.stderr, done.stderr
