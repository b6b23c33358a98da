r"""Training or evaluation of one method on one data set, with CoOp's command line.

    python train.py                                            OrthCR on the embedded Shapes
    python train.py --trainer OrthCR --root DATA --seed 1 --dataset-config-file configs/datasets/caltech101.yaml \
        --config-file configs/trainers/OrthCR/vit_b16.yaml --output-dir OUT \
        DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base
    python train.py --eval-only --model-dir OUT --load-epoch 20 --trainer ... DATASET.SUBSAMPLE_CLASSES new
    python train.py --trainer OrthCR --images photos/ --output-dir OUT \
        --config-file configs/trainers/OrthCR/vit_b16.yaml          own images: a folder for each class

`--print-config` prints the merged config with the learning rate and the number of steps, and stops.
Config precedence, later over earlier: defaults, --dataset-config-file, --config-file, the flags, the image settings of
the backbone, KEY VALUE pairs.
An interrupted run resumes from its last checkpoint when the same command is given again.
"""

import sys

from dassl.infrastructure.command import RESUME_HINT, command
from orthcr.run.flags import parse


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        spec = parse(argv, __doc__)
        from orthcr.run.runner import run  # not above: it imports PyTorch, which takes seconds, and --help needs none

        run(spec)

    return command(work, RESUME_HINT)


if __name__ == "__main__":
    sys.exit(main())
