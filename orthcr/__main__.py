"""The commands of this clone, from any folder.

    orthcr train ...          python train.py ...                      trains or evaluates one method on one data set
    orthcr predict ...        python predict.py ...                    classifies images with a trained model
    orthcr export ...         python export.py ...                     a trained model in the files of others
    orthcr report ...         python report.py ...                     tables and pictures of any tree of results
    orthcr benchmark ...      python benchmark.py ...                  all methods, all data sets
    orthcr calibrate ...      python -m orthcr calibrate ...   finds the temperature of a trained model on val
    orthcr strength ...       python -m orthcr strength ...    a trained model at several strengths
    orthcr new-trainer NAME   python -m orthcr new-trainer     starts a method of your own: code, YAML, test

What is relative, as --output-dir and --root, is so to the folder where you are; configs/... is also found in the clone.
"""

import argparse
import importlib
import sys

from . import ROOT

COMMANDS = {  # name -> module with a function main()
    **{name: name for name in ("train", "predict", "export", "report", "benchmark")},
    "calibrate": "orthcr.calibrate",
    "strength": "orthcr.compare.strength_curve",
    "new-trainer": "orthcr.new_trainer",
}


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(
        "orthcr", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=COMMANDS, help="orthcr COMMAND --help says more")
    name = parser.parse_args(words[:1]).command
    if not (ROOT / "train.py").exists():
        parser.exit(
            1, "error: orthcr is not installed from a clone that is still there: in the clone, pip install -e .\n"
        )
    sys.path.insert(0, str(ROOT))  # as python train.py has it: there, `datasets` is the clone's
    sys.argv[:] = [f"orthcr {name}", *words[1:]]
    return importlib.import_module(COMMANDS[name]).main()


if __name__ == "__main__":
    sys.exit(main())
