"""Calibration of a finished training: its temperature is fitted on val, and saved beside the model.

    orthcr calibrate --model-dir OUT [--root DATA]

docs/calibration.md says what the temperature is for. No test image is looked at, and no accuracy changes.
"""

import argparse
import os.path as osp

from dassl.infrastructure.command import command
from dassl.infrastructure.console import silence
from dassl.infrastructure.streams import open_streams
from orthcr.run.spec import RunSpec


def main(argv: list[str] | None = None) -> int:
    open_streams()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", required=True, metavar="OUT", help="output directory of the training")
    parser.add_argument("--root", help="folder of the data sets, if it is not where it was")
    args = parser.parse_args(argv)

    def work() -> None:
        from orthcr.run.temperature import calibrate  # not above: it imports PyTorch, which takes seconds
        from orthcr.run.trained import load_trained

        folder = osp.expanduser(args.model_dir)
        spec = RunSpec(eval_only=True, model_dir=folder, root=args.root, split="val", opts=("VERBOSE", "False"))
        with silence():  # hides the log of a training
            trainer = load_trained(spec)
        calibrate(trainer, folder)

    return command(work)
