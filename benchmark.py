"""The benchmark of all methods on all data sets, in one command. It ends in a comparison.

    python benchmark.py                                      every method on the embedded data, all four protocols
    python benchmark.py --protocol base2new --trainers all --datasets caltech101 dtd --seeds 1 2 3 --root DATA
    python benchmark.py --trainers CoOp OrthCR --datasets all --root DATA --output-dir OUT OPTIM.MAX_EPOCH 10
    python benchmark.py --sweep OPTIM.LR 1e-4 1e-3 --trainers OrthCR CoOp --datasets digits     values of a key, on val
    python benchmark.py --engine ray --address auto ...      the same plan on a Ray cluster

Runs go side by side, as cores, GPUs and memory allow. The same command given again skips finished runs and resumes the
others. A run that crashes or is killed is started once more. If it fails again, it is reported, the others go on, and
the exit status is 1. Tables, pictures and report.html are in the output directory.
"""

import argparse
import sys

from dassl.infrastructure.command import command
from orthcr.compare.command_line import parse_arguments
from orthcr.packages import check_installed


def sweep(args: argparse.Namespace) -> list[str]:
    """Run `--sweep` and write its table; return a line for each training that failed."""
    from orthcr.compare.sweep import run  # not above: it imports PyTorch

    failed, measured = run(args)
    from orthcr.reports.sweep_tables import write_sweep

    if measured:
        write_sweep(args.sweep[0], measured, args.seeds, args.output_dir)
    return failed


def main(argv: list[str] | None = None) -> int:
    def work() -> list[str]:
        args = parse_arguments(sys.argv[1:] if argv is None else argv, __doc__)
        if args.engine == "ray":
            check_installed(("ray",), "--engine ray", "cluster")
        if args.sweep:
            return sweep(args)
        from orthcr.compare.benchmark_run import run  # not above: it imports PyTorch, which takes seconds

        failed, outdated = run(args)
        from orthcr.reports.comparison import compare  # not above: it imports matplotlib

        if any(args.output_dir.rglob("results.json")):
            compare([args.output_dir], args.output_dir, args.seeds, outdated)
        return failed

    return command(work, "interrupted: give the same command again to resume")


if __name__ == "__main__":
    sys.exit(main())
