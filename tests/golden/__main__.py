"""See the package's docstring."""

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

import trainers
from dassl.infrastructure.streams import open_streams
from orthcr.run.declarations import discover

from .recipe import SIZES

FIGURES = Path(__file__).parent / "figures"  # of the originals: see its README.md
# stored as float32
TENSORS = ("grad", "after/", "change/", "init/", "f/grad", "f/keys", "keys", "values", "class_tokens")
TOLERANCE = {True: 1e-6, False: 1e-9}  # of tensors, of logits and losses


def read_arrays(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """{variant: {name: array}}; an array stored as two factors is their product."""
    cases: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path) as stored:
        for key in stored.files:
            variant, name = key.split("/", 1)
            if variant == "published" or name.endswith("|V"):
                continue
            array = stored[key]
            if name.endswith("|U"):
                name, array = name[:-2], array.astype(np.float64) @ stored[key[:-1] + "V"]
            cases.setdefault(variant, {})[name] = array
    return cases


def difference(ours: np.ndarray | None, golden: np.ndarray) -> float:
    """The largest, relative to the largest entry; infinite for a figure that is missing or of another shape."""
    if ours is None or ours.shape != golden.shape or not np.isfinite(ours).all():
        return np.inf
    return float(np.abs(ours - golden).max() / (np.abs(golden).max() or 1))


def check(directory: Path, methods: list[str] = ()) -> Iterator[tuple[str, bool]]:
    """(line, whether it agrees) of each case in a folder of golden figures; `methods`: of these only.

    Raises:
        FileNotFoundError: there are none.
    """
    with_recipe = directory / "recipe.json"
    made = json.loads(with_recipe.read_text()) if with_recipe.is_file() else {}
    files = [
        path
        for path in sorted(directory.glob("*.json"))
        if path.stem != "recipe" and path.with_suffix(".npz").is_file()
    ]
    if not files:
        raise FileNotFoundError(f"{directory} has no golden figures: <method>.json and <method>.npz")
    for path in files:
        spec = json.loads(path.read_text())
        method = spec["method"]
        if methods and method not in methods:
            continue
        if importlib.util.find_spec(f"{__package__}.{method}") is None:
            yield f"{method:12} no module tests/golden/{method}.py computes its figures", False
            continue
        golden_case = importlib.import_module(f"{__package__}.{method}").Golden
        for variant, golden in read_arrays(path.with_suffix(".npz")).items():
            case = golden_case(variant, spec, made.get("sizes", SIZES), made.get("sha256", ""), golden)
            yield line(f"{method:12} {variant:22}", case)


def line(title: str, case) -> tuple[str, bool]:
    try:
        ours = case.figures()
    except Exception as error:  # the other cases are still told
        return f"{title} FAILED  {type(error).__name__}: {error}", False
    rows = []
    for name, array in case.golden.items():
        tolerance = TOLERANCE[name.startswith(TENSORS) or array.dtype == np.float32]
        rows.append((difference(ours.get(name), array) / tolerance, tolerance, name))
    worst, tolerance, name = max(rows)
    verdict = "ok    " if worst <= 1 else "FAILED"
    said = f"{worst * tolerance:8.1e} of {tolerance:.0e}" if np.isfinite(worst) else "not computed, or of another shape"
    return f"{title} {verdict}  {len(rows):3} arrays, nearest to its tolerance: {said}  {name}", worst <= 1


def main(argv: list[str] | None = None) -> int:
    open_streams()
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description="This code against the originals.")
    parser.add_argument(
        "directory", type=Path, nargs="?", default=FIGURES, help="folder of <method>.json and <method>.npz"
    )
    parser.add_argument("methods", nargs="*", help="methods to check, as the files are named; default: all")
    args = parser.parse_args(argv)
    discover(trainers)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    try:
        results = []
        for text, agrees in check(args.directory, args.methods):
            print(text, flush=True)
            results.append(agrees)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{sum(results)} of {len(results)} cases agree")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
