"""OrthCR for other programs: `from orthcr import Predictor, Prediction`.

Only that imports PyTorch; `import orthcr` is quick.
"""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dassl", "trainers", "experiments")  # never `datasets`: other programs mean Hugging Face's


def __getattr__(name: str):
    if name not in ("Predictor", "Prediction"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for package in PACKAGES:
        load(package)
    return getattr(importlib.import_module("experiments.predictor"), name)


def load(package: str) -> ModuleType:
    """A top-level package of this clone, even where the program's own folder has one of that name, as `experiments`.

    Raises:
        ImportError: the program has imported its own.
    """
    file = ROOT / package / "__init__.py"
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(package, file)
        sys.modules[package] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    module = sys.modules[package]
    if Path(getattr(module, "__file__", None) or "").resolve() != file:
        told = f"OrthCR needs its own package {package}, but this program has imported another: {module}"
        raise ImportError(f"{told}; import orthcr's Predictor in a process of its own")
    return module
