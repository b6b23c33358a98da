"""All methods, all data sets, one command; ends in their comparison.

    python benchmark.py                                      every method on the embedded data, all four protocols
    python benchmark.py --protocol base2new --trainers all --datasets caltech101 dtd --seeds 1 2 3 --root DATA
    python benchmark.py --trainers CoOp OrthCR --datasets all --root DATA --output-dir OUT OPTIM.MAX_EPOCH 10
    python benchmark.py --sweep OPTIM.LR 1e-4 1e-3 --trainers OrthCR CoOp --datasets digits     values of a key, on val
    python benchmark.py --engine ray --address auto ...      the same plan on a Ray cluster

Runs go side by side, as cores, GPUs and memory allow. Given again, the same command skips what is finished and goes on
with what is not. A run that crashes or is killed is begun once more; if that fails, too, it is reported, the others go
on, and the exit status is 1. Tables, pictures and report.html are in the output directory.
"""

import argparse
import sys

from dassl.command import command
from experiments.flags import arguments
from experiments.packages import check_installed


def sweep(args: argparse.Namespace) -> list[str]:
    from experiments.sweep import run  # with PyTorch

    failed, measured = run(args)
    from reports.sweep import write_sweep

    if measured:
        write_sweep(args.sweep[0], measured, args.seeds, args.output_dir)
    return failed


def main(argv: list[str] | None = None) -> int:
    def work() -> list[str]:
        args = arguments(sys.argv[1:] if argv is None else argv, __doc__)
        if args.engine == "ray":
            check_installed(("ray",), "--engine ray", "cluster")
        if args.sweep:
            return sweep(args)
        from experiments.benchmark import run  # not above: with PyTorch, which takes seconds, and --help needs none

        failed, outdated = run(args)
        from reports.comparison import compare  # with matplotlib

        if any(args.output_dir.rglob("results.json")):
            compare([args.output_dir], args.output_dir, args.seeds, outdated)
        return failed

    return command(work, "interrupted: given again, the same command goes on where it was")


if __name__ == "__main__":
    sys.exit(main())
