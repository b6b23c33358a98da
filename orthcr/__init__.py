"""The package for other programs: `from orthcr import Predictor, Prediction`.

`import orthcr` alone is fast, because PyTorch is imported only with these two names.
"""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors
    from orthcr.deploy.predictor import Prediction, Predictor

if sys.argv[:1] == ["-m"] and "-m orthcr" in " ".join(sys.orig_argv):  # `python -m orthcr` has just begun
    from dassl.infrastructure.interrupts import end_quietly

    end_quietly()

__all__ = ["Prediction", "Predictor"]
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("dassl", "trainers")  # never `datasets`: other programs mean Hugging Face's


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        for package in PACKAGES:
            load(package)
        return getattr(importlib.import_module("orthcr.deploy.predictor"), name)
    except AttributeError as error:  # Python would print "cannot import name" and hide the reason
        raise ImportError(f"{name} cannot be imported, because of an error in what it needs: {error}") from error


def load(package: str) -> None:
    """Import a package of this clone, even if the program's folder has a package of the same name.

    Args:
        package: its name, for example `trainers`.

    Raises:
        ImportError: the program has already imported another package of this name.
    """
    file = ROOT / package / "__init__.py"
    if package not in sys.modules:
        spec = importlib.util.spec_from_file_location(package, file)
        sys.modules[package] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package])
    location = getattr(sys.modules[package], "__file__", None) or f"{sys.modules[package]!r}"
    if Path(location).resolve() != file:
        problem = f"OrthCR has a package {package}, and this program has imported another of that name, {location}"
        raise ImportError(f"{problem}: use Predictor in a process of its own")
